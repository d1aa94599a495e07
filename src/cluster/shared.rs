//! What outlives the actors of a node's part in its cluster: who it is, and what is known of its peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::cluster::link::links::LinkShared;
use crate::cluster::link::protocol::PoolAdvertisement;
use crate::cluster::membership::messages::MembersMsg;
use crate::cluster::membership::roster::Roster;
use crate::cluster::sharing::news::{ServedNews, WarmNews};
use crate::cluster::transport::network::Network;
use crate::cluster::transport::x509::Shown;
use crate::config::NodeAntiAffinity;
use crate::core::cluster::link::{LinkPolicy, Liveness};
use crate::core::cluster::node::{BootId, NodeName};
use crate::core::id::PoolId;
use crate::core::units::Timestamp;
use crate::env::Env;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::fabric::Address;
use crate::orchestrator::fabric::PoolShared;

/// Most peers of a node.
pub const PEERS_MAX: usize = 256;

/// What a node does at what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePolicy {
    /// The bounds of its links.
    pub link: LinkPolicy,
    /// Silence of a gateway after which its attempts are stopped here: three beats.
    pub lease: Duration,
    /// How often a link looks at what there is to say that nobody told it of.
    pub tick: Duration,
    /// First and longest wait before a node is dialled again.
    pub redial: (Duration, Duration),
    /// How often the domain name system is asked for nodes.
    pub search: Duration,
    /// How long a node that is not in the configuration is remembered behind its last link.
    pub forget: Duration,
}

impl Default for NodePolicy {
    fn default() -> Self {
        let link = LinkPolicy::default();
        let redial = (Duration::from_millis(50), Duration::from_secs(2));
        let (search, forget) = (Duration::from_secs(5), Duration::from_secs(600));
        NodePolicy { lease: link.beat * 3, tick: Duration::from_millis(50), link, redial, search, forget }
    }
}

/// Everybody that this node knows of. Made before the node's acceptor, which asks it.
#[derive(Default)]
pub(crate) struct Peers(RwLock<BTreeMap<NodeName, Arc<PeerShared>>>);

impl Peers {
    pub(crate) fn get(&self, name: &NodeName) -> Option<Arc<PeerShared>> {
        self.0.read().get(name).cloned()
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<PeerShared>> {
        self.0.read().values().cloned().collect()
    }

    /// Every link that there is, in the order of the peers' names.
    pub(crate) fn links(&self) -> Vec<Arc<LinkShared>> {
        self.0.read().values().filter_map(|peer| peer.link()).collect()
    }

    /// The peer of this name, new if it is not known; `None` when there are too many. `address` is where the
    /// configuration says it is.
    pub(crate) fn meet(&self, name: &NodeName, address: Option<String>) -> Option<Arc<PeerShared>> {
        let mut peers = self.0.write();
        if let Some(known) = peers.get(name) {
            return Some(known.clone());
        }
        if peers.len() >= PEERS_MAX {
            return None;
        }
        let peer = Arc::new(PeerShared::new(name.clone(), address));
        peers.insert(name.clone(), peer.clone());
        Some(peer)
    }

    /// A peer of which nothing is left.
    pub(crate) fn forget(&self, name: &NodeName) {
        self.0.write().remove(name);
    }

    /// The link that there is with this node, for the judgement about a new one.
    pub(crate) fn linked(&self, name: &NodeName) -> Option<(BootId, Liveness)> {
        let link = self.get(name)?.link()?;
        let is_suspect = link.figures.is_suspect.load(Relaxed);
        Some((link.boot_id, if is_suspect { Liveness::Suspect } else { Liveness::Alive }))
    }
}

/// One peer, whether or not there is a link with it.
pub(crate) struct PeerShared {
    pub(crate) name: NodeName,
    /// It is in the configuration, which says where it is.
    pub(crate) is_configured: bool,
    /// Where it is dialled; `None` when only it dials us. Written by the members actor, when it is found elsewhere.
    pub(crate) address: Mutex<Option<String>>,
    /// Since when there is no link. Written by the members actor, each second.
    pub(crate) lost_at: Mutex<Option<Timestamp>>,
    link: Mutex<Option<Arc<LinkShared>>>,
    /// Links that have come about.
    pub(crate) links_made: AtomicU64,
    /// Why there is no link now, as far as anybody knows.
    pub(crate) trouble: Mutex<Option<String>>,
    /// Its pools as pools of this runtime. Written by the members actor.
    pub(crate) remote_pools: Mutex<BTreeMap<PoolId, RemotePoolEntry>>,
    /// Wakes who waits for a link.
    pub(crate) changed: tokio::sync::Notify,
}

/// A peer's pool as a pool of this runtime.
#[derive(Clone)]
pub(crate) struct RemotePoolEntry {
    /// What it was made from.
    pub(crate) card: PoolAdvertisement,
    pub(crate) pool: Arc<PoolShared>,
}

impl PeerShared {
    fn new(name: NodeName, address: Option<String>) -> Self {
        PeerShared {
            name,
            is_configured: address.is_some(),
            address: Mutex::new(address),
            lost_at: Mutex::new(None),
            link: Mutex::new(None),
            links_made: AtomicU64::new(0),
            trouble: Mutex::new(None),
            remote_pools: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    /// The link with it, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<LinkShared>> {
        self.link.lock().clone().filter(|link| !link.is_over())
    }

    /// The last link with it, whether or not it has ended.
    pub(crate) fn last_link(&self) -> Option<Arc<LinkShared>> {
        self.link.lock().clone()
    }

    pub(crate) fn set_link(&self, link: Arc<LinkShared>) {
        *self.link.lock() = Some(link);
        *self.trouble.lock() = None;
        self.links_made.fetch_add(1, Relaxed);
        self.changed.notify_waiters();
    }

    /// Lets its pools have as many of our tasks as it allows now. A node that is silent for long gets nothing new.
    pub(crate) fn apply_limits(&self) {
        let link = self.link();
        let takes = |link: &&Arc<LinkShared>| !link.figures.is_suspect.load(Relaxed);
        let link = link.as_ref().filter(takes);
        for (id, remote) in &*self.remote_pools.lock() {
            let slots = &remote.pool.replicas[0].capacity.slots;
            let (at_once, most) = link.map_or((0, 0), |link| link.limit(id));
            let (limit, has_changed) = (most.min(slots.total()), remote.pool.set_at_once(at_once));
            if slots.limit() != limit || has_changed {
                slots.set_limit(limit);
                remote.pool.nudge_manager();
                if remote.pool.queued_remotely() > 0 {
                    // Another pool of the set may have a place for what turns out to wait there.
                    remote.pool.peers().filter(|other| other.is_idle()).for_each(|idle| idle.nudge_manager());
                }
            }
        }
    }
}

/// A node's part in its cluster.
pub(crate) struct ClusterShared {
    /// Who and where this node is.
    pub(crate) place: NodePlace,
    /// The nodes with which it has nothing to do.
    pub(crate) apart: NodeAntiAffinity,
    /// A name, with a port, that stands for the addresses of nodes.
    pub(crate) dns: Option<String>,
    pub(crate) roster: Roster,
    pub(crate) policy: NodePolicy,
    pub(crate) env: Env,
    pub(crate) orchestrator: Orchestrator,
    pub(crate) peers: Arc<Peers>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) members: Address<MembersMsg>,
    /// What both sides of a session know, for `ractor_cluster`'s own check.
    pub(crate) session_cookie: String,
    pub(crate) served: ServedNews,
    pub(crate) warm: WarmNews,
    is_draining: AtomicBool,
    /// Attempts of peers, in numbers.
    pub(crate) inbound: InboundCounts,
}

/// Who and where this node is.
pub(crate) struct NodePlace {
    pub(crate) name: NodeName,
    pub(crate) boot_id: BootId,
    /// Where it is, for anti-affinity.
    pub(crate) zone: Option<String>,
}

/// Attempts of peers, in numbers.
pub(crate) struct InboundCounts {
    /// Guests whose tasks have not ended.
    pub(crate) guests_open: AtomicU64,
    /// Guests that were taken in, ended otherwise than by their engines, and stopped since their gateways were silent.
    pub(crate) guests_taken: AtomicU64,
    pub(crate) guests_lost: AtomicU64,
    pub(crate) leases_expired: AtomicU64,
}

impl ClusterShared {
    pub(crate) fn new(
        (name, boot_id, zone): (NodeName, BootId, Option<String>),
        (apart, dns, roster, policy): (NodeAntiAffinity, Option<String>, Roster, NodePolicy),
        orchestrator: Orchestrator,
        peers: Arc<Peers>,
        network: Arc<dyn Network>,
        session_cookie: String,
    ) -> Arc<Self> {
        Arc::new(ClusterShared {
            apart,
            dns,
            roster,
            policy,
            env: orchestrator.env().clone(),
            orchestrator,
            peers,
            network,
            members: Address::default(),
            session_cookie,
            served: ServedNews::default(),
            warm: WarmNews::default(),
            is_draining: AtomicBool::new(false),
            place: NodePlace { name, boot_id, zone },
            inbound: InboundCounts {
                guests_open: AtomicU64::new(0),
                guests_taken: AtomicU64::new(0),
                guests_lost: AtomicU64::new(0),
                leases_expired: AtomicU64::new(0),
            },
        })
    }

    /// Whether the node takes nothing new from others.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(SeqCst)
    }

    pub(crate) fn set_draining(&self) {
        self.is_draining.store(true, SeqCst);
    }
}

/// What speaks now against a link with this node, which has shown this certificate.
pub(in crate::cluster) fn objection(shared: &ClusterShared, name: &NodeName, shown: Option<&Shown>) -> Option<String> {
    let refusal = shared.roster.membership().admit(name, shown.map(|shown| &shown.id)).err();
    refusal.map(|refusal| refusal.to_string()).or_else(|| shared.network.objection(name, shown?))
}
