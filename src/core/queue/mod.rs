//! The order of a pool's queue, and its bound (ORCH-3004, ORCH-3005, FAIR-1).
//!
//! `class → client → lane → session gate`: the class with the least tag, in it the client with the least virtual time,
//! in its lane the head. A head whose conversation has a task out already steps aside into the gate until that one has
//! ended; a client that may not run more now is passed over. [`Accounts`] say who is least; this file says what waits.
//!
//! A cancel costs the same for the first task as for the millionth: tasks live in a slab, are chained by index and
//! found by number. Enqueue and dispatch cost O(log clients). In steady state nothing is allocated.

mod charges;
pub(in crate::core) mod class;
#[doc(hidden)]
pub mod entry;
mod gating;
pub(in crate::core) mod heap;
pub(in crate::core) mod linked_list;
mod make_room;
#[doc(hidden)]
pub mod overflow;
pub mod position;
#[doc(hidden)]
pub mod predict;
pub(in crate::core) mod session_gate;

use slab::Slab;

use crate::core::fairness::hash::SeqMap;
use crate::core::fairness::{Accounts, Charge, Served};
use crate::core::id::{ClientId, SessionId, TaskSeq};
use crate::core::queue::class::{Candidate, Class};
pub use crate::core::queue::entry::{Arrival, Enqueued};
use crate::core::queue::linked_list::{EMPTY, Lane, Links, List, NIL, Node, link, unlink};
use crate::core::queue::overflow::{Bounds, Length, Longest};
use crate::core::queue::session_gate::Gate;
use crate::core::task::Priority;

/// The waiting tasks of one pool. `T` is what the caller wants back.
#[derive(Debug)]
pub struct Queue<T> {
    pub(in crate::core) nodes: Slab<Node<T>>,
    /// Invariant: holds exactly the numbers of `nodes`.
    pub(in crate::core) index: SeqMap<u32>,
    /// By the client's slot in the accounts, then by class.
    pub(in crate::core) lanes: Vec<[Lane; 2]>,
    pub(in crate::core) classes: [Class; 2],
    pub(in crate::core) gate: Gate,
    pub(in crate::core) bounds: Bounds,
    /// Largest number that ever came: a larger one is new for sure.
    newest: TaskSeq,
    /// Version of the clients' ranks that the heaps hold.
    ranks_version: u64,
}

impl<T> Queue<T> {
    /// An empty queue; what an earlier one held is forgotten. Conversations with a task out stay closed until that is
    /// settled.
    pub fn new(bounds: Bounds, accounts: &mut Accounts) -> Self {
        accounts.forget_waiting();
        let mut gate = Gate::default();
        accounts.busy_sessions().for_each(|(client, session)| gate.close(client, session));
        let (nodes, index, classes) = (Slab::new(), SeqMap::default(), [Class::new(), Class::new()]);
        Queue {
            nodes,
            index,
            lanes: Vec::new(),
            classes,
            gate,
            bounds,
            newest: TaskSeq(0),
            ranks_version: accounts.ranks_version(),
        }
    }

    /// Number of tasks that wait, those in the gate included.
    pub fn len(&self) -> u32 {
        self.classes[0].count + self.classes[1].count
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tasks of one class that wait.
    pub fn len_of(&self, class: Priority) -> u32 {
        self.classes[class.index()].count
    }

    /// Whether this task waits here.
    pub fn contains(&self, seq: TaskSeq) -> bool {
        self.index.contains_key(&seq)
    }

    /// Whether somebody could be dispatched, as far as this queue knows.
    pub fn has_ready(&self) -> bool {
        self.classes.iter().any(|class| !class.turns.is_empty())
    }

    /// Takes a new task in at the end of its lane, or applies the full policy. The bounds hold afterwards. O(log
    /// clients).
    pub fn enqueue(&mut self, accounts: &mut Accounts, arrival: Arrival<'_>, item: T) -> Enqueued<T> {
        if arrival.seq <= self.newest && self.contains(arrival.seq) {
            return Enqueued::Duplicate;
        }
        let slot = accounts.slot(arrival.client);
        let Some(victim) = self.make_room(accounts, &arrival, slot) else {
            return Enqueued::Refused { item };
        };
        let evicted = victim.map(|key| self.remove(accounts, key));
        // Whoever went may have been the one whose account was kept for it, or made another be forgotten.
        let slot = if evicted.is_some() { accounts.slot(arrival.client) } else { slot };
        self.insert(accounts, arrival, slot, item, |_, _| NIL);
        match evicted {
            None => Enqueued::Accepted,
            Some((seq, item)) => Enqueued::Evicted { seq, item },
        }
    }

    /// Takes in a task that is dispatched before anything else happens, so that it does not wait and no bound concerns
    /// it.
    pub fn pass_through(&mut self, accounts: &mut Accounts, arrival: Arrival<'_>, item: T) {
        let slot = accounts.slot(arrival.client);
        self.insert(accounts, arrival, slot, item, |_, _| NIL);
    }

    /// Takes back a task that had been dispatched and shows nothing for it, or one that an earlier queue held: it keeps
    /// its place by its number, and what it was charged is refunded.
    ///
    /// It was counted when it came, so no bound refuses it: the queue holds at most its capacity and the pool's slots.
    /// Returns whether it was taken; `false` when it waits already. O(log clients + tasks before it).
    pub fn put_back(&mut self, accounts: &mut Accounts, arrival: Arrival<'_>, item: T) -> bool {
        if self.contains(arrival.seq) {
            return false;
        }
        let charge = self.correct(accounts, arrival.seq, Served::Nothing).map(|(charge, _)| charge);
        let slot = accounts.slot(arrival.client);
        let key = self.insert(accounts, arrival, slot, item, |queue, lane| queue.place(lane, arrival.seq));
        if let Some(charge) = charge {
            accounts.leave(charge.client); // Behind `insert`, so that the client is not idle in between.
            let session = self.nodes[key as usize].session;
            if session != NIL {
                self.gate.came_back(session, key);
            }
        }
        true
    }

    /// Takes out the task whose turn it is, and charges what it is expected to cost.
    ///
    /// `may_run` is asked about each head; where it says no, the client is passed over in that class until
    /// [`Queue::release`]. O(log clients), and O(1) more for each task that steps aside, once for each.
    pub fn dispatch(&mut self, accounts: &mut Accounts, mut may_run: impl FnMut(&T) -> bool) -> Option<(TaskSeq, T)> {
        loop {
            let class = self.next_class(accounts)?;
            let Candidate { slot, .. } =
                self.classes[class.index()].turns.first().expect("the class was chosen for it");
            let head = self.lane(slot, class).ready.head;
            let node = &self.nodes[head as usize];
            if node.session != NIL && self.gate.is_closed_to(node.session, head) {
                self.step_aside(accounts, head);
            } else if !may_run(&node.item) {
                self.lane_mut(slot, class).held = true;
                self.update_turn(accounts, slot, class);
            } else {
                return Some(self.take(accounts, head));
            }
        }
    }

    /// Takes out this task, wherever it stands. O(log clients) at any depth.
    pub fn cancel(&mut self, accounts: &mut Accounts, seq: TaskSeq) -> Option<T> {
        let key = *self.index.get(&seq)?;
        Some(self.remove(accounts, key).1)
    }

    /// A dispatched task has come to its end: corrects what it was charged, and lets the next of its conversation go
    /// on. Returns whether it was out at all.
    pub fn settle(&mut self, accounts: &mut Accounts, seq: TaskSeq, served: Served) -> bool {
        let Some((charge, session)) = self.correct(accounts, seq, served) else { return false };
        if let Some(session) = &session {
            let next = self.gate.open(charge.client, session);
            self.let_go(accounts, next);
        }
        accounts.leave(charge.client);
        true
    }

    fn correct(
        &mut self,
        accounts: &mut Accounts,
        seq: TaskSeq,
        served: Served,
    ) -> Option<(Charge, Option<SessionId>)> {
        let (charge, session) = accounts.settle(seq, served)?;
        if self.classes[charge.class.index()].turns.contains(charge.client) {
            self.set_turn(accounts, charge.client, charge.class);
        }
        Some((charge, session))
    }

    /// A client that was passed over may run again; it joins in without credit for its absence.
    pub fn release(&mut self, accounts: &mut Accounts, client: &ClientId) {
        self.stop_holding(accounts, client, Self::update_turn);
    }

    /// A client that was passed over for a moment, through no fault of its own, has its turn back as it was.
    pub fn return_turn(&mut self, accounts: &mut Accounts, client: &ClientId) {
        self.stop_holding(accounts, client, |queue, accounts, slot, class| {
            // What was held may have been cancelled since, and the rest stand aside.
            if queue.lane(slot, class).ready.head != NIL {
                queue.set_turn(accounts, slot, class);
            }
        });
    }

    fn stop_holding(
        &mut self,
        accounts: &mut Accounts,
        client: &ClientId,
        then: impl Fn(&mut Self, &mut Accounts, u32, Priority),
    ) {
        let Some(slot) = accounts.slot(client) else { return };
        for class in Priority::ALL {
            if self.lane(slot, class).held {
                self.lane_mut(slot, class).held = false;
                then(self, accounts, slot, class);
            }
        }
    }

    pub(in crate::core) fn lane(&self, slot: u32, class: Priority) -> &Lane {
        self.lanes.get(slot as usize).map_or(&EMPTY, |lanes| &lanes[class.index()])
    }

    fn lane_mut(&mut self, slot: u32, class: Priority) -> &mut Lane {
        &mut self.lanes[slot as usize][class.index()]
    }

    /// The class with the least tag that has somebody to dispatch; the more important one when equal.
    pub(in crate::core) fn next_class(&self, accounts: &Accounts) -> Option<Priority> {
        let waiting = Priority::ALL.into_iter().filter(|class| !self.classes[class.index()].turns.is_empty());
        waiting.min_by_key(|class| (accounts.tag(*class), class.index()))
    }

    fn insert(
        &mut self,
        accounts: &mut Accounts,
        arrival: Arrival<'_>,
        known: Option<u32>,
        item: T,
        before: impl FnOnce(&Self, List) -> u32,
    ) -> u32 {
        let Arrival { seq, class, client, weight, session, size } = arrival;
        let slot = accounts.enter(client, known, weight);
        if self.ranks_version != accounts.ranks_version() {
            self.look_at_ranks(accounts);
        }
        if self.lanes.len() <= slot as usize {
            self.lanes.resize(slot as usize + 1, [EMPTY; 2]);
        }
        let session = session.map_or(NIL, |session| self.gate.enter(slot, session));
        let (order, aside) = (Links::NONE, Links::NONE);
        let node = Node { seq, item, order, aside, client: slot, session, size, class, stands_aside: false };
        let before = before(self, self.lane(slot, class).ready);
        let key = self.nodes.insert(node) as u32;
        self.index.insert(seq, key);
        self.newest = self.newest.max(seq);
        self.count(accounts, slot, class, 1);
        self.link_ready(accounts, key, before);
        key
    }

    /// All clients have been ranked anew, in the same order.
    #[cold]
    fn look_at_ranks(&mut self, accounts: &Accounts) {
        self.ranks_version = accounts.ranks_version();
        for class in &mut self.classes {
            class.turns.rewrite(|turn| turn.rank = accounts.account(turn.slot).rank);
            class.longest.rewrite(|longest| longest.rank = accounts.account(longest.slot).rank);
        }
    }

    /// Chains a task into its lane; a lane that had nobody to dispatch joins in without credit.
    pub(in crate::core) fn link_ready(&mut self, accounts: &mut Accounts, key: u32, before: u32) {
        let (slot, class) = (self.nodes[key as usize].client, self.nodes[key as usize].class);
        let lane = &mut self.lanes[slot as usize][class.index()];
        link(&mut self.nodes, |node| &mut node.order, &mut lane.ready, key, before);
        self.update_turn(accounts, slot, class);
    }

    /// Puts a client among those whose turn may come, or takes it out, as its lane says.
    pub(in crate::core) fn update_turn(&mut self, accounts: &mut Accounts, slot: u32, class: Priority) {
        let lane = self.lane(slot, class);
        let (wanted, present) =
            (lane.ready.head != NIL && !lane.held, self.classes[class.index()].turns.contains(slot));
        if wanted && !present {
            let least = self.classes[class.index()].turns.first().map(|turn| turn.time);
            if least.is_none() {
                accounts.lift_class(class);
            }
            accounts.catch_up(slot, class, least);
            self.set_turn(accounts, slot, class);
        } else if !wanted && present {
            self.classes[class.index()].turns.remove(slot);
        }
    }

    pub(in crate::core) fn set_turn(&mut self, accounts: &Accounts, slot: u32, class: Priority) {
        let account = accounts.account(slot);
        self.classes[class.index()].turns.set(Candidate {
            time: account.time[class.index()],
            rank: account.rank,
            slot,
        });
    }

    /// Counts a task of this lane in (1) or out (-1).
    fn count(&mut self, accounts: &mut Accounts, slot: u32, class: Priority, change: i32) {
        let (weight, rank) = (accounts.account(slot).weight, accounts.account(slot).rank);
        let (was, queued) = accounts.count_waiting(slot, class, change);
        if queued == 0 {
            self.lane_mut(slot, class).held = false;
        }
        let class = &mut self.classes[class.index()];
        class.count = class.count.wrapping_add_signed(change);
        match (was, queued) {
            (0, _) => class.weights += u64::from(weight),
            (_, 0) => class.weights -= u64::from(weight),
            _ => {}
        }
        match (self.bounds.has_victims(), queued) {
            (false, _) => {}
            (true, 0) => class.longest.remove(slot),
            (true, _) => class.longest.set(Longest { length: Length { queued, weight }, rank, slot }),
        }
    }

    fn leave_lane(&mut self, key: u32) -> (u32, Priority) {
        let (slot, class) = (self.nodes[key as usize].client, self.nodes[key as usize].class);
        let lane = &mut self.lanes[slot as usize][class.index()];
        unlink(&mut self.nodes, |node| &mut node.order, &mut lane.ready, key);
        (slot, class)
    }

    /// Takes out the head of a lane whose turn it is.
    fn take(&mut self, accounts: &mut Accounts, key: u32) -> (TaskSeq, T) {
        let (slot, class) = self.leave_lane(key);
        let node = self.nodes.remove(key as usize);
        self.index.remove(&node.seq);
        let session = (node.session != NIL).then(|| self.gate.depart(node.session, key));
        // Its use of the account passes on to the charge.
        accounts.charge(node.seq, slot, class, node.size, session);
        self.count(accounts, slot, class, -1);
        if self.lane(slot, class).ready.head == NIL {
            self.classes[class.index()].turns.remove(slot);
        } else {
            self.set_turn(accounts, slot, class);
        }
        (node.seq, node.item)
    }

    /// Takes out a task that will not be dispatched.
    fn remove(&mut self, accounts: &mut Accounts, key: u32) -> (TaskSeq, T) {
        let (slot, class) = (self.nodes[key as usize].client, self.nodes[key as usize].class);
        if self.nodes[key as usize].stands_aside {
            self.leave_gate(key);
        } else {
            self.leave_lane(key);
        }
        let node = self.nodes.remove(key as usize);
        self.index.remove(&node.seq);
        self.count(accounts, slot, class, -1);
        self.update_turn(accounts, slot, class);
        if node.session != NIL {
            let next = self.gate.leave(node.session, key);
            self.let_go(accounts, next);
        }
        accounts.leave(slot);
        (node.seq, node.item)
    }
}

#[cfg(test)]
mod tests {
    use super::Priority::{Batch, Interactive};
    use super::*;
    use crate::core::fairness::CostWeights;
    use crate::core::fairness::Size;
    use crate::core::queue::overflow::FullPolicy;
    use crate::core::units::Tokens;

    /// A queue of one client whose tasks all cost the same, unless a test says otherwise.
    struct Lab {
        queue: Queue<u64>,
        accounts: Accounts,
    }

    fn size() -> Size {
        Size::new(Tokens(8), Tokens(1), None)
    }

    impl Lab {
        fn new(bounds: Bounds) -> Self {
            let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
            Lab { queue: Queue::new(bounds, &mut accounts), accounts }
        }
        fn add_for(&mut self, name: &str, session: Option<&str>, number: u64, class: Priority) -> Enqueued<u64> {
            let session = session.map(|session| SessionId::parse(session).expect("valid"));
            let client = ClientId::parse(name).expect("valid");
            let (seq, session) = (TaskSeq(number), session.as_ref());
            let arrival = Arrival { seq, class, client: &client, weight: 1, session, size: size() };
            self.queue.enqueue(&mut self.accounts, arrival, number)
        }
        fn add(&mut self, number: u64, class: Priority) -> Enqueued<u64> {
            self.add_for("only", None, number, class)
        }
        fn dispatch(&mut self) -> Option<u64> {
            let dispatched = self.queue.dispatch(&mut self.accounts, |_| true).map(|(_, item)| item);
            self.queue.invariants(&self.accounts);
            dispatched
        }
        fn settle(&mut self, number: u64) {
            let served = Served::Part { prompt: Tokens(8), output: Tokens(1) };
            assert!(self.queue.settle(&mut self.accounts, TaskSeq(number), served));
        }
        fn ahead(&self, class: Priority) -> u64 {
            let own = self.accounts.waiting(&ClientId::parse("only").expect("valid"), class);
            self.queue.backlog(&self.accounts).ahead(own, own, 1, class)
        }
    }

    fn queue(pool: u32, policy: FullPolicy) -> Lab {
        Lab::new(Bounds::of(pool, policy))
    }

    fn fill(lab: &mut Lab, class: Priority, numbers: std::ops::Range<u64>) {
        for number in numbers {
            assert_eq!(lab.add(number, class), Enqueued::Accepted);
        }
    }

    fn drain(lab: &mut Lab) -> Vec<u64> {
        std::iter::from_fn(|| lab.dispatch()).collect()
    }

    #[test]
    fn order_inside_a_class_is_fifo() {
        let mut queue = queue(9, FullPolicy::Reject);
        fill(&mut queue, Batch, 0..5);
        assert_eq!(queue.queue.cancel(&mut queue.accounts, TaskSeq(2)), Some(2));
        queue.queue.invariants(&queue.accounts);
        assert_eq!(drain(&mut queue), [0, 1, 3, 4]);
    }

    #[test]
    fn batch_gets_a_tenth_of_a_busy_pool_and_all_of_an_idle_one() {
        let mut queue = queue(200, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..90);
        fill(&mut queue, Batch, 100..200);
        let first: Vec<u64> = drain(&mut queue);
        let batch_in_first_hundred = first[..100].iter().filter(|item| **item >= 100).count();
        assert_eq!(batch_in_first_hundred, 10);
        assert!(first[100..].iter().all(|item| *item >= 100));
    }

    #[test]
    fn an_idle_class_saves_no_credit() {
        let mut queue = queue(100, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..50);
        drain(&mut queue);
        fill(&mut queue, Batch, 50..60);
        fill(&mut queue, Interactive, 60..80);
        let batch_early = drain(&mut queue)[..10].iter().filter(|item| **item < 60).count();
        assert!(batch_early <= 2, "{batch_early}");
    }

    #[test]
    fn reject_refuses_the_new_one_and_keeps_the_rest() {
        let mut queue = queue(2, FullPolicy::Reject);
        fill(&mut queue, Batch, 0..2);
        assert_eq!(queue.add(9, Interactive), Enqueued::Refused { item: 9 });
        assert_eq!(drain(&mut queue), [0, 1]);
    }

    #[test]
    fn drop_lru_takes_the_oldest_batch_before_any_interactive() {
        let mut queue = queue(3, FullPolicy::DropLru);
        fill(&mut queue, Interactive, 0..1);
        fill(&mut queue, Batch, 1..3);
        let evicted = queue.add(3, Interactive);
        assert_eq!(evicted, Enqueued::Evicted { seq: TaskSeq(1), item: 1 });
        queue.queue.invariants(&queue.accounts);
    }

    #[test]
    fn drop_lru_never_evicts_a_class_above_the_new_one() {
        let mut queue = queue(2, FullPolicy::DropLru);
        fill(&mut queue, Interactive, 0..2);
        assert_eq!(queue.add(2, Batch), Enqueued::Refused { item: 2 });
        assert_eq!(queue.add(3, Interactive), Enqueued::Evicted { seq: TaskSeq(0), item: 0 });
    }

    #[test]
    fn shed_low_priority_takes_the_youngest_below_or_refuses() {
        let mut queue = queue(3, FullPolicy::ShedLowPriority);
        fill(&mut queue, Batch, 0..3);
        assert_eq!(queue.add(3, Batch), Enqueued::Refused { item: 3 });
        assert_eq!(queue.add(4, Interactive), Enqueued::Evicted { seq: TaskSeq(2), item: 2 });
    }

    #[test]
    fn a_full_class_makes_room_only_in_itself() {
        let bounds = |policy| Bounds { class: [1, 5], ..Bounds::of(10, policy) };
        let mut lru = Lab::new(bounds(FullPolicy::DropLru));
        fill(&mut lru, Interactive, 0..1);
        fill(&mut lru, Batch, 1..3);
        assert_eq!(lru.add(3, Interactive), Enqueued::Evicted { seq: TaskSeq(0), item: 0 });
        let mut shed = Lab::new(bounds(FullPolicy::ShedLowPriority));
        fill(&mut shed, Interactive, 0..1);
        fill(&mut shed, Batch, 1..3);
        assert_eq!(shed.add(3, Interactive), Enqueued::Refused { item: 3 });
    }

    #[test]
    fn a_pool_smaller_than_its_classes_makes_room_in_the_class_that_fills_it() {
        let mut lru = Lab::new(Bounds { class: [10, 10], ..Bounds::of(3, FullPolicy::DropLru) });
        fill(&mut lru, Interactive, 0..3);
        assert_eq!(lru.add(3, Interactive), Enqueued::Evicted { seq: TaskSeq(0), item: 0 });
    }

    #[test]
    fn a_task_that_comes_back_stands_where_its_number_says() {
        let mut queue = queue(9, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..5);
        let before = queue.accounts.tag(Interactive);
        let out: Vec<_> = (0..3).filter_map(|_| queue.dispatch()).collect();
        let client = ClientId::parse("only").expect("valid");
        for item in [out[1], out[2], out[0]] {
            let (seq, class) = (TaskSeq(item), Interactive);
            let arrival = Arrival { seq, class, client: &client, weight: 1, session: None, size: size() };
            assert!(queue.queue.put_back(&mut queue.accounts, arrival, item));
            assert!(!queue.queue.put_back(&mut queue.accounts, arrival, item), "twice is once");
        }
        queue.queue.invariants(&queue.accounts);
        assert_eq!(queue.accounts.tag(Interactive), before, "and has cost nobody anything");
        assert_eq!(drain(&mut queue), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_number_that_waits_already_changes_nothing() {
        let mut queue = queue(9, FullPolicy::Reject);
        fill(&mut queue, Interactive, 3..6);
        assert_eq!([3, 5].map(|number| queue.add(number, Interactive)), [Enqueued::Duplicate, Enqueued::Duplicate]);
        assert_eq!(drain(&mut queue), [3, 4, 5]);
        assert_eq!(queue.add(4, Interactive), Enqueued::Accepted, "it does not wait any more");
    }

    #[test]
    fn a_queue_says_whether_anybody_waits_and_whether_somebody_could_go() {
        let mut queue = queue(9, FullPolicy::Reject);
        let says = |lab: &Lab| (lab.queue.is_empty(), lab.queue.has_ready());
        assert_eq!(says(&queue), (true, false));
        queue.add_for("a", Some("s"), 0, Batch);
        assert_eq!(says(&queue), (false, true));
        queue.add_for("a", Some("s"), 1, Batch);
        assert_eq!(
            (queue.dispatch(), queue.dispatch(), says(&queue)),
            (Some(0), None, (false, false)),
            "it steps aside"
        );
        queue.settle(0);
        assert_eq!((says(&queue), queue.dispatch(), says(&queue)), ((false, true), Some(1), (true, false)));
    }

    #[test]
    fn a_client_passed_over_for_a_moment_has_its_turn_back_as_it_was() {
        let mut queue = queue(100, FullPolicy::Reject);
        let (a, b) = (ClientId::parse("a").expect("valid"), ClientId::parse("b").expect("valid"));
        queue.add_for("a", None, 0, Batch);
        for number in 1..10 {
            queue.add_for("b", None, number, Batch);
        }
        let not_a = |lab: &mut Lab| lab.queue.dispatch(&mut lab.accounts, |item| *item != 0).map(|(_, item)| item);
        assert_eq!([not_a(&mut queue), not_a(&mut queue), not_a(&mut queue)], [Some(1), Some(2), Some(3)]);
        let before = queue.accounts.time(&a, Batch);
        queue.queue.return_turn(&mut queue.accounts, &a);
        assert_eq!((queue.accounts.time(&a, Batch), queue.dispatch()), (before, Some(0)));
        // Nothing of it waits any more, or nothing ever did: there is no turn to have back.
        queue.queue.return_turn(&mut queue.accounts, &a);
        queue.queue.return_turn(&mut queue.accounts, &ClientId::parse("nobody").expect("valid"));
        queue.queue.return_turn(&mut queue.accounts, &b);
        assert_eq!(queue.dispatch(), Some(4));
    }

    #[test]
    fn a_client_whose_held_task_was_cancelled_has_no_turn_to_have_back() {
        let mut queue = queue(100, FullPolicy::Reject);
        let client = ClientId::parse("a").expect("valid");
        for number in 0..3 {
            queue.add_for("a", Some("s"), number, Batch);
        }
        assert_eq!((queue.dispatch(), queue.dispatch()), (Some(0), None), "the others of the conversation stand aside");
        queue.add_for("a", None, 3, Batch);
        assert!(queue.queue.dispatch(&mut queue.accounts, |item| *item != 3).is_none());
        assert_eq!(queue.queue.cancel(&mut queue.accounts, TaskSeq(3)), Some(3));
        queue.queue.return_turn(&mut queue.accounts, &client);
        queue.queue.invariants(&queue.accounts);
        assert_eq!(queue.dispatch(), None);
    }

    #[test]
    fn a_lane_out_of_numbers_takes_one_back_before_the_first_that_is_larger() {
        let mut queue = queue(100, FullPolicy::Reject);
        // Submitted in one moment on several threads, they came in this order.
        for number in [2, 7, 5, 9] {
            queue.add(number, Batch);
        }
        assert_eq!(queue.dispatch(), Some(2));
        let client = ClientId::parse("only").expect("valid");
        let arrival =
            Arrival { seq: TaskSeq(2), class: Batch, client: &client, weight: 1, session: None, size: size() };
        assert!(queue.queue.put_back(&mut queue.accounts, arrival, 2));
        let six = Arrival { seq: TaskSeq(6), ..arrival };
        assert!(queue.queue.put_back(&mut queue.accounts, six, 6));
        assert_eq!(drain(&mut queue), [2, 6, 7, 5, 9]);
    }

    #[test]
    fn position_counts_what_the_other_class_takes_meanwhile() {
        let mut queue = queue(100, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..18);
        fill(&mut queue, Batch, 50..60);
        assert_eq!(queue.ahead(Interactive), 18 + 2);
        assert_eq!(queue.ahead(Batch), 10 + 18);
    }

    #[test]
    fn clients_take_turns_however_many_tasks_one_has() {
        let mut queue = queue(100, FullPolicy::Reject);
        for number in 0..50 {
            queue.add_for("flood", None, number, Batch);
        }
        for number in 50..53 {
            queue.add_for("polite", None, number, Batch);
        }
        let first: Vec<u64> = (0..6).filter_map(|_| queue.dispatch()).collect();
        assert_eq!(first, [0, 50, 1, 51, 2, 52]);
    }

    #[test]
    fn equal_clients_go_by_name_though_their_ranks_change_while_they_wait() {
        let mut queue = queue(200, FullPolicy::DropLru);
        // Each name stands between the last and "b": the numbers between their ranks run out, and all are ranked anew.
        for number in 0..100 {
            queue.add_for(&format!("a{}", "a".repeat(number)), None, number as u64, Batch);
        }
        queue.add_for("b", None, 100, Batch);
        for number in 0..50 {
            let name = format!("b{}0", "0".repeat(50 - number));
            queue.add_for(&name, None, 200 - number as u64, Batch);
        }
        queue.queue.invariants(&queue.accounts);
        assert!(queue.accounts.ranks_version() > 0);
        let order: Vec<u64> = (0..=100).chain(151..=200).collect();
        assert_eq!(drain(&mut queue), order);
    }

    #[test]
    fn a_client_that_was_idle_gets_no_credit_for_it() {
        let mut queue = queue(100, FullPolicy::Reject);
        for number in 0..40 {
            queue.add_for("a", None, number, Batch);
        }
        for _ in 0..20 {
            queue.dispatch();
        }
        for number in 40..60 {
            queue.add_for("b", None, number, Batch);
        }
        let next: Vec<u64> = (0..6).filter_map(|_| queue.dispatch()).collect();
        assert_eq!(next, [40, 20, 41, 21, 42, 22], "its first is next, and not twenty of it in a row");
    }

    #[test]
    fn of_a_conversation_one_task_is_out_and_the_next_keeps_its_place() {
        let mut queue = queue(100, FullPolicy::Reject);
        for (number, session) in [(0, Some("s")), (1, Some("s")), (2, None), (3, Some("s")), (4, None)] {
            queue.add_for("a", session, number, Batch);
        }
        assert_eq!([queue.dispatch(), queue.dispatch()], [Some(0), Some(2)]);
        assert_eq!(queue.queue.len(), 3, "those that stand aside are counted");
        queue.settle(0);
        assert_eq!([queue.dispatch(), queue.dispatch(), queue.dispatch()], [Some(1), Some(4), None]);
        queue.settle(1);
        assert_eq!(queue.dispatch(), Some(3));
    }

    #[test]
    fn a_cancelled_turn_of_a_conversation_lets_the_next_one_go() {
        let mut queue = queue(100, FullPolicy::Reject);
        for number in 0..3 {
            queue.add_for("a", Some("s"), number, Batch);
        }
        assert_eq!([queue.dispatch(), queue.dispatch()], [Some(0), None]);
        queue.settle(0);
        assert_eq!(queue.queue.cancel(&mut queue.accounts, TaskSeq(1)), Some(1));
        assert_eq!(queue.dispatch(), Some(2));
    }

    #[test]
    fn a_client_that_may_not_run_is_passed_over_until_it_is_released() {
        let mut queue = queue(100, FullPolicy::Reject);
        queue.add_for("a", None, 0, Batch);
        queue.add_for("b", None, 1, Batch);
        let next = queue.queue.dispatch(&mut queue.accounts, |item| *item != 0).map(|(_, item)| item);
        assert_eq!((next, queue.dispatch()), (Some(1), None));
        queue.queue.release(&mut queue.accounts, &ClientId::parse("a").expect("valid"));
        assert_eq!(queue.dispatch(), Some(0));
    }

    #[test]
    fn a_new_queue_goes_on_where_the_last_one_stood() {
        let mut queue = queue(100, FullPolicy::Reject);
        for number in 0..9 {
            queue.add_for(["a", "b", "c"][number as usize % 3], Some("s"), number, Batch);
        }
        assert_eq!(queue.dispatch(), Some(0));
        let bounds = queue.queue.bounds;
        let mut accounts = queue.accounts;
        let mut after = Lab { queue: Queue::new(bounds, &mut accounts), accounts };
        for (number, name) in [(1, "b"), (3, "a"), (4, "b")] {
            after.add_for(name, Some("s"), number, Batch);
        }
        assert_eq!([after.dispatch(), after.dispatch()], [Some(1), None], "both conversations have a task out");
        after.settle(0);
        assert_eq!(after.dispatch(), Some(3));
    }
}
