//! What has happened in a pool since the start, in numbers.

use std::sync::atomic::AtomicU64;

use crate::core::task::error::ErrorCode;

/// What has happened in a pool since the start.
#[derive(Default)]
pub(crate) struct Counters {
    /// Tasks that its queue took in, by class.
    pub(crate) enqueued: [AtomicU64; 2],
    pub(crate) completed: AtomicU64,
    pub(crate) canceled: AtomicU64,
    /// Accepted tasks that failed, by [`ErrorCode::ALL`].
    failed: [AtomicU64; 9],
    /// New tasks that the full policy refused.
    pub(crate) refused_full: AtomicU64,
    /// Waiting tasks that made room for others.
    pub(crate) evicted: AtomicU64,
    /// Tasks of peers' queues that were sent here because this pool was idle.
    pub(crate) taken_over: AtomicU64,
    /// Tasks that were cancelled because their readers were gone. Not counted in `canceled`.
    pub(crate) abandoned: AtomicU64,
    /// Times that tasks waited beside free slots for a second. Each is a bug of ours.
    pub(crate) stalls: AtomicU64,
    /// Reloads that were completed, and that were undone.
    pub(crate) reloads: [AtomicU64; 2],
    /// Attempts that were lost here and whose tasks run again.
    pub(crate) resumed: AtomicU64,
    /// Tasks that ended because an attempt gave other tokens than the one before it.
    pub(crate) diverged: AtomicU64,
}

impl Counters {
    /// The counter of accepted tasks that failed with this code.
    pub(crate) fn failed(&self, code: ErrorCode) -> &AtomicU64 {
        &self.failed[code_index(code)]
    }
}

/// The code's place in a table with one row for each code.
pub(crate) fn code_index(code: ErrorCode) -> usize {
    ErrorCode::ALL.iter().position(|known| *known == code).expect("ALL has every code")
}
