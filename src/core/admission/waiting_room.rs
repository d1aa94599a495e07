//! In what order those who wait for room try again: tenant by tenant, and of each the one who came first.
//!
//! Those who want the same thing stand in one lane, so who waits for a full pool holds up nobody who wants another. Of
//! each lane one waiter at a time is called and tries; where it gets in the next is called, since there may be more
//! room, and where it does not the next tenant's first is, since what is full for one need not be for another. When
//! each tenant's first has been refused the lane waits until room is freed. The caller brings the words; nothing here
//! waits.

use std::collections::{BTreeMap, VecDeque};

use crate::core::admission::share::Share;
use crate::core::check;
use crate::core::id::ClientId;

/// One waiter. Numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Those who wait for room, by what they want.
#[derive(Debug)]
pub struct WaitingRoom<L> {
    places: Share,
    next: u64,
    lanes: BTreeMap<L, Lane>,
    /// Whose a ticket is, and in which lane it stands.
    tickets: BTreeMap<Ticket, (L, ClientId)>,
}

#[derive(Debug, Default)]
struct Lane {
    /// Tenants who wait here, in turn. Invariant: each once, and each has waiters.
    turns: VecDeque<ClientId>,
    waiters: BTreeMap<ClientId, VecDeque<Ticket>>,
    /// Who tries just now.
    called: Option<Ticket>,
    /// Tenants who were refused since room was last freed.
    refused: usize,
    /// Room was freed while somebody tried.
    has_news: bool,
}

impl Lane {
    fn call(&mut self) -> Option<Ticket> {
        debug_assert!(self.called.is_none());
        let first = self.turns.front().and_then(|client| self.waiters.get(client)?.front().copied());
        self.called = first.filter(|_| self.refused < self.turns.len());
        self.called
    }

    fn on_freed(&mut self) -> Option<Ticket> {
        if self.called.is_some() {
            self.has_news = true;
            return None;
        }
        self.refused = 0;
        self.call()
    }

    /// The called one goes, or stays; whose turn is next.
    fn next(&mut self, goes: bool) -> Option<Ticket> {
        self.called = None;
        if goes || std::mem::take(&mut self.has_news) {
            self.refused = 0;
        } else {
            self.refused += 1;
        }
        self.call()
    }

    fn remove(&mut self, client: &ClientId, ticket: Ticket) {
        let Some(own) = self.waiters.get_mut(client) else { return };
        own.retain(|other| *other != ticket);
        if own.is_empty() {
            self.waiters.remove(client);
            self.turns.retain(|other| other != client);
        }
    }
}

impl<L: Ord + Clone> WaitingRoom<L> {
    /// Room for so many waiters, of which each tenant may have as many as it leaves free.
    pub fn new(most: u32) -> Self {
        WaitingRoom { places: Share::new(most.into()), next: 0, lanes: BTreeMap::new(), tickets: BTreeMap::new() }
    }

    /// Waiters there are.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Whether somebody waits for this.
    pub fn is_wanted(&self, lane: &L) -> bool {
        self.lanes.contains_key(lane)
    }

    /// Takes a waiter in; `None` when this tenant may have no more.
    pub fn enter(&mut self, lane: &L, client: &ClientId) -> Option<Ticket> {
        if !self.places.try_take(client, 1, 0) {
            return None;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.tickets.insert(ticket, (lane.clone(), client.clone()));
        let lane = self.lanes.entry(lane.clone()).or_default();
        let own = lane.waiters.entry(client.clone()).or_default();
        if own.is_empty() {
            lane.turns.push_back(client.clone());
        }
        own.push_back(ticket);
        check(self.len(), || self.invariants());
        Some(ticket)
    }

    /// Room may have been freed, for anybody: whom to call, of each lane.
    pub fn on_freed(&mut self) -> Vec<Ticket> {
        self.lanes.values_mut().filter_map(Lane::on_freed).collect()
    }

    /// Room may have been freed for this: whom to call.
    pub fn on_freed_for(&mut self, lane: &L) -> Option<Ticket> {
        self.lanes.get_mut(lane)?.on_freed()
    }

    /// The one who was called has been refused, and waits on: whom to call next.
    pub fn on_refused(&mut self, ticket: Ticket) -> Option<Ticket> {
        let (lane, _) = self.tickets.get(&ticket)?;
        let lane = self.lanes.get_mut(lane)?;
        if lane.called != Some(ticket) {
            return None;
        }
        lane.turns.rotate_left(1); // It stays the first of its tenant's.
        let next = lane.next(false);
        check(self.len(), || self.invariants());
        next
    }

    /// A waiter has gone: it got in, or does not want to any more. Whom to call next.
    pub fn on_gone(&mut self, ticket: Ticket) -> Option<Ticket> {
        let (name, client) = self.tickets.remove(&ticket)?;
        self.places.give(&client, 1);
        let lane = self.lanes.get_mut(&name)?;
        let was_called = lane.called == Some(ticket);
        if was_called && lane.turns.front() == Some(&client) {
            lane.turns.rotate_left(1);
        }
        lane.remove(&client, ticket);
        // Whoever was to look again when time has passed may have been this one.
        let next = if was_called {
            lane.next(true)
        } else if lane.called.is_none() {
            lane.on_freed()
        } else {
            None
        };
        if lane.turns.is_empty() {
            self.lanes.remove(&name);
        }
        check(self.len(), || self.invariants());
        next
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        self.places.invariants();
        assert_eq!(self.places.used(), self.tickets.len() as u64, "each ticket has its place");
        let mut waiting = 0;
        for lane in self.lanes.values() {
            assert!(!lane.turns.is_empty(), "a lane without waiters is forgotten");
            assert_eq!(lane.turns.len(), lane.waiters.len(), "each tenant has one turn");
            for client in &lane.turns {
                let own = lane.waiters.get(client).expect("who has a turn waits");
                assert!(own.iter().is_sorted(), "of a tenant who came first is first");
                let is_theirs = |ticket| self.tickets.get(ticket).is_some_and(|(_, whose)| whose == client);
                assert!(!own.is_empty() && own.iter().all(is_theirs), "a ticket stands in its own lane");
                waiting += own.len();
            }
            let called = lane.called.as_ref();
            assert!(called.is_none_or(|ticket| self.tickets.contains_key(ticket)), "who was called waits still");
        }
        assert_eq!(waiting, self.tickets.len(), "every waiter stands in one lane");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: usize) -> ClientId {
        ClientId::parse(&format!("c{number}")).expect("valid")
    }

    #[test]
    fn tenants_take_turns_and_each_keeps_its_order() {
        let mut room = WaitingRoom::new(100);
        let of = |room: &mut WaitingRoom<()>, who: usize| room.enter(&(), &client(who)).expect("a place");
        let many: Vec<_> = (0..3).map(|_| of(&mut room, 0)).collect();
        let few = of(&mut room, 1);
        let mut next = room.on_freed_for(&());
        let mut order = Vec::new();
        while let Some(ticket) = next {
            order.push(ticket);
            next = room.on_gone(ticket);
        }
        assert_eq!(order, [many[0], few, many[1], many[2]]);
        assert!(room.is_empty() && !room.is_wanted(&()));
    }

    #[test]
    fn what_is_full_for_one_tenant_is_tried_by_the_next_and_nobody_twice() {
        let mut room = WaitingRoom::new(100);
        let (first, second) =
            (room.enter(&(), &client(0)).expect("a place"), room.enter(&(), &client(1)).expect("a place"));
        assert_eq!(room.on_freed(), [first]);
        assert_eq!((room.on_refused(first), room.on_refused(second)), (Some(second), None));
        assert_eq!(room.on_freed(), [first], "each is asked again when something is new");
        assert!(room.on_freed().is_empty(), "one at a time");
        assert_eq!(room.on_refused(first), Some(second));
        assert_eq!(room.on_refused(second), Some(first), "what was freed meanwhile is not forgotten");
    }

    #[test]
    fn who_waits_for_one_thing_holds_up_nobody_who_wants_another() {
        let mut room = WaitingRoom::new(100);
        let (a, b) = (room.enter(&'a', &client(0)).expect("a place"), room.enter(&'b', &client(0)).expect("a place"));
        assert_eq!(room.on_freed(), [a, b]);
        assert_eq!((room.on_refused(a), room.on_gone(b)), (None, None));
        assert!(room.is_wanted(&'a') && !room.is_wanted(&'b'));
    }

    #[test]
    fn one_tenant_leaves_places_for_the_others() {
        let mut room = WaitingRoom::new(10);
        let taken = std::iter::from_fn(|| room.enter(&(), &client(0))).count();
        assert_eq!((taken, room.enter(&(), &client(1)).is_some()), (5, true));
    }

    proptest! {
        /// Whatever comes, nobody who waits is forgotten: when room is freed often enough, everybody gets in, and each
        /// tenant's in order.
        #[test]
        fn nobody_is_forgotten(steps in proptest::collection::vec((0_u8..5, 0_usize..4, 0_u8..2), 1..200)) {
            let mut room = WaitingRoom::new(10_000);
            let mut called: Vec<Ticket> = Vec::new();
            let mut waiting: Vec<(Ticket, usize, u8)> = Vec::new();
            for (step, who, lane) in steps {
                match step {
                    0 | 1 => waiting.extend(room.enter(&lane, &client(who)).map(|ticket| (ticket, who, lane))),
                    2 => called.extend(room.on_freed()),
                    3 => if let Some(ticket) = called.pop() {
                        called.extend(room.on_refused(ticket));
                    },
                    _ => if !waiting.is_empty() {
                        let (ticket, _, _) = waiting.remove(who % waiting.len());
                        called.retain(|other| *other != ticket);
                        called.extend(room.on_gone(ticket));
                    },
                }
                prop_assert_eq!(room.len(), waiting.len());
            }
            // Room for all from here on.
            let mut order: BTreeMap<(usize, u8), Vec<Ticket>> = BTreeMap::new();
            called.extend(room.on_freed());
            while let Some(ticket) = called.pop() {
                let at = waiting.iter().position(|(other, _, _)| *other == ticket);
                let (_, who, lane) = waiting.remove(at.expect("it waits"));
                order.entry((who, lane)).or_default().push(ticket);
                called.extend(room.on_gone(ticket));
            }
            prop_assert!(waiting.is_empty() && room.is_empty(), "{waiting:?} {room:?}");
            prop_assert!(order.values().all(|tickets| tickets.is_sorted()));
        }
    }
}
