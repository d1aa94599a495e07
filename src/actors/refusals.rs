//! The newest refusals of tasks whose clients chose an id, so that one may ask afterwards which limit it was.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::core::error::TaskError;
use crate::core::id::{ClientId, TaskId};

/// Refusals that are remembered; about 300 KiB.
const REFUSALS_MAX: usize = 1_024;

/// The newest refusals, oldest first.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<VecDeque<(ClientId, TaskId, TaskError)>>);

impl Refusals {
    /// Remembers one; the oldest makes room.
    pub(crate) fn note(&self, client: ClientId, id: TaskId, error: TaskError) {
        let mut known = self.0.lock();
        if known.len() == REFUSALS_MAX {
            known.pop_front();
        }
        known.push_back((client, id, error));
    }

    /// The newest refusal of this id, with whose it was; of this client's alone, if one is named.
    pub(crate) fn find(&self, client: Option<&ClientId>, id: &TaskId) -> Option<(ClientId, TaskError)> {
        let known = self.0.lock();
        let is_it = |whose: &ClientId, known: &TaskId| known == id && client.is_none_or(|client| client == whose);
        let found = known.iter().rev().find(|(whose, known, _)| is_it(whose, known));
        found.map(|(whose, _, error)| (whose.clone(), error.clone()))
    }
}
