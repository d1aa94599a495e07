//! Who goes when a queue is full (ORCH-3004, ORCH-3005).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::core::fairness::Accounts;
use crate::core::id::TaskSeq;
use crate::core::queue::heap::Entry;
use crate::core::queue::linked_list::NIL;
use crate::core::queue::{Arrival, Queue};
use crate::core::task::Priority;

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

impl<T> Queue<T> {
    /// `Some(None)`: there is room. `Some(Some(key))`: there is, once that one goes. `None`: there is none.
    pub(in crate::core) fn make_room(
        &self,
        accounts: &Accounts,
        arrival: &Arrival<'_>,
        slot: Option<u32>,
    ) -> Option<Option<u32>> {
        let (class, bounds) = (arrival.class, &self.bounds);
        let free_class = bounds.class[class.index()].saturating_sub(self.len_of(class));
        let free = bounds.pool.saturating_sub(self.len()).min(free_class);
        let queued = slot.map_or(0, |slot| accounts.waiting_in(slot, class));
        let weights = self.classes[class.index()].weights + if queued == 0 { u64::from(arrival.weight) } else { 0 };
        let in_share = || bounds.within_share(class.index(), free, queued, arrival.weight, weights);
        if free > 0 && (bounds.policy == FullPolicy::DropLru || in_share()) {
            return Some(None);
        }
        let victim = match bounds.policy {
            FullPolicy::Reject => NIL,
            FullPolicy::DropLru => {
                // A full class can only make room in itself.
                let batch_first = Priority::ALL.into_iter().rev();
                let lowest = batch_first.take_while(|other| *other > class).find(|other| self.len_of(*other) > 0);
                match lowest.filter(|_| free_class > 0) {
                    Some(below) => self.oldest(self.longest(below)?, below),
                    None => self.oldest(self.longest_with(accounts, arrival, slot, queued)?, class),
                }
            }
            FullPolicy::ShedLowPriority if free_class == 0 => NIL,
            FullPolicy::ShedLowPriority => {
                let below = Priority::ALL.into_iter().rev().take_while(|other| *other > class);
                let lowest = below.into_iter().find(|other| self.len_of(*other) > 0)?;
                self.youngest(self.longest(lowest)?, lowest)
            }
        };
        (victim != NIL).then_some(Some(victim))
    }

    /// The client with the longest queue by weight.
    fn longest(&self, class: Priority) -> Option<u32> {
        self.classes[class.index()].longest.first().map(|longest| longest.slot)
    }

    /// The client with the longest queue by weight, the newcomer counted in. `None` when that is a client with nothing
    /// but the newcomer.
    fn longest_with(&self, accounts: &Accounts, arrival: &Arrival<'_>, slot: Option<u32>, queued: u32) -> Option<u32> {
        let newcomer = Length { queued: queued + 1, weight: arrival.weight };
        let own = slot.filter(|_| queued > 0);
        match self.classes[arrival.class.index()].longest.first() {
            Some(Longest { length, slot, .. }) if own != Some(slot) => {
                let theirs_first = length.cmp(&newcomer).then_with(|| accounts.account(slot).id.cmp(arrival.client));
                if theirs_first.is_lt() { Some(slot) } else { own }
            }
            _ => own,
        }
    }

    fn oldest(&self, slot: u32, class: Priority) -> u32 {
        let lane = self.lane(slot, class);
        self.first_of(lane.ready.head, lane.aside.head, |a, b| a < b)
    }

    fn youngest(&self, slot: u32, class: Priority) -> u32 {
        let lane = self.lane(slot, class);
        self.first_of(lane.ready.tail, lane.aside.tail, |a, b| a > b)
    }

    fn first_of(&self, a: u32, b: u32, before: impl Fn(TaskSeq, TaskSeq) -> bool) -> u32 {
        match (a, b) {
            (NIL, other) | (other, NIL) => other,
            _ if before(self.nodes[a as usize].seq, self.nodes[b as usize].seq) => a,
            _ => b,
        }
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
