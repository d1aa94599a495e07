//! What a queue actor knows.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::record::TaskRecord;
use crate::core::id::TaskSeq;
use crate::core::queue::Queue;
use crate::core::queue::position::Picture;
use crate::core::units::Timestamp;

/// The state of a queue actor.
pub(crate) struct QueueState {
    pub(in crate::actors) runtime: Arc<RuntimeShared>,
    pub(in crate::actors) pool: Arc<PoolShared>,
    pub(in crate::actors) queue: Queue<Arc<TaskRecord>>,
    /// Slots that the pool manager has offered and that no task was sent for.
    pub(in crate::actors) credit: u32,
    /// The generation of this life; an older one takes nothing in any more.
    pub(in crate::actors) generation: u64,
    /// Deadlines of waiting tasks. Invariant: only tasks in `queue`.
    pub(in crate::actors) deadlines: BTreeSet<(Timestamp, TaskSeq)>,
    /// The moment of the `DeadlineDue` that is under way.
    pub(in crate::actors) armed: Option<Timestamp>,
    /// What waited when the pool began to leave has been handed over.
    pub(in crate::actors) handed_over: bool,
    /// What explanations are read from, and of when it is.
    pub(in crate::actors) picture: Option<(Timestamp, Picture)>,
}
