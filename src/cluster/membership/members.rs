//! The members actor: owns who is linked with whom. It dials, accepts, and starts a link actor for each connection.
//!
//! The network gives it introduced peers, `ractor_cluster` tells it of sessions, link actors tell it of announcements.
//! It promises that a peer has one link at a time, that an old one is over before a new one begins, and that what a
//! dead link held is lost at once.
//!
//! Spec: ORCH-3044.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::{NodeConnectionMode, NodeSessionMessage};
use ractor_cluster::{NodeServer, NodeServerMessage};
use tokio::task::JoinSet;

use crate::cluster::link::link_actor::{LinkActor, LinkArgs, name_of};
use crate::cluster::link::links::LinkShared;
use crate::cluster::link::messages::LinkMsg;
use crate::cluster::link::protocol::ENVELOPE_BYTES_MAX;
use crate::cluster::membership::discovery::{self, Discovery};
use crate::cluster::membership::messages::MembersMsg;
use crate::cluster::shared::objection;
use crate::cluster::shared::{ClusterShared, PeerShared};
use crate::cluster::sharing::demand::{DIVIDE_PERIOD, QuotaPartition};
use crate::cluster::sharing::inbound;
use crate::cluster::sharing::remote_pools;
use crate::cluster::transport::handshake::Role;
use crate::cluster::transport::network::Caller;
use crate::cluster::transport::sessions::{Labelled, Sessions};
use crate::cluster::transport::x509::Shown;
use crate::core::cluster::node::{NodeName, dials_first};
use crate::core::pool::restart::Backoff;

/// How long a node is waited for that dials by itself, before we dial it too.
const ITS_TURN: Duration = Duration::from_secs(3);

/// One link, from the hand-over of its connection until both its actor and its session are gone.
struct Entry {
    peer: Arc<PeerShared>,
    link: Arc<LinkShared>,
    /// `None` once it is gone.
    actor: Option<ActorRef<LinkMsg>>,
    /// `None` before it is opened and once it is gone.
    session: Option<ActorRef<NodeSessionMessage>>,
    session_is_over: bool,
    /// The certificate that the peer has shown.
    shown: Option<Arc<Shown>>,
}

/// The actor.
pub(crate) struct Members;

/// Its state.
pub(crate) struct MembersState {
    pub(in crate::cluster) myself: ActorRef<MembersMsg>,
    pub(in crate::cluster) shared: Arc<ClusterShared>,
    server: ActorRef<NodeServerMessage>,
    links: BTreeMap<String, Entry>,
    /// Peers whose last link is not quite over.
    waiting: BTreeMap<NodeName, Caller>,
    /// Nodes that are being dialled, or will be.
    dialling: BTreeSet<NodeName>,
    /// Dials that failed in a row.
    failures: BTreeMap<NodeName, u32>,
    next_label: u64,
    /// The change of the roster by which every link has been judged.
    judged: u64,
    dividing: QuotaPartition,
    pub(in crate::cluster) discovery: Discovery,
    /// Accepts and dials; aborted with the actor.
    tasks: JoinSet<()>,
}

impl MembersState {
    /// Whether there is a link with this node, or about to be.
    pub(in crate::cluster) fn is_linked(&self, name: &NodeName) -> bool {
        self.waiting.contains_key(name)
            || self.links.values().any(|entry| entry.peer.name == *name && entry.actor.is_some())
    }

    /// Dials a node after some time, unless it is about to be dialled anyway.
    pub(in crate::cluster) fn dial_later(&mut self, peer: &NodeName, wait: Duration) {
        if !self.dialling.insert(peer.clone()) {
            return;
        }
        // Of two nodes that know each other's address one dials first; the other dials if that fails.
        let wait = if dials_first(&self.shared.place.name, peer) { wait } else { wait + ITS_TURN };
        let peer = peer.clone();
        self.myself.send_after(wait, move || MembersMsg::Dial(peer));
    }

    /// Runs something that ends by itself, or with this actor.
    pub(in crate::cluster) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {} // Those that have ended.
        self.tasks.spawn(task);
    }
}

impl Actor for Members {
    type Msg = MembersMsg;
    type State = MembersState;
    type Arguments = Arc<ClusterShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<MembersMsg>,
        shared: Arc<ClusterShared>,
    ) -> Result<MembersState, ActorProcessingErr> {
        // Each boot of a node has its own name there: two sessions of one name would compete.
        let name = format!("{}-{}", shared.place.name, shared.place.boot_id);
        let (cookie, mode) = (shared.session_cookie.clone(), NodeConnectionMode::Isolated);
        let server = NodeServer::new(0, cookie, name, "localhost".into(), None, Some(mode))
            .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
            .with_max_inbound_frame_size(2 * ENVELOPE_BYTES_MAX as u64);
        let (server, _) = Actor::spawn_linked(None, server, (), myself.get_cell()).await?;
        let subscription = Box::new(Sessions(myself.clone()));
        server.cast(NodeServerMessage::SubscribeToEvents { id: "members".into(), subscription })?;
        let mut tasks = JoinSet::new();
        let (network, receiver) = (shared.network.clone(), myself.clone());
        tasks.spawn(async move {
            while let Some(caller) = network.accept().await {
                if receiver.cast(MembersMsg::Came(caller)).is_err() {
                    return;
                }
            }
        });
        let _ = myself.cast(MembersMsg::Search); // It is ourselves.
        let (links, waiting, failures) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut dividing = QuotaPartition::default();
        dividing.look(&shared); // From the first moment on it has no more than its part.
        myself.send_after(DIVIDE_PERIOD, || MembersMsg::Divide);
        let discovery = Discovery::default();
        let (next_label, dialling, judged) = (0, BTreeSet::new(), shared.roster.changes());
        let mut state = MembersState {
            myself,
            shared,
            server,
            links,
            waiting,
            dialling,
            failures,
            next_label,
            judged,
            dividing,
            discovery,
            tasks,
        };
        let peers = state.shared.peers.all();
        for peer in peers.into_iter().filter(|peer| peer.address.lock().is_some()) {
            state.dial_later(&peer.name, Duration::ZERO);
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<MembersMsg>,
        message: MembersMsg,
        state: &mut MembersState,
    ) -> Result<(), ActorProcessingErr> {
        state.shared.env.fault_point("members");
        match message {
            MembersMsg::Came(caller) => on_came(state, caller).await?,
            MembersMsg::DialFailed { peer, why } => on_dial_failed(state, peer, why),
            MembersMsg::Linked(peer) => drop(state.failures.remove(&peer)),
            MembersMsg::Announced(peer) => remote_pools::follow(&state.shared, &peer),
            MembersMsg::Search => discovery::on_search(state),
            MembersMsg::Listed(listed) => discovery::on_listed(state, listed),
            MembersMsg::FoundAt { address, found } => discovery::on_found(state, address, found).await?,
            MembersMsg::Opened { label, session } => on_opened(state, &label, session),
            MembersMsg::Ready { label, session } => on_session_ready(state, &label, session),
            MembersMsg::Over { label } => on_over(state, &label).await?,
            MembersMsg::Divide => {
                state.myself.send_after(DIVIDE_PERIOD, || MembersMsg::Divide);
                state.dividing.look(&state.shared);
                // Pools of our own may have come that keep away from some of theirs.
                for peer in state.shared.peers.all() {
                    remote_pools::follow(&state.shared, &peer.name);
                }
                discovery::forget(state);
                judge_links(state);
            }
            MembersMsg::Dial(peer) => on_dial(state, peer),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<MembersMsg>,
        event: SupervisionEvent,
        state: &mut MembersState,
    ) -> Result<(), ActorProcessingErr> {
        let dead = match &event {
            SupervisionEvent::ActorTerminated(actor, ..) | SupervisionEvent::ActorFailed(actor, _) => actor.get_id(),
            _ => return Ok(()),
        };
        if dead == state.server.get_id() {
            return Err("the node server is gone".into()); // It takes every session along: all begins anew.
        }
        on_link_dead(state, dead).await
    }
}

/// Takes a peer in; first the link that there was with it ends.
pub(in crate::cluster) async fn on_came(state: &mut MembersState, caller: Caller) -> Result<(), ActorProcessingErr> {
    let name = caller.peer.hello.name.clone();
    if caller.role == Role::Dialler {
        state.dialling.remove(&name);
    }
    let mut is_free = true;
    for entry in state.links.values().filter(|entry| entry.peer.name == name) {
        is_free = false;
        end(entry, "another link with the same node takes its place");
    }
    if is_free {
        return hand_over(state, caller).await;
    }
    state.waiting.insert(name, caller); // One that waited already is closed: the newest counts.
    Ok(())
}

/// Cuts the links with nodes that may not come any more.
fn judge_links(state: &mut MembersState) {
    let changes = state.shared.roster.changes();
    if std::mem::replace(&mut state.judged, changes) == changes {
        return;
    }
    for entry in state.links.values().filter(|entry| entry.actor.is_some()) {
        if let Some(why) = objection(&state.shared, &entry.peer.name, entry.shown.as_deref()) {
            tracing::warn!(target: "audit", event = "peer_put_out", peer = %entry.peer.name, %why);
            end(
                entry,
                "the node may not come any more: cluster.allow, cluster.deny, the authority or its list has changed",
            );
        }
    }
}

/// Makes a link of a peer's connection.
async fn hand_over(state: &mut MembersState, caller: Caller) -> Result<(), ActorProcessingErr> {
    let Caller { peer: introduced, token, role, stream, address, shown } = caller;
    let name = introduced.hello.name;
    if let Some(why) = objection(&state.shared, &name, shown.as_deref()) {
        // The rules have changed since its handshake. It is dialled again as after any failure, and refused.
        let _ = state.myself.cast(MembersMsg::DialFailed { peer: name, why }); // It is ourselves.
        return Ok(());
    }
    let Some(peer) = state.shared.peers.meet(&name, None) else {
        tracing::warn!(peer = %name, %address, "there are too many nodes; it is not taken");
        return Ok(());
    };
    state.next_label += 1;
    let label = format!("{name}/{}/{}", state.shared.place.name, state.next_label);
    let life = (name, introduced.hello.boot_id, introduced.taken.protocol);
    let link = LinkShared::new(life, (token, introduced.token));
    let args = LinkArgs { shared: state.shared.clone(), peer: peer.clone(), link: link.clone() };
    // Before the hand-over, so that the peer is told of it.
    let cell = state.myself.get_cell();
    let (actor, _) = Actor::spawn_linked(Some(name_of(&token)), LinkActor, args, cell).await?;
    link.actor.publish(actor.clone());
    let entry = Entry { peer, link, actor: Some(actor), session: None, session_is_over: false, shown };
    state.links.insert(label.clone(), entry);
    let stream = Box::new(Labelled { stream, label });
    let is_server = role == Role::Acceptor;
    Ok(state.server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server })?)
}

/// Begins to end a link; its actor's death does the rest.
fn end(entry: &Entry, why: &'static str) {
    if !entry.link.is_over() {
        tracing::warn!(target: "audit", event = "link_over", peer = %entry.peer.name, %why);
        *entry.peer.trouble.lock() = Some(why.to_owned());
    }
    entry.link.end();
    if let Some(actor) = &entry.actor {
        let _ = actor.cast(LinkMsg::Close(why)); // Gone already.
    }
    if let Some(session) = &entry.session {
        session.stop(Some(why.into()));
    }
}

fn on_opened(state: &mut MembersState, label: &str, session: ActorRef<NodeSessionMessage>) {
    match state.links.get_mut(label) {
        Some(entry) if entry.actor.is_some() => entry.session = Some(session),
        Some(entry) => {
            entry.session = Some(session.clone());
            session.stop(Some("its link is over".into()));
        }
        None => session.stop(Some("it belongs to no link".into())), // Somebody found the listener on loopback.
    }
}

fn on_session_ready(state: &MembersState, label: &str, session: ActorRef<NodeSessionMessage>) {
    if let Some(actor) = state.links.get(label).and_then(|entry| entry.actor.as_ref()) {
        let _ = actor.cast(LinkMsg::Ready(session)); // Gone: so is the session, soon.
    }
}

async fn on_over(state: &mut MembersState, label: &str) -> Result<(), ActorProcessingErr> {
    if let Some(entry) = state.links.get_mut(label) {
        (entry.session, entry.session_is_over) = (None, true);
        end(entry, "the connection is over");
    }
    sweep(state).await
}

async fn on_link_dead(state: &mut MembersState, dead: ActorId) -> Result<(), ActorProcessingErr> {
    let is_it = |entry: &&mut Entry| entry.actor.as_ref().is_some_and(|actor| actor.get_id() == dead);
    if let Some(entry) = state.links.values_mut().find(is_it) {
        entry.actor = None;
        end(entry, "the link is over");
        let (peer, link) = (entry.peer.clone(), entry.link.clone());
        inbound::stop_all(&state.shared, &link, "the link with its gateway is over");
        peer.apply_limits();
        peer.changed.notify_waiters();
        if peer.address.lock().is_some() {
            state.dial_later(&peer.name, state.shared.policy.redial.0);
        }
    }
    sweep(state).await
}

/// Forgets links of which nothing is left, and hands over who waited for that.
async fn sweep(state: &mut MembersState) -> Result<(), ActorProcessingErr> {
    state.links.retain(|_, entry| entry.actor.is_some() || !entry.session_is_over);
    let busy = |name: &NodeName| state.links.values().any(|entry| entry.peer.name == *name);
    let free: Vec<NodeName> = state.waiting.keys().filter(|name| !busy(name)).cloned().collect();
    for name in free {
        if let Some(caller) = state.waiting.remove(&name) {
            hand_over(state, caller).await?;
        }
    }
    Ok(())
}

fn on_dial(state: &mut MembersState, name: NodeName) {
    let address = state.shared.peers.get(&name).and_then(|peer| peer.address.lock().clone());
    let Some(address) = address.filter(|_| !state.is_linked(&name)) else {
        state.dialling.remove(&name);
        return;
    };
    let (network, myself) = (state.shared.network.clone(), state.myself.clone());
    state.spawn(async move {
        let message = match network.dial(&name, &address).await {
            Ok(caller) => MembersMsg::Came(caller),
            Err(why) => MembersMsg::DialFailed { peer: name, why },
        };
        let _ = myself.cast(message); // Gone, and this task with it.
    });
}

fn on_dial_failed(state: &mut MembersState, name: NodeName, why: String) {
    let failures = state.failures.entry(name.clone()).or_default();
    *failures += 1;
    let (base, max) = state.shared.policy.redial;
    let wait = Backoff { base, max, jitter_percent: 20 }.delay(*failures - 1, state.shared.env.random());
    if let Some(peer) = state.shared.peers.get(&name) {
        let mut trouble = peer.trouble.lock();
        if trouble.as_ref() != Some(&why) {
            tracing::warn!(peer = %name, %why, "a node cannot be reached"); // Once for each reason in a row.
        }
        *trouble = Some(why);
    }
    state.dialling.remove(&name);
    state.dial_later(&name, wait);
}
