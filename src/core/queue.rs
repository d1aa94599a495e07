//! The order of a pool's queue, and its bound (ORCH-3004, ORCH-3005).
//!
//! Two classes share the pool by weight, and inside a class order is FIFO. Every entry is found by its task's number
//! in O(1) at any depth, so a cancel costs the same for the first as for the millionth. Entries live in a slab and are
//! chained by index; in steady state nothing is allocated.
//!
//! A lane is one FIFO. A class has one today; lanes of their own for each client, charged in tokens, take their
//! place inside a class without changing what a caller sees.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::core::id::TaskSeq;
use crate::core::task::Priority;

/// Who goes when the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum FullPolicy {
    /// The new one.
    #[default]
    Reject,
    /// The oldest queued, batch before interactive; never one of a higher class than the new one.
    DropLru,
    /// The youngest of a lower class than the new one; with none, the new one.
    ShedLowPriority,
}

impl FullPolicy {
    /// The policy as it is written in configuration, errors and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            FullPolicy::Reject => "reject",
            FullPolicy::DropLru => "drop-lru",
            FullPolicy::ShedLowPriority => "shed-low-priority",
        }
    }
}

/// How much may wait, in tasks. All three bounds hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In the whole pool.
    pub pool: u32,
    /// In each class, by [`Priority::index`].
    pub class: [u32; 2],
    /// Who goes when there is no room.
    pub policy: FullPolicy,
}

/// Shares of the classes, by [`Priority::index`]: interactive gets nine dispatches for one of batch when both wait.
pub const CLASS_WEIGHTS: [u64; 2] = [9, 1];

/// Virtual time of one dispatch at weight 1. A multiple of each weight, so that shares are exact in integers.
const TICK: u64 = 9 * 1_000;
const _: () = assert!(TICK.is_multiple_of(CLASS_WEIGHTS[0]) && TICK.is_multiple_of(CLASS_WEIGHTS[1]));

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

/// Absent link.
const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Node<T> {
    seq: TaskSeq,
    class: Priority,
    prev: u32,
    next: u32,
    item: T,
}

/// One FIFO: the ends of a chain through the slab. Empty when both are [`NIL`].
#[derive(Debug)]
struct Lane {
    head: u32,
    tail: u32,
}

/// One class: its lane, its share and its count.
#[derive(Debug)]
struct Class {
    lane: Lane,
    /// Virtual time of the class (start-time fair queueing between classes, Goyal 1996, at one unit a task).
    tag: u64,
    count: u32,
}

/// Hashes a task number by one multiplication (Knuth's golden-ratio constant). The numbers are our own and dense, so
/// nobody can choose colliding ones, and SipHash would double the cost of a cancel.
#[derive(Default)]
pub struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        // The map takes its bucket from the low bits and its tag from the high ones: fold, so that both are mixed.
        let product = u128::from(number) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

type Index = HashMap<TaskSeq, u32, BuildHasherDefault<SeqHasher>>;

/// The waiting tasks of one pool. `T` is what the caller wants back.
#[derive(Debug)]
pub struct Queue<T> {
    nodes: Slab<Node<T>>,
    /// Invariant: holds exactly the sequence numbers of `nodes`.
    index: Index,
    classes: [Class; 2],
    /// Tag of the class that was dispatched last: a class that was empty starts here and gets no credit for its absence.
    virtual_time: u64,
    bounds: Bounds,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        let class = || Class { lane: Lane { head: NIL, tail: NIL }, tag: 0, count: 0 };
        Queue { nodes: Slab::new(), index: Index::default(), classes: [class(), class()], virtual_time: 0, bounds }
    }

    /// Number of tasks that wait.
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

    /// How many tasks are dispatched before the next one of `class` that is enqueued now, all weights counted in.
    pub fn ahead(&self, class: Priority) -> u64 {
        let own = u64::from(self.len_of(class));
        let other = 1 - class.index();
        let overtakes = (own + 1) * CLASS_WEIGHTS[other] / CLASS_WEIGHTS[class.index()];
        own + overtakes.min(u64::from(self.classes[other].count))
    }

    /// Takes a new task in at the end of its class, or applies the full policy.
    ///
    /// The bounds hold afterwards, also while another is evicted. O(1).
    pub fn enqueue(&mut self, seq: TaskSeq, class: Priority, item: T) -> Enqueued<T> {
        if self.contains(seq) {
            return Enqueued::Duplicate;
        }
        let Some(victim) = self.make_room(class) else {
            return Enqueued::Refused { item };
        };
        let evicted = victim.map(|key| self.remove(key));
        self.push_back(seq, class, item);
        match evicted {
            None => Enqueued::Accepted,
            Some((seq, item)) => Enqueued::Evicted { seq, item },
        }
    }

    /// Takes back a task that had been dispatched and was not begun: it keeps its place by its number.
    ///
    /// It was counted when it came, so no bound refuses it: the queue holds at most its capacity and the pool's slots.
    /// Returns whether it was taken; `false` when it waits already. O(1 + other returned tasks).
    pub fn put_back(&mut self, seq: TaskSeq, class: Priority, item: T) -> bool {
        if self.contains(seq) {
            return false;
        }
        let lane = &self.classes[class.index()].lane;
        // Behind everybody: the usual case of a queue that is filled again in order.
        let is_last = lane.tail != NIL && self.nodes[lane.tail as usize].seq < seq;
        let mut before = if is_last { NIL } else { lane.head };
        while before != NIL && self.nodes[before as usize].seq < seq {
            before = self.nodes[before as usize].next;
        }
        self.link(seq, class, item, before);
        true
    }

    /// Takes out the task whose turn it is. O(1).
    pub fn dispatch(&mut self) -> Option<(TaskSeq, T)> {
        let class = self.next_class()?;
        let turn = &mut self.classes[class.index()];
        let head = turn.lane.head;
        self.virtual_time = turn.tag;
        turn.tag += TICK / CLASS_WEIGHTS[class.index()];
        Some(self.remove(head))
    }

    /// Takes out this task, wherever it stands. O(1) at any depth.
    pub fn cancel(&mut self, seq: TaskSeq) -> Option<T> {
        let key = *self.index.get(&seq)?;
        Some(self.remove(key).1)
    }

    /// The class with the least virtual time that has something waiting; the more important one when equal.
    fn next_class(&self) -> Option<Priority> {
        let waiting = Priority::ALL.into_iter().filter(|class| self.len_of(*class) > 0);
        waiting.min_by_key(|class| (self.classes[class.index()].tag, class.index()))
    }

    /// `Some(None)`: there is room. `Some(Some(key))`: there is, once that one goes. `None`: there is none.
    fn make_room(&self, class: Priority) -> Option<Option<u32>> {
        let class_is_full = self.len_of(class) >= self.bounds.class[class.index()];
        if !class_is_full && self.len() < self.bounds.pool {
            return Some(None);
        }
        let victim = match self.bounds.policy {
            FullPolicy::Reject => NIL,
            // A full class can only make room in itself.
            FullPolicy::DropLru if class_is_full => self.classes[class.index()].lane.head,
            FullPolicy::DropLru => self.oldest_up_to(class),
            FullPolicy::ShedLowPriority if class_is_full => NIL,
            FullPolicy::ShedLowPriority => self.youngest_below(class),
        };
        (victim != NIL).then_some(Some(victim))
    }

    /// The oldest task of the least important class that waits and is not above `class`.
    fn oldest_up_to(&self, class: Priority) -> u32 {
        let batch_first = Priority::ALL.into_iter().rev().take_while(|other| *other >= class);
        batch_first.map(|other| self.classes[other.index()].lane.head).find(|head| *head != NIL).unwrap_or(NIL)
    }

    /// The youngest task of the least important class below `class`.
    fn youngest_below(&self, class: Priority) -> u32 {
        let below = Priority::ALL.into_iter().rev().take_while(|other| *other > class);
        below.map(|other| self.classes[other.index()].lane.tail).find(|tail| *tail != NIL).unwrap_or(NIL)
    }

    fn push_back(&mut self, seq: TaskSeq, class: Priority, item: T) {
        self.link(seq, class, item, NIL);
    }

    /// Chains a new node in front of `before`, at the end when that is [`NIL`].
    fn link(&mut self, seq: TaskSeq, class: Priority, item: T, before: u32) {
        let slot = &mut self.classes[class.index()];
        if slot.count == 0 {
            slot.tag = slot.tag.max(self.virtual_time);
        }
        slot.count += 1;
        let prev = if before == NIL { slot.lane.tail } else { self.nodes[before as usize].prev };
        let key = self.nodes.insert(Node { seq, class, prev, next: before, item }) as u32;
        match prev {
            NIL => slot.lane.head = key,
            prev => self.nodes[prev as usize].next = key,
        }
        match before {
            NIL => slot.lane.tail = key,
            next => self.nodes[next as usize].prev = key,
        }
        self.index.insert(seq, key);
    }

    fn remove(&mut self, key: u32) -> (TaskSeq, T) {
        let node = self.nodes.remove(key as usize);
        let class = &mut self.classes[node.class.index()];
        class.count -= 1;
        match node.prev {
            NIL => class.lane.head = node.next,
            prev => self.nodes[prev as usize].next = node.next,
        }
        match node.next {
            NIL => class.lane.tail = node.prev,
            next => self.nodes[next as usize].prev = node.prev,
        }
        self.index.remove(&node.seq);
        (node.seq, node.item)
    }

    /// Checks what must always hold, by full scans. For tests and simulation.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn invariants(&self) {
        assert_eq!(self.nodes.len(), self.index.len(), "every node is indexed");
        for class in Priority::ALL {
            let (mut at, mut prev, mut count) = (self.classes[class.index()].lane.head, NIL, 0);
            while at != NIL {
                let node = &self.nodes[at as usize];
                assert_eq!((node.prev, node.class), (prev, class), "links agree");
                assert_eq!(self.index.get(&node.seq), Some(&at), "the index finds the node");
                (prev, at, count) = (at, node.next, count + 1);
            }
            assert_eq!(self.classes[class.index()].lane.tail, prev, "the chain ends at the tail");
            assert_eq!(self.len_of(class), count, "the count is the chain's length");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Priority::{Batch, Interactive};
    use super::*;

    fn queue(pool: u32, policy: FullPolicy) -> Queue<u64> {
        Queue::new(Bounds { pool, class: [pool, pool], policy })
    }

    fn fill(queue: &mut Queue<u64>, class: Priority, numbers: std::ops::Range<u64>) {
        for number in numbers {
            assert_eq!(queue.enqueue(TaskSeq(number), class, number), Enqueued::Accepted);
        }
    }

    fn drain(queue: &mut Queue<u64>) -> Vec<u64> {
        std::iter::from_fn(|| queue.dispatch().map(|(_, item)| item)).collect()
    }

    #[test]
    fn order_inside_a_class_is_fifo() {
        let mut queue = queue(9, FullPolicy::Reject);
        fill(&mut queue, Batch, 0..5);
        assert_eq!(queue.cancel(TaskSeq(2)), Some(2));
        queue.invariants();
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
        assert_eq!(queue.enqueue(TaskSeq(9), Interactive, 9), Enqueued::Refused { item: 9 });
        assert_eq!(drain(&mut queue), [0, 1]);
    }

    #[test]
    fn drop_lru_takes_the_oldest_batch_before_any_interactive() {
        let mut queue = queue(3, FullPolicy::DropLru);
        fill(&mut queue, Interactive, 0..1);
        fill(&mut queue, Batch, 1..3);
        let evicted = queue.enqueue(TaskSeq(3), Interactive, 3);
        assert_eq!(evicted, Enqueued::Evicted { seq: TaskSeq(1), item: 1 });
        queue.invariants();
    }

    #[test]
    fn drop_lru_never_evicts_a_class_above_the_new_one() {
        let mut queue = queue(2, FullPolicy::DropLru);
        fill(&mut queue, Interactive, 0..2);
        assert_eq!(queue.enqueue(TaskSeq(2), Batch, 2), Enqueued::Refused { item: 2 });
        assert_eq!(queue.enqueue(TaskSeq(3), Interactive, 3), Enqueued::Evicted { seq: TaskSeq(0), item: 0 });
    }

    #[test]
    fn shed_low_priority_takes_the_youngest_below_or_refuses() {
        let mut queue = queue(3, FullPolicy::ShedLowPriority);
        fill(&mut queue, Batch, 0..3);
        assert_eq!(queue.enqueue(TaskSeq(3), Batch, 3), Enqueued::Refused { item: 3 });
        assert_eq!(queue.enqueue(TaskSeq(4), Interactive, 4), Enqueued::Evicted { seq: TaskSeq(2), item: 2 });
    }

    #[test]
    fn a_full_class_makes_room_only_in_itself() {
        let bounds = |policy| Bounds { pool: 10, class: [1, 5], policy };
        let mut lru = Queue::new(bounds(FullPolicy::DropLru));
        fill(&mut lru, Interactive, 0..1);
        fill(&mut lru, Batch, 1..3);
        assert_eq!(lru.enqueue(TaskSeq(3), Interactive, 3), Enqueued::Evicted { seq: TaskSeq(0), item: 0 });
        let mut shed = Queue::new(bounds(FullPolicy::ShedLowPriority));
        fill(&mut shed, Interactive, 0..1);
        fill(&mut shed, Batch, 1..3);
        assert_eq!(shed.enqueue(TaskSeq(3), Interactive, 3), Enqueued::Refused { item: 3 });
    }

    #[test]
    fn a_task_that_comes_back_stands_where_its_number_says() {
        let mut queue = queue(9, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..5);
        let out: Vec<_> = (0..3).filter_map(|_| queue.dispatch()).collect();
        for (seq, item) in [out[1], out[2], out[0]] {
            assert!(queue.put_back(seq, Interactive, item));
            assert!(!queue.put_back(seq, Interactive, item), "twice is once");
        }
        queue.invariants();
        assert_eq!(drain(&mut queue), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn position_counts_what_the_other_class_takes_meanwhile() {
        let mut queue = queue(100, FullPolicy::Reject);
        fill(&mut queue, Interactive, 0..18);
        fill(&mut queue, Batch, 50..60);
        assert_eq!(queue.ahead(Interactive), 18 + 2);
        assert_eq!(queue.ahead(Batch), 10 + 18);
    }
}
