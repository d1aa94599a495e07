//! Who goes when the queue is full: the rules of [`overflow`](crate::core::queue::overflow) on what waits.

use crate::core::fairness::Accounts;
use crate::core::id::TaskSeq;
use crate::core::queue::linked_list::NIL;
use crate::core::queue::overflow::{FullPolicy, Length, Longest};
use crate::core::queue::{Arrival, Queue};
use crate::core::task::Priority;

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
