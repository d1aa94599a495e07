//! The newest failures of accepted tasks, for people to look at.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::core::id::{ClientId, PoolId, TaskId};
use crate::core::task::error::TaskError;
use crate::core::units::Timestamp;

/// Failures that are remembered.
const FAILURES_MAX: usize = 32;

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct FailedTask {
    pub(crate) task_id: TaskId,
    pub(crate) client_id: ClientId,
    pub(crate) pool_id: Option<PoolId>,
    pub(crate) error: TaskError,
    pub(crate) at: Timestamp,
}

/// The newest failures, oldest first. A short lock, taken when a task fails.
#[derive(Default)]
pub(crate) struct Failures(Mutex<VecDeque<FailedTask>>);

impl Failures {
    /// Remembers one; the oldest makes room.
    pub(crate) fn note(&self, failed: FailedTask) {
        let mut known = self.0.lock();
        if known.len() == FAILURES_MAX {
            known.pop_front();
        }
        known.push_back(failed);
    }

    /// All of them, newest first.
    pub(crate) fn newest(&self) -> Vec<FailedTask> {
        self.0.lock().iter().rev().cloned().collect()
    }
}
