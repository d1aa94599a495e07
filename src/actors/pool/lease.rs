//! Slots and the guards around them: a count that cannot drift, since only owning a guard is having a slot.
//!
//! An [`Assignment`] is a task on its way to a worker: dropped before it was begun, the task goes back to its queue. A
//! [`SlotLease`] is one place in a worker: dropped, the place is free. Both may be dropped anywhere, in a dead actor's
//! mailbox too, so no actor's death loses a task or a slot.

use std::sync::Arc;

use crate::actors::pool::messages::QueueMsg;
use crate::actors::task::record::TaskRecord;
use crate::core::id::Epoch;
use crate::core::task::trace::TraceKind;
use crate::planted::seeded_bug;

/// Who has slots to lease: a pool.
pub(crate) trait SlotOwner: Send + Sync {
    /// Takes a free slot of this worker, and so many tokens of its KV cache; `None` when there is no slot.
    fn take(&self, replica: u16, kv_tokens: u64) -> Option<u32>;

    /// A slot is free again, and what was set aside for it.
    fn release(&self, replica: u16, slot: u32, kv_tokens: u64);
}

/// One slot of one worker.
pub(crate) struct SlotLease {
    owner: Arc<dyn SlotOwner>,
    pub(crate) replica: u16,
    pub(crate) slot: u32,
    /// Tokens of the replica's KV cache that are set aside for it.
    kv_tokens: u64,
}

impl SlotLease {
    /// Takes a free slot of this worker, and so many tokens of its KV cache, or `None` when there is no slot.
    pub(crate) fn take<O: SlotOwner + 'static>(owner: &Arc<O>, replica: u16, kv_tokens: u64) -> Option<Self> {
        let slot = owner.take(replica, kv_tokens)?;
        Some(SlotLease { owner: owner.clone(), replica, slot, kv_tokens })
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        if seeded_bug!(SlotTwice) {
            self.owner.release(self.replica, self.slot, 0);
        }
        self.owner.release(self.replica, self.slot, self.kv_tokens);
    }
}

/// A task on its way to a worker, which has not begun it.
pub(crate) struct Assignment {
    /// `None` once begun.
    task: Option<(Arc<TaskRecord>, Epoch)>,
}

impl Assignment {
    /// A task that its queue has just handed out.
    pub(crate) fn new(record: Arc<TaskRecord>, epoch: Epoch) -> Self {
        Assignment { task: Some((record, epoch)) }
    }

    /// The task.
    pub(crate) fn record(&self) -> &Arc<TaskRecord> {
        let (record, _) = self.task.as_ref().expect("only `into_task` empties it, and takes it by value");
        record
    }

    /// The task is in the hands of an attempt now, which answers for it.
    pub(crate) fn into_task(mut self) -> (Arc<TaskRecord>, Epoch) {
        self.task.take().expect("only `into_task` empties it, and takes it by value")
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        if let Some((record, epoch)) = self.task.take() {
            return_to_queue(record, epoch);
        }
    }
}

/// Puts a task that is to be run again back to its place in its queue. First the record, then the message: a queue that
/// starts in between finds the task in the ledger, and one that gets both takes it once. Returns whether it goes back;
/// not when it has ended, or that epoch is over.
pub(crate) fn return_to_queue(record: Arc<TaskRecord>, epoch: Epoch) -> bool {
    let home = record.pool().filter(|_| record.give_back(epoch).is_ok());
    if let Some(home) = &home {
        home.env.trace(|| TraceKind::Returned { seq: record.seq });
        home.actors.queue.cast(QueueMsg::Return { record });
    }
    home.is_some()
}
