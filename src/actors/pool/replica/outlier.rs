//! Outlier detection of one replica: what its attempts say about it, and what follows for the slots that it may use.
//!
//! Attempts tell it how they went; its worker, and a timer behind each wait, look whether it may be used again. Pools
//! of other nodes have none: their owner looks after the engine.
//!
//! Spec: ORCH-3040, ORCH-3053.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::actors::pool::replica::ReplicaShared;
use crate::core::id::TaskSeq;
use crate::core::pool::memory::SETTLE;
use crate::core::pool::outlier::{Outlier, OutlierPolicy, Verdict};
use crate::core::units::Timestamp;
use crate::planted::seeded_bug;

/// What is known of a replica's conduct. Outlives its workers.
pub(crate) struct OutlierDetection {
    record: Mutex<Outlier>,
    /// There is something to its discredit. A glance at it spares the lock where all is well.
    is_in_trouble: AtomicBool,
    /// When it last gave a token or another sign of life, in microseconds. Written by its attempts.
    alive_at: AtomicU64,
    /// When the context that its runs share was last full, and for whom.
    context_full: Mutex<Option<(Timestamp, TaskSeq)>>,
    /// Times that it was left out.
    pub(crate) ejections: AtomicU64,
}

impl OutlierDetection {
    pub(crate) fn new(policy: OutlierPolicy) -> Self {
        OutlierDetection {
            record: Mutex::new(Outlier::new(policy)),
            is_in_trouble: AtomicBool::new(false),
            alive_at: AtomicU64::new(0),
            context_full: Mutex::new(None),
            ejections: AtomicU64::new(0),
        }
    }

    /// Notes a sign of life. One store for each token.
    pub(crate) fn note_alive(&self, now: Timestamp) {
        self.alive_at.store(now.as_micros(), Relaxed);
    }

    /// Whether it has shown that it lives behind this moment.
    pub(crate) fn was_alive_since(&self, moment: Timestamp) -> bool {
        self.alive_at.load(Relaxed) > moment.as_micros()
    }

    /// Whether a first token, or a good end, has to be told.
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.is_in_trouble.load(Relaxed)
    }

    /// The moment before which it gets no task, and its failures in a row.
    pub(crate) fn view(&self, now: Timestamp) -> (Option<Timestamp>, u32) {
        let record = self.record.lock();
        (record.out_until(now), record.failures())
    }
}

impl ReplicaShared {
    /// An attempt that began at `begun` has failed on it, or panicked.
    pub(crate) fn note_failure(&self, now: Timestamp, begun: Timestamp, task: TaskSeq, panicked: bool) -> Verdict {
        let beside = self.capacity.slots.used().saturating_sub(1);
        let mut record = self.outlier.record.lock();
        let verdict = match panicked {
            true => record.on_panic(now, begun, task, beside),
            false => record.on_failure(now, begun, task, beside),
        };
        self.outlier.ejections.fetch_add(u64::from(verdict.until > now), Relaxed);
        self.apply(&record, now);
        verdict
    }

    /// It has turned a request away; so long it wants to be left alone, if it says so.
    pub(crate) fn note_busy(&self, now: Timestamp, asked: Option<Duration>) -> Timestamp {
        let beside = self.capacity.slots.used().saturating_sub(1);
        let mut record = self.outlier.record.lock();
        let asked = asked.filter(|_| !seeded_bug!(IgnoreRetryAfter));
        let until = record.on_busy(now, asked, beside);
        self.outlier.ejections.fetch_add(1, Relaxed);
        self.apply(&record, now);
        until
    }

    /// A run on it has given its first token, or has come to a good end. Returns whether it may be used more now.
    pub(crate) fn note_well(&self, now: Timestamp, is_end: bool) -> bool {
        let mut record = self.outlier.record.lock();
        let before = record.allowance(now, self.capacity.slots.total());
        match is_end {
            true => record.on_success(self.capacity.slots.total()),
            false => record.on_progress(self.capacity.slots.total()),
        }
        self.apply(&record, now);
        record.allowance(now, self.capacity.slots.total()) > before
    }

    /// Looks whether it may be used again. Returns the moment to look at, if that is still to come.
    pub(crate) fn look_at_conduct(&self, now: Timestamp) -> Option<Timestamp> {
        let record = self.outlier.record.lock();
        self.apply(&record, now);
        record.out_until(now)
    }

    /// Its engine has been started anew: what an earlier one did says nothing of it.
    pub(crate) fn forget_conduct(&self, policy: OutlierPolicy) {
        let mut record = self.outlier.record.lock();
        *record = Outlier::new(policy);
        self.apply(&record, Timestamp::from_micros(0));
    }

    fn apply(&self, record: &Outlier, now: Timestamp) {
        self.outlier.is_in_trouble.store(!record.is_clean(), Relaxed);
        if seeded_bug!(NeverEject) {
            return;
        }
        let allowance = record.allowance(now, self.capacity.slots.total());
        self.capacity.slots.set_ceiling(if seeded_bug!(NoSlowStart) && allowance > 0 {
            self.capacity.slots.total()
        } else {
            allowance
        });
    }

    /// The context that its runs share was full for this task. Returns whether that was so a moment ago for another
    /// one: a whole batch is lost at once, task by task.
    pub(crate) fn note_context_full(&self, now: Timestamp, task: TaskSeq) -> bool {
        let before = self.outlier.context_full.lock().replace((now, task));
        before.is_some_and(|(at, other)| other != task && now.since(at) < SETTLE)
    }
}
