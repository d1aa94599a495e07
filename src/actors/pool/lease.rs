//! Slots and the guards around them: a count that cannot drift, since only owning a guard is having a slot.
//!
//! An [`Assignment`] is a task on its way to a worker: dropped before it was begun, the task goes back to its queue. A
//! [`SlotLease`] is one place in a worker: dropped, the place is free. Both may be dropped anywhere, in a dead actor's
//! mailbox too, so no actor's death loses a task or a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;

use crate::actors::pool::messages::QueueMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::record::TaskRecord;
use crate::core::id::Epoch;
use crate::core::task::trace::TraceKind;
use crate::planted::seeded_bug;

/// The slots of one worker. Numbers are the engine's own, from 0.
pub(crate) struct SlotTable {
    total: u32,
    /// How many may be used at once: fewer than there are when its device ran out of memory.
    limit: AtomicU32,
    /// How many may be used at once by its conduct: none while it is left out.
    ceiling: AtomicU32,
    /// Free slots; the last is given out next. A short lock: two actors at most meet here.
    free: Mutex<Vec<u32>>,
}

impl SlotTable {
    pub(crate) fn new(total: u32) -> Self {
        SlotTable {
            total,
            limit: AtomicU32::new(total),
            ceiling: AtomicU32::new(total),
            free: Mutex::new((0..total).rev().collect()),
        }
    }

    /// Slots there are.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Slots that may be used at once.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Sets how many may be used at once; those in use beyond it go on.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.limit.store(limit.min(self.total), Relaxed);
    }

    /// Sets how many may be used at once by its conduct; those in use beyond it go on.
    pub(crate) fn set_ceiling(&self, ceiling: u32) {
        self.ceiling.store(ceiling, Relaxed);
    }

    /// Slots that may be used at once now: by its memory, and by its conduct.
    pub(crate) fn usable(&self) -> u32 {
        self.limit().min(self.ceiling.load(Relaxed))
    }

    /// Slots that nobody has and somebody may have.
    pub(crate) fn free(&self) -> u32 {
        self.usable().saturating_sub(self.used())
    }

    /// Slots that somebody has.
    pub(crate) fn used(&self) -> u32 {
        self.total - self.free.lock().len() as u32
    }

    /// Takes the lowest free slot. With all of a lower limit in use there is none.
    fn take(&self) -> Option<u32> {
        let mut free = self.free.lock();
        if self.total - free.len() as u32 >= self.usable() {
            return None;
        }
        if self.limit() == self.total {
            return free.pop();
        }
        // An engine that was started for fewer has only those of lower numbers.
        let lowest = (0..free.len()).min_by_key(|at| free[*at])?;
        (free[lowest] < self.limit()).then(|| free.swap_remove(lowest))
    }

    fn release(&self, slot: u32) {
        let mut free = self.free.lock();
        // Leases are dropped while actors unwind, too; a second panic there would end the process.
        let is_known = slot < self.total && !free.contains(&slot);
        debug_assert!(is_known || std::thread::panicking(), "slot {slot} is given back once");
        free.push(slot);
    }
}

/// The KV cache of one worker, in tokens: what its tasks may come to need is set aside while they run.
#[derive(Default)]
pub(crate) struct KvReservations {
    /// Tokens that it holds; 0 when unknown.
    capacity: AtomicU64,
    reserved: AtomicU64,
    /// A task did not fit beside those that run: nothing is offered before one of them ends.
    is_full: AtomicBool,
}

impl KvReservations {
    /// Tokens that it holds, when that is known.
    pub(crate) fn capacity(&self) -> Option<u64> {
        Some(self.capacity.load(Relaxed)).filter(|tokens| *tokens > 0)
    }

    /// Notes how many tokens it holds.
    pub(crate) fn set_capacity(&self, tokens: u64) {
        self.capacity.store(tokens, Relaxed);
    }

    fn reserve(&self, tokens: u64) {
        self.reserved.fetch_add(tokens, SeqCst);
    }

    fn give_back(&self, tokens: u64) {
        self.reserved.fetch_sub(tokens, SeqCst);
        self.is_full.store(false, SeqCst); // Behind the room that it makes, so that nobody finds the one without the other.
    }

    /// Tokens that are set aside.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(SeqCst)
    }

    /// Whether it waits for a task to end.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(SeqCst)
    }

    /// A task did not fit. Call [`KvReservations::look_again`] behind it.
    pub(crate) fn set_full(&self) {
        self.is_full.store(true, SeqCst);
    }

    /// Whoever ended between the look that found no room and [`KvReservations::set_full`] is not missed.
    pub(crate) fn look_again(&self, fits_now: bool) {
        if fits_now {
            self.is_full.store(false, SeqCst);
        }
    }
}

/// One slot of one worker.
pub(crate) struct SlotLease {
    pool: Arc<PoolShared>,
    pub(crate) replica: u16,
    pub(crate) slot: u32,
    /// Tokens of the replica's KV cache that are set aside for it.
    kv_tokens: u64,
}

impl SlotLease {
    /// Takes a free slot of this worker, and so many tokens of its KV cache, or `None` when there is no slot.
    pub(crate) fn take(pool: &Arc<PoolShared>, replica: u16, kv_tokens: u64) -> Option<Self> {
        let place = &pool.replicas[replica as usize];
        let slot = place.capacity.slots.take()?;
        place.capacity.kv.reserve(kv_tokens);
        Some(SlotLease { pool: pool.clone(), replica, slot, kv_tokens })
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        if seeded_bug!(SlotTwice) {
            self.pool.replicas[self.replica as usize].capacity.slots.release(self.slot);
        }
        let place = &self.pool.replicas[self.replica as usize];
        place.capacity.slots.release(self.slot);
        place.capacity.kv.give_back(self.kv_tokens);
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
