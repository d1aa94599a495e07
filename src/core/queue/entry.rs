//! A task as its queue takes it, and what became of it there.

use crate::core::fairness::Size;
use crate::core::id::{ClientId, SessionId, TaskSeq};
use crate::core::task::Priority;

/// A task that comes to wait.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its number in the order of admission.
    pub seq: TaskSeq,
    /// Its class.
    pub class: Priority,
    /// Who pays for it.
    pub client: &'a ClientId,
    /// The client's weight, 1 to [`WEIGHT_MAX`](crate::core::fairness::WEIGHT_MAX).
    pub weight: u32,
    /// The conversation that it belongs to: one task of it is out at a time.
    pub session: Option<&'a SessionId>,
    /// What it may cost.
    pub size: Size,
}

/// What became of a new entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Enqueued<T> {
    /// It waits.
    Accepted,
    /// It waits, and another had to go for it.
    Evicted {
        /// Whose entry went.
        seq: TaskSeq,
        /// What went.
        item: T,
    },
    /// There was no room; the caller has it back.
    Refused {
        /// What was not taken in.
        item: T,
    },
    /// An entry with this number waits already; nothing changed.
    Duplicate,
}
