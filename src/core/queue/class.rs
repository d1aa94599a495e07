//! One class of a queue: whose turn it is, whose queue is the longest.

use crate::core::fairness::Virtual;
use crate::core::queue::heap::{Entry, SlotHeap};
use crate::core::queue::overflow::Longest;

/// A client among those with somebody to dispatch: the least virtual time first, then the first by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) struct Candidate {
    pub(in crate::core) time: Virtual,
    pub(in crate::core) rank: u64,
    pub(in crate::core) slot: u32,
}

impl Entry for Candidate {
    fn slot(&self) -> u32 {
        self.slot
    }
}

#[derive(Debug)]
pub(in crate::core) struct Class {
    /// Clients with somebody to dispatch, the least virtual time first.
    pub(in crate::core) turns: SlotHeap<Candidate>,
    /// Clients with a task here, the longest queue first. Kept only where the policy asks.
    pub(in crate::core) longest: SlotHeap<Longest>,
    /// Tasks of all lanes, those in the gate included.
    pub(in crate::core) count: u32,
    /// Sum of the weights of the clients with a task here.
    pub(in crate::core) weights: u64,
}

impl Class {
    pub(in crate::core) fn new() -> Self {
        Class { turns: SlotHeap::default(), longest: SlotHeap::default(), count: 0, weights: 0 }
    }
}
