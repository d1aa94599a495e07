//! Slots and the guards around them: a count that cannot drift, since only owning a guard is having a slot.
//!
//! An [`Assignment`] is a task on its way to a worker: dropped before it was begun, the task goes back to its queue. A
//! [`SlotLease`] is one place in a worker: dropped, the place is free. Both may be dropped anywhere, in a dead actor's
//! mailbox too, so no actor's death loses a task or a slot.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::actors::queue::QueueMsg;
use crate::actors::record::TaskRecord;
use crate::actors::shared::PoolShared;
use crate::core::id::Epoch;
use crate::core::trace::TraceKind;
use crate::planted::planted;

/// The slots of one worker. Numbers are the engine's own, from 0.
pub(crate) struct SlotTable {
    total: u32,
    /// Free slots; the last is given out next. A short lock: two actors at most meet here.
    free: Mutex<Vec<u32>>,
}

impl SlotTable {
    pub(crate) fn new(total: u32) -> Self {
        SlotTable { total, free: Mutex::new((0..total).rev().collect()) }
    }

    /// Slots there are.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Slots that nobody has.
    pub(crate) fn free(&self) -> u32 {
        self.free.lock().len() as u32
    }

    /// Slots that somebody has.
    pub(crate) fn used(&self) -> u32 {
        self.total - self.free()
    }

    fn release(&self, slot: u32) {
        let mut free = self.free.lock();
        // Leases are dropped while actors unwind, too; a second panic there would end the process.
        let is_known = slot < self.total && !free.contains(&slot);
        debug_assert!(is_known || std::thread::panicking(), "slot {slot} is given back once");
        free.push(slot);
    }
}

/// One slot of one worker.
pub(crate) struct SlotLease {
    pool: Arc<PoolShared>,
    pub(crate) replica: u16,
    pub(crate) slot: u32,
}

impl SlotLease {
    /// Takes a free slot of this worker, or `None` when there is none.
    pub(crate) fn take(pool: &Arc<PoolShared>, replica: u16) -> Option<Self> {
        let slot = pool.replicas[replica as usize].slots.free.lock().pop()?;
        Some(SlotLease { pool: pool.clone(), replica, slot })
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        if planted!(SlotTwice) {
            self.pool.replicas[self.replica as usize].slots.release(self.slot);
        }
        self.pool.replicas[self.replica as usize].slots.release(self.slot);
        self.pool.nudge_manager_if_starving();
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

/// Puts a task that is to be run again back to its place in its queue. First the record, then the message: a queue that starts
/// in between finds the task in the ledger, and one that gets both takes it once. Returns whether it goes back; not when it
/// has ended, or that epoch is over.
pub(crate) fn return_to_queue(record: Arc<TaskRecord>, epoch: Epoch) -> bool {
    let home = record.pool().filter(|_| record.give_back(epoch).is_ok());
    if let Some(home) = &home {
        home.env.trace(|| TraceKind::Returned { seq: record.seq });
        home.queue.cast(QueueMsg::Return { record });
    }
    home.is_some()
}
