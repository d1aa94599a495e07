//! One class of a queue: whose turn it is, whose queue is the longest.

use crate::core::fairness::Virtual;
use crate::core::full::Longest;
use crate::core::heap::{Entry, SlotHeap};

/// A client among those with somebody to dispatch: the least virtual time first, then the first by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) time: Virtual,
    pub(super) rank: u64,
    pub(super) slot: u32,
}

impl Entry for Turn {
    fn slot(&self) -> u32 {
        self.slot
    }
}

#[derive(Debug)]
pub(super) struct Class {
    /// Clients with somebody to dispatch, the least virtual time first.
    pub(super) turns: SlotHeap<Turn>,
    /// Clients with a task here, the longest queue first. Kept only where the policy asks.
    pub(super) longest: SlotHeap<Longest>,
    /// Tasks of all lanes, those in the gate included.
    pub(super) count: u32,
    /// Sum of the weights of the clients with a task here.
    pub(super) weights: u64,
}

impl Class {
    pub(super) fn new() -> Self {
        Class { turns: SlotHeap::default(), longest: SlotHeap::default(), count: 0, weights: 0 }
    }
}
