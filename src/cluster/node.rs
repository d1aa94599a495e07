//! A node, from outside: start it, look at it, drain it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use ractor::{Actor, ActorRef};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::cluster::membership::members::Members;
use crate::cluster::membership::messages::MembersMsg;
use crate::cluster::membership::roster::Roster;
use crate::cluster::shared::{ClusterShared, NodePolicy, PeerShared, Peers};
use crate::cluster::sharing::announce::own_pools;
use crate::cluster::sharing::anti_affinity::kept_out;
use crate::cluster::sharing::inbound;
use crate::cluster::transport::acceptor::Linked;
use crate::cluster::transport::identity::Cookie;
use crate::cluster::transport::network::Network;
use crate::config::NodeAntiAffinity;
use crate::core::cluster::node::{BootId, NodeName};
use crate::core::fairness::hash::hex;
use crate::core::id::PoolId;
use crate::core::pool::restart::{Backoff, Decision, Excess, RestartHistory, RestartPolicy};
use crate::orchestrator::Orchestrator;

/// How a members actor that dies is brought back. Each of its deaths costs every link.
const MEMBERS: RestartPolicy = RestartPolicy {
    intensity: 20,
    period: Duration::from_secs(60),
    backoff: Backoff { base: Duration::from_millis(50), max: Duration::from_secs(2), jitter_percent: 20 },
    excess: Excess::OpenBreaker(Duration::from_secs(10)),
};

/// What a node is made of.
pub struct NodeArgs {
    /// Its name.
    pub name: NodeName,
    /// This life of it: by chance.
    pub boot_id: BootId,
    /// Where it is.
    pub zone: Option<String>,
    /// The nodes with which it has nothing to do.
    pub anti_affinity: NodeAntiAffinity,
    /// What all nodes know.
    pub cookie: Cookie,
    /// The nodes that it dials, and where.
    pub peers: Vec<(NodeName, String)>,
    /// A name of the domain name system, with a port, that stands for the addresses of nodes.
    pub dns: Option<String>,
    /// Who may link with it: the same that its network asks.
    pub roster: Roster,
    /// What it does at what time.
    pub policy: NodePolicy,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartNodeError {
    /// Its actors.
    #[error("the actors of the node could not be started: {0}")]
    Actors(String),
    /// A peer has the node's own name, or there are too many.
    #[error("the peers are wrong: {0}")]
    Peers(String),
}

/// A node that is part of a cluster. Cheap to clone; it leaves its cluster when the last clone is dropped.
#[derive(Clone)]
pub struct Node {
    shared: Arc<ClusterShared>,
    _life: Arc<NodeGuard>,
}

struct NodeGuard {
    current: Arc<Mutex<ActorRef<MembersMsg>>>,
    guardian: JoinHandle<()>,
    shared: Arc<ClusterShared>,
}

impl Drop for NodeGuard {
    fn drop(&mut self) {
        self.guardian.abort();
        self.current.lock().kill();
        end_links(&self.shared);
        for peer in self.shared.peers.all() {
            let remote_pools = std::mem::take(&mut *peer.remote_pools.lock());
            remote_pools.values().for_each(|remote| self.shared.orchestrator.remove_remote(&remote.pool));
        }
    }
}

/// Ends every link, and what runs here for the others.
fn end_links(shared: &ClusterShared) {
    for link in shared.peers.all().iter().filter_map(|peer| peer.last_link()) {
        link.end();
        inbound::stop_all(shared, &link, "this node's part in the cluster is over");
    }
}

impl Node {
    /// Makes this runtime a node of a cluster. `network` is given what there is with each peer, and makes what
    /// connections come from.
    ///
    /// # Errors
    /// [`StartNodeError`]; nothing is left running.
    pub async fn start<N: Network>(
        orchestrator: Orchestrator,
        args: NodeArgs,
        network: impl FnOnce(Linked) -> N,
    ) -> Result<Self, StartNodeError> {
        let NodeArgs { name, boot_id, zone, anti_affinity, cookie, peers: wanted, dns, roster, policy } = args;
        let peers = Arc::new(Peers::default());
        for (peer, address) in wanted {
            if peer == name {
                return Err(StartNodeError::Peers(format!("{name} is the node's own name")));
            }
            if peers.meet(&peer, Some(address)).is_none() {
                return Err(StartNodeError::Peers("there are too many".into()));
            }
        }
        let known = peers.clone();
        let network = Arc::new(network(Arc::new(move |name: &NodeName| known.linked(name))));
        let session_cookie = hex(&Sha256::digest([b"orchestrator-core sessions ".as_slice(), cookie.bytes()].concat()));
        let (who, how) = ((name, boot_id, zone), (anti_affinity, dns, roster, policy));
        let shared = ClusterShared::new(who, how, orchestrator, peers, network, session_cookie);
        let (members, mut handle) = Actor::spawn(None, Members, shared.clone())
            .await
            .map_err(|error| StartNodeError::Actors(error.to_string()))?;
        shared.members.publish(members.clone());
        let current = Arc::new(Mutex::new(members));
        let (place, weak) = (current.clone(), Arc::downgrade(&shared));
        // Not detached: the handle belongs to `NodeGuard`, which aborts it.
        let guardian = tokio::spawn(async move {
            let mut history = RestartHistory::new(MEMBERS);
            loop {
                let _ = handle.await; // However it ended, it has.
                let Some(shared) = weak.upgrade() else { return };
                end_links(&shared);
                let Decision::Restart { after } = history.on_exit(shared.env.now(), shared.env.random()) else {
                    return;
                };
                tokio::time::sleep(after).await;
                match Actor::spawn(None, Members, shared.clone()).await {
                    Ok((members, next)) => {
                        shared.members.publish(members.clone());
                        (*place.lock(), handle) = (members, next);
                        history.on_started();
                        history.on_healthy(shared.env.now());
                    }
                    Err(error) => {
                        tracing::error!(%error, "the node cannot be brought back into its cluster");
                        return;
                    }
                }
            }
        });
        let life = Arc::new(NodeGuard { current, guardian, shared: shared.clone() });
        Ok(Node { shared, _life: life })
    }

    /// The node as it stands now.
    pub fn view(&self) -> NodeView {
        let shared = &self.shared;
        NodeView {
            name: shared.place.name.clone(),
            boot_id: shared.place.boot_id.to_string(),
            zone: shared.place.zone.clone(),
            is_draining: shared.is_draining(),
            guests_open: shared.inbound.guests_open.load(Relaxed),
            guests_taken: shared.inbound.guests_taken.load(Relaxed),
            guests_lost: shared.inbound.guests_lost.load(Relaxed),
            leases_expired: shared.inbound.leases_expired.load(Relaxed),
            peers: shared.peers.all().iter().map(|peer| peer_view(shared, peer)).collect(),
        }
    }

    /// Waits until there is a link with each of these nodes.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn until_linked(&self, names: &[NodeName]) {
        for name in names {
            let Some(peer) = self.shared.peers.get(name) else { continue };
            loop {
                let changed = peer.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable(); // Before the look, so that no change is missed.
                if peer.link().is_some() {
                    break;
                }
                changed.await;
            }
        }
    }

    /// Begins to drain the node: its pools take nothing new, from its clients or from other nodes, and finish what they
    /// have; what waits goes to other nodes where they serve the same.
    pub fn drain(&self) {
        self.shared.set_draining();
        for pool in own_pools(&self.shared) {
            self.shared.orchestrator.drain(&pool.id);
        }
    }

    /// The runtime.
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.shared.orchestrator
    }
}

fn peer_view(shared: &ClusterShared, peer: &PeerShared) -> PeerView {
    PeerView {
        name: peer.name.clone(),
        address: peer.address.lock().clone(),
        links_made: peer.links_made.load(Relaxed),
        trouble: peer.trouble.lock().clone(),
        link: peer.link().map(|link| {
            let figures = &link.figures;
            let (kept_out, zone) = (kept_out(shared, &link), link.advertised.zone.lock().clone()); // Not under the locks below.
            LinkView {
                boot_id: link.boot_id.to_string(),
                protocol: link.protocol,
                state: if figures.is_suspect.load(Relaxed) { "suspect" } else { "alive" },
                is_draining: link.advertised.is_draining.load(Relaxed),
                round_trip_ms: figures.round_trip_us.load(Relaxed) as f64 / 1000.0,
                outbox_messages: figures.outbox_messages.load(Relaxed),
                outbox_bytes: figures.outbox_bytes.load(Relaxed),
                envelopes_in: figures.envelopes_in.load(Relaxed),
                envelopes_out: figures.envelopes_out.load(Relaxed),
                bytes_in: figures.bytes_in.load(Relaxed),
                bytes_out: figures.bytes_out.load(Relaxed),
                lent: link.lent() as u64,
                guests: link.attempts.lock().len() as u64,
                pools: link.advertised.cards.lock().keys().cloned().collect(),
                zone: zone.flatten(),
                kept_out,
            }
        }),
    }
}

/// A node as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Which life of it.
    pub boot_id: String,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// It takes nothing new.
    pub is_draining: bool,
    /// Attempts of other nodes that wait or run here.
    pub guests_open: u64,
    /// Attempts of other nodes that it has taken in.
    pub guests_taken: u64,
    /// Those of them that failed.
    pub guests_lost: u64,
    /// Those that were stopped since their nodes were silent, or gone.
    pub leases_expired: u64,
    /// The other nodes, in the order of their names.
    pub peers: Vec<PeerView>,
}

/// A peer as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerView {
    /// Its name.
    pub name: NodeName,
    /// Where it is dialled; left out when only it dials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Links that have come about with it.
    pub links_made: u64,
    /// Why there is no link, or why the last one ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The link; left out when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkView>,
}

/// A link as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkView {
    /// Which life of the peer.
    pub boot_id: String,
    /// The protocol that both speak.
    pub protocol: u16,
    /// `alive`, or `suspect` when it has been silent for long.
    pub state: &'static str,
    /// The peer is being drained.
    pub is_draining: bool,
    /// The last measured round trip, in milliseconds.
    pub round_trip_ms: f64,
    /// Messages that wait to be sent or acknowledged.
    pub outbox_messages: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Envelopes that came.
    pub envelopes_in: u64,
    /// Envelopes that went.
    pub envelopes_out: u64,
    /// Bytes of those that came.
    pub bytes_in: u64,
    /// Bytes of those that went.
    pub bytes_out: u64,
    /// Attempts of ours that run there.
    pub lent: u64,
    /// Attempts of the peer's that run here.
    pub guests: u64,
    /// The pools that it has announced.
    pub pools: Vec<PoolId>,
    /// Where it is, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Those of its pools that are not used here, by anti-affinity.
    pub kept_out: Vec<PoolId>,
}
