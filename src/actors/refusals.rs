//! The newest refusals of tasks whose clients chose an id, so that one may ask afterwards which limit it was.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::core::error::TaskError;
use crate::core::id::TaskId;

/// Refusals that are remembered; about 300 KiB.
const REFUSALS_MAX: usize = 1_024;

/// The newest refusals, oldest first.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<VecDeque<(TaskId, TaskError)>>);

impl Refusals {
    /// Remembers one; the oldest makes room.
    pub(crate) fn note(&self, id: TaskId, error: TaskError) {
        let mut known = self.0.lock();
        if known.len() == REFUSALS_MAX {
            known.pop_front();
        }
        known.push_back((id, error));
    }

    /// The newest refusal of this id.
    pub(crate) fn find(&self, id: &TaskId) -> Option<TaskError> {
        self.0.lock().iter().rev().find(|(known, _)| known == id).map(|(_, error)| error.clone())
    }
}
