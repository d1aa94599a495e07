//! The slots of a worker, and the room of its KV cache: counts that only guards change.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;

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
    pub(in crate::actors) fn take(&self) -> Option<u32> {
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

    pub(in crate::actors) fn release(&self, slot: u32) {
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

    pub(in crate::actors) fn reserve(&self, tokens: u64) {
        self.reserved.fetch_add(tokens, SeqCst);
    }

    pub(in crate::actors) fn give_back(&self, tokens: u64) {
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
