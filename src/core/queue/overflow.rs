//! Who goes when a queue is full (ORCH-3004, ORCH-3005).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::core::queue::heap::Entry;

/// Who goes when the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum FullPolicy {
    /// The new one.
    #[default]
    Reject,
    /// The oldest task of the client with the longest queue by weight, batch before interactive; never one of a higher
    /// class than the new one.
    DropLru,
    /// The youngest task of the client with the longest queue by weight in the lowest class below the new one's; with
    /// none below, the new one.
    ShedLowPriority,
}

impl FullPolicy {
    /// Every policy.
    pub const ALL: [FullPolicy; 3] = [FullPolicy::Reject, FullPolicy::DropLru, FullPolicy::ShedLowPriority];

    /// The policy as it is written in configuration, errors and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            FullPolicy::Reject => "reject",
            FullPolicy::DropLru => "drop-lru",
            FullPolicy::ShedLowPriority => "shed-low-priority",
        }
    }
}

/// How much may wait, in tasks. All bounds hold at once, also while one task makes room for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In the whole pool.
    pub pool: u32,
    /// In each class, by [`Priority::index`](crate::core::task::Priority::index).
    pub class: [u32; 2],
    /// Who goes when there is no room.
    pub policy: FullPolicy,
    /// Part of the room, in percent, that a client with its share or more does not get. It matters where what waits is
    /// never evicted: without it one client could fill the queue, and everybody who comes later would be refused.
    pub reserve_percent: u32,
}

impl Bounds {
    /// Bounds that only the pool's capacity and the policy make.
    pub const fn of(pool: u32, policy: FullPolicy) -> Self {
        Bounds { pool, class: [pool; 2], policy, reserve_percent: 0 }
    }

    /// Whether a client that has `queued` of the `waiting` tasks of its class may add one, as far as the reserve goes.
    ///
    /// Its share is counted with one more client of its weight, who is not there yet: for them the reserve is kept.
    pub(in crate::core) fn within_share(
        &self,
        class: usize,
        free: u32,
        queued: u32,
        weight: u32,
        weights: u64,
    ) -> bool {
        let room = self.class[class].min(self.pool);
        let reserve = u64::from(room) * u64::from(self.reserve_percent) / 100;
        let weight = u64::from(weight);
        u64::from(free) > reserve || u64::from(queued) * (weights + weight) < u64::from(room) * weight
    }

    /// Whether the policy ever asks whose queue is the longest.
    pub(in crate::core) const fn has_victims(&self) -> bool {
        !matches!(self.policy, FullPolicy::Reject)
    }
}

/// How long a client's queue is beside its weight. The longest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) struct Length {
    pub(in crate::core) queued: u32,
    pub(in crate::core) weight: u32,
}

/// A client among those with a task in a class: the longest queue first, then the first by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) struct Longest {
    pub(in crate::core) length: Length,
    pub(in crate::core) rank: u64,
    pub(in crate::core) slot: u32,
}

impl Entry for Longest {
    fn slot(&self) -> u32 {
        self.slot
    }
}

impl Ord for Length {
    fn cmp(&self, other: &Self) -> Ordering {
        // queued / weight, compared without division; 32-bit factors cannot overflow.
        let ours = u64::from(self.queued) * u64::from(other.weight);
        let theirs = u64::from(other.queued) * u64::from(self.weight);
        theirs.cmp(&ours)
    }
}

impl PartialOrd for Length {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_queue_is_measured_by_weight() {
        let length = |queued, weight| Length { queued, weight };
        assert!(length(4, 1) < length(7, 2), "four of one is longer than seven of two");
        assert_eq!(length(2, 1).cmp(&length(4, 2)), Ordering::Equal);
    }

    #[test]
    fn the_reserve_is_for_those_below_their_share() {
        let bounds = Bounds { reserve_percent: 10, ..Bounds::of(100, FullPolicy::Reject) };
        // Alone: it may have all but the reserve.
        assert!(bounds.within_share(0, 11, 89, 1, 1));
        assert!(!bounds.within_share(0, 10, 90, 1, 1));
        // A newcomer beside it: its share of the room is a third, counted with one who may still come.
        assert!(bounds.within_share(0, 10, 0, 1, 2) && bounds.within_share(0, 1, 33, 1, 2));
        assert!(!bounds.within_share(0, 1, 34, 1, 2));
        let small = Bounds { reserve_percent: 10, ..Bounds::of(9, FullPolicy::Reject) };
        assert!(small.within_share(0, 1, 8, 1, 1), "no reserve below ten places");
    }
}
