//! What the actors of a pool are told: below them, so that each may know the others' words and none the others.

use std::sync::Arc;
use std::time::Duration;

use ractor::RpcReplyPort;

use crate::actors::pool::lease::{Assignment, SlotLease};
use crate::actors::task::home::Home;
use crate::actors::task::record::TaskRecord;
use crate::core::id::{ClientId, TaskSeq};
use crate::core::queue::position::QueuePosition;
#[cfg(feature = "cluster")]
use crate::core::task::Priority;
use crate::core::task::error::TaskError;
use crate::core::text::line::Line;
use crate::core::units::Timestamp;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, EngineInfo};

/// What a submission is answered with.
pub(crate) type Verdict = Result<Accepted, TaskError>;

/// The queue has taken a task in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Tasks that will be started before it.
    pub(crate) queue_position: u64,
    /// Predicted time until it starts.
    pub(crate) predicted_start: Duration,
}

/// A task on its way in, with the caller who waits for the verdict.
pub(crate) struct Submission {
    pub(crate) record: Arc<TaskRecord>,
    pub(crate) reply: RpcReplyPort<Verdict>,
}

/// What a queue is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum QueueMsg {
    /// Take a new task in, or refuse it.
    Enqueue(Submission),
    /// Forget a task whose log has been sealed.
    Withdraw { seq: TaskSeq },
    /// Say where a task stands.
    Explain { seq: TaskSeq, reply: RpcReplyPort<Option<QueuePosition>> },
    // ---- the pool's own actors, its peers' pool managers, the ledger
    /// A task comes back to be run again, for its old place.
    Return { record: Arc<TaskRecord> },
    /// So many more slots are free.
    Offer { slots: u32 },
    /// So many of the slots on offer have gone elsewhere.
    Revoke { slots: u32 },
    /// A peer is idle: so many of its slots are free for tasks that wait here. Answered at once, with what there is.
    Lend { lender: Arc<dyn Home>, slots: u32 },
    /// A task of a conversation has ended: the next may go on.
    Settle,
    /// A client that ran as much as its quota allows may run more.
    Release { client: ClientId },
    /// Clients have been served in pools of the same set on other nodes, at these costs.
    #[cfg(feature = "cluster")]
    ServedElsewhere(Arc<[(ClientId, Priority, i64)]>),
    /// A new pool manager: earlier offers are void.
    ManagerReplaced,
    /// It can be reached: look at the ledger once more.
    Refill,
    /// The pool has stopped, or every breaker is open.
    PoolUnavailable,
    // ---- from itself
    /// The deadline of a waiting task has passed, which was the earliest at some time.
    DeadlineDue { at: Timestamp },
}

/// What a pool manager is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum PoolManagerMsg {
    /// Tasks for slots that were offered, or lent to a peer.
    Assign { batch: Vec<Assignment>, lent: Option<LoanReply> },
    /// It can be reached: offer everything anew.
    Begin,
    /// Slots, replicas or the operator's wish have changed.
    Reconcile,
    /// A new queue: earlier offers are void.
    QueueReplaced,
    /// A peer has a new queue: what was lent to the old one is ours again.
    PeerReplaced { pool: u16 },
    /// A peer whose places were better has none any more that are of use.
    Reconsider,
    // ---- from itself
    /// A second has passed: is everything that could run on its way?
    StallCheck,
}

/// Slots that were lent to a peer, which has answered: each was used for a task, or is ours again. None when it
/// sends by itself what is warm here.
pub(crate) struct LoanReply {
    /// The peer's position.
    pub(crate) by: u16,
    pub(crate) slots: u32,
}

/// What a worker is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum WorkerMsg {
    /// Run a task in this slot.
    Run { assignment: Assignment, lease: SlotLease },
    // ---- from its own attempts and background tasks
    /// Get an engine: adopt the one that is there, or make one.
    Prepare,
    /// An engine has been made, or could not be.
    Made(Result<Arc<dyn DynEngine>, EngineError>),
    /// The engine has been loaded, or could not be.
    Preloaded(Result<EngineInfo, EngineError>),
    /// An engine of an earlier life has answered, or has not.
    Adopted(Result<(), EngineError>),
    /// An attempt has lost its engine.
    EngineSuspected(EngineError),
    /// A suspected engine has answered, or has not.
    Probed(Result<(), EngineError>),
    /// The replica gets no task before this moment.
    Ejected { until: Timestamp },
    /// A slot of the engine is not left, and other tasks still run.
    EngineStuck(EngineError),
    /// That slot is free after all.
    EngineUnstuck,
    /// The device that it waits for has been out for long.
    DeviceStaysDown,
    /// The engine as a whole has failed.
    EngineFailed(EngineError),
    /// What runs beside its mailbox has panicked, with this text: a bug of ours.
    SidePanicked(Line),
}

/// What a pool supervisor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum PoolSupervisorMsg {
    /// Take nothing new, finish what is there, then stop the workers.
    Drain,
    /// A reload has begun.
    Reload,
    /// Its address is known now: what was wished between its first look and this moment has reached nobody.
    Reconcile,
    /// Do nothing: the trace shows that it lives, or a planned fault strikes.
    Ping,
    // ---- from its own tree
    /// Look whether the reload under way can go on.
    LookAtReload,
    /// A draining pool has nothing left to do.
    Drained,
    /// A draining pool has had its time.
    DrainExpired,
    /// The pool has stopped and leaves the runtime: look whether anything of it is left.
    LookWhetherLeft,
    /// The wait before a restart is over.
    StartChild { child: PoolChild, generation: u64 },
}

/// The children, in start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolChild {
    /// Histograms.
    Latency,
    /// Order and bound.
    Queue,
    /// Readiness, slots, placement.
    PoolManager,
    /// One engine on one device mask.
    Worker(u16),
}

/// What a latency actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum LatencyMsg {
    /// Samples wait.
    Collect,
    // ---- from itself
    /// Compute the percentiles and show them.
    Publish,
    /// Look what has left the windows.
    Age,
}
