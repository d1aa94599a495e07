//! The parts of what outlives the actors of one pool, by who owns them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use crate::actors::kit::address::Address;
use crate::actors::metrics::counters::Counters;
use crate::actors::metrics::samples::Samples;
use crate::actors::metrics::view::LatencyView;
use crate::actors::pool::messages::{LatencyMsg, PoolManagerMsg, PoolSupervisorMsg, QueueMsg};
use crate::actors::pool::revision::Reloads;
use crate::actors::pool::shared::PoolShared;
use crate::core::cluster::node::NodeName;
use crate::core::fairness::{Accounts, Served};
use crate::core::id::{PoolId, TaskSeq};
use crate::core::queue::predict::{Backlog, ServiceRate};
use crate::core::slo::objectives::Objectives;
use crate::core::text::line::Name;

/// Where its actors can be reached.
#[derive(Default)]
pub(crate) struct PoolActors {
    pub(crate) supervisor: Address<PoolSupervisorMsg>,
    pub(crate) queue: Address<QueueMsg>,
    pub(crate) manager: Address<PoolManagerMsg>,
    pub(crate) latency: Address<LatencyMsg>,
    /// Counts the queue's lives, so that one that is being killed knows that it is not the newest any more.
    pub(crate) queue_generation: AtomicU64,
}

/// What it serves, and whether its engines have said that they are the same.
pub(crate) struct PoolModel {
    /// What it serves. Written by the public handle, which begins a reload, and by the supervisor, which performs it.
    pub(crate) reloads: Mutex<Reloads>,
    /// The family of what it serves; a glance at it needs no lock.
    pub(crate) family: AtomicU64,
    /// Longest context of one task, in tokens. Written by a worker when its engine says more than the configuration.
    pub(crate) ctx: AtomicU32,
    /// Engine version and model digest of the replica set (ORCH-3046). Held while a worker compares and joins.
    pub(crate) pinned: Mutex<Option<Arc<(Name, Name)>>>,
}

/// What waits, and who has been served how much. Written by the queue.
pub(crate) struct Waiting {
    /// Waiting tasks by class. Written by the queue.
    pub(crate) depth: [AtomicU32; 2],
    /// Tasks that could use a slot now: all that wait, while any of them may run. Written by the queue.
    pub(crate) wanted: AtomicU32,
    /// Who waits, in numbers. Written by the queue.
    pub(crate) backlog: Mutex<Backlog>,
    /// Who has been served how much. Written by the queue, which it outlives; locked once for each of its messages.
    pub(crate) accounts: Mutex<Accounts>,
    /// Tasks that have ended since the queue last looked, and what was computed for them. Never more than were out.
    pub(crate) settlements: Mutex<VecDeque<(TaskSeq, Served)>>,
}

/// What its slots deliver, and how many are on offer. Written by the pool manager.
pub(crate) struct Capacity {
    /// Slots on offer to the queue. Written by the pool manager.
    pub(in crate::actors) offered: AtomicU32,
    /// A nudge to the pool manager is on its way: slots that are freed meanwhile need no other.
    pub(in crate::actors) nudged: AtomicBool,
    /// What the pool lately delivered. Written by the pool manager.
    pub(crate) rate: Mutex<ServiceRate>,
    /// Time that attempts ran, in microseconds, and how many, since the pool manager last looked.
    pub(crate) held: Mutex<(u64, u32)>,
}

/// What has been measured.
pub(crate) struct Figures {
    pub(crate) samples: Samples,
    /// What is wanted of its tasks. Written when the configuration changes.
    pub(crate) objectives: Mutex<Objectives>,
    /// Percentiles. Written by the latency actor.
    pub(crate) latency_view: Mutex<Arc<LatencyView>>,
    pub(crate) counters: Counters,
}

/// Whether it serves, drains, leaves or has stopped.
#[derive(Default)]
pub(crate) struct PoolLife {
    /// What the operator wants. It only ever goes on from serving to draining to stopped: the public handle begins a
    /// drain, the pool's supervisor ends it, and the guardian stops what is left when the tree is gone.
    pub(in crate::actors) intent: AtomicU8,
    /// It has left the configuration, and ends when it is through with its tasks.
    pub(in crate::actors) is_leaving: AtomicBool,
    /// The first pool that is younger than its leaving; those from there on wait for its devices.
    pub(in crate::actors) retired_before: AtomicU32,
    /// The pool that takes its place, if one does.
    pub(in crate::actors) successor: OnceLock<Arc<PoolShared>>,
    /// Wakes whoever waits for a change of the pool's state.
    pub(crate) state_changed: Notify,
}

/// The other pools with its engine, here and at other nodes.
#[derive(Default)]
pub(crate) struct ReplicaSet {
    /// The other pools with its engine, which may come to serve the same. Written when the pools change.
    pub(in crate::actors) others: RwLock<Arc<[Weak<PoolShared>]>>,
    /// The other node's pool that its engine is, if it is one. Written once, before it serves.
    pub(in crate::actors) remote: OnceLock<RemotePool>,
    pub(in crate::actors) local_preference: LocalPreference,
}

/// The other node's pool.
pub(crate) struct RemotePool {
    pub(in crate::actors) node: NodeName,
    /// Its name there.
    pub(in crate::actors) pool: PoolId,
    /// So many of its tasks here run there at once. Written by the node's link.
    pub(in crate::actors) at_once: AtomicU32,
    /// One permit for each task that is to come back before it has begun.
    pub(in crate::actors) recalls: Semaphore,
}

/// Whether a pool's places keep others' tasks from waiting at other nodes. A part of each pool.
#[derive(Default)]
pub(crate) struct LocalPreference {
    /// A peer keeps places back since this pool has better ones.
    pub(in crate::actors) withheld_for: AtomicBool,
    /// Its places were of no use to who waits. Written by its manager.
    pub(in crate::actors) declined: AtomicBool,
}
