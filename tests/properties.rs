//! Each pure machine against a naive model that could not be more different.
#![allow(missing_docs, clippy::unwrap_used)]

use orchestrator_core::Priority;
use orchestrator_core::core::TaskSeq;
use orchestrator_core::core::queue::{Bounds, CLASS_WEIGHTS, Enqueued, FullPolicy, Queue};
use proptest::prelude::*;

/// The queue as a flat list with full scans.
struct Flat {
    tasks: Vec<(u64, Priority)>,
    /// Dispatches of each class, in units of its weight's inverse.
    tags: [u64; 2],
    now: u64,
    bounds: Bounds,
}

impl Flat {
    fn count(&self, class: Priority) -> u32 {
        self.tasks.iter().filter(|task| task.1 == class).count() as u32
    }

    /// Outcome of an enqueue: `None` refused, `Some(None)` accepted, `Some(Some(seq))` accepted for another's place.
    fn enqueue(&mut self, seq: u64, class: Priority) -> Option<Option<u64>> {
        let class_full = self.count(class) >= self.bounds.class[class.index()];
        let mut victim = None;
        if class_full || self.tasks.len() as u32 >= self.bounds.pool {
            let may_go = |task: &&(u64, Priority)| match self.bounds.policy {
                FullPolicy::Reject => false,
                FullPolicy::DropLru => {
                    if class_full {
                        task.1 == class
                    } else {
                        task.1 >= class
                    }
                }
                FullPolicy::ShedLowPriority => !class_full && task.1 > class,
            };
            // The least important class, then the oldest, or the youngest when shedding.
            let shed = self.bounds.policy == FullPolicy::ShedLowPriority;
            let candidates = self.tasks.iter().filter(may_go);
            victim = Some(
                candidates
                    .min_by_key(|task| (std::cmp::Reverse(task.1), if shed { u64::MAX - task.0 } else { task.0 }))?
                    .0,
            );
        }
        self.tasks.retain(|task| Some(task.0) != victim);
        self.insert(seq, class);
        Some(victim)
    }

    fn insert(&mut self, seq: u64, class: Priority) {
        if self.count(class) == 0 {
            self.tags[class.index()] = self.tags[class.index()].max(self.now);
        }
        self.tasks.push((seq, class));
    }

    fn dispatch(&mut self) -> Option<u64> {
        let classes = Priority::ALL.into_iter().filter(|class| self.count(*class) > 0);
        let class = classes.min_by_key(|class| (self.tags[class.index()], class.index()))?;
        self.now = self.tags[class.index()];
        self.tags[class.index()] += 9_000 / CLASS_WEIGHTS[class.index()];
        let seq = self.tasks.iter().filter(|task| task.1 == class).map(|task| task.0).min()?;
        self.tasks.retain(|task| task.0 != seq);
        Some(seq)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enqueue(Priority),
    Dispatch,
    /// Gives back the n-th of the dispatched tasks.
    PutBack(usize),
    /// Cancels the n-th of all tasks ever enqueued.
    Cancel(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let class = prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)];
    let op = prop_oneof![
        4 => class.prop_map(Op::Enqueue),
        3 => Just(Op::Dispatch),
        1 => (0usize..50).prop_map(Op::PutBack),
        2 => (0usize..400).prop_map(Op::Cancel),
    ];
    proptest::collection::vec(op, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_a_flat_list_does(
        ops in ops(),
        pool in 0u32..12,
        interactive in 0u32..12,
        batch in 0u32..12,
        policy in prop_oneof![Just(FullPolicy::Reject), Just(FullPolicy::DropLru), Just(FullPolicy::ShedLowPriority)],
    ) {
        let bounds = Bounds { pool, class: [interactive.min(pool), batch.min(pool)], policy };
        let mut queue: Queue<u64> = Queue::new(bounds);
        let mut flat = Flat { tasks: Vec::new(), tags: [0; 2], now: 0, bounds };
        let (mut next, mut out) = (0, Vec::new());
        let mut classes = Vec::new();
        for op in ops {
            match op {
                Op::Enqueue(class) => {
                    let expected = flat.enqueue(next, class);
                    match queue.enqueue(TaskSeq(next), class, next) {
                        Enqueued::Accepted => {
                            prop_assert_eq!(expected, Some(None));
                            prop_assert!(queue.len() <= pool, "the pool's bound");
                            prop_assert!(queue.len_of(class) <= bounds.class[class.index()], "the class's bound");
                        }
                        Enqueued::Evicted { seq, item } => {
                            prop_assert_eq!(seq.0, item);
                            prop_assert_eq!(expected, Some(Some(item)));
                        }
                        Enqueued::Refused { item } => {
                            prop_assert_eq!(item, next);
                            prop_assert_eq!(expected, None);
                        }
                        Enqueued::Duplicate => prop_assert!(false, "numbers are new"),
                    }
                    classes.push(class);
                    next += 1;
                }
                Op::Dispatch => {
                    let dispatched = queue.dispatch().map(|(_, item)| item);
                    prop_assert_eq!(dispatched, flat.dispatch());
                    out.extend(dispatched);
                }
                Op::PutBack(nth) if !out.is_empty() => {
                    let seq = out.swap_remove(nth % out.len());
                    let class = classes[seq as usize];
                    prop_assert!(queue.put_back(TaskSeq(seq), class, seq));
                    flat.insert(seq, class);
                }
                Op::PutBack(_) => {}
                Op::Cancel(nth) => {
                    let seq = nth as u64;
                    let waits = flat.tasks.iter().any(|task| task.0 == seq);
                    flat.tasks.retain(|task| task.0 != seq);
                    prop_assert_eq!(queue.cancel(TaskSeq(seq)), waits.then_some(seq));
                }
            }
            queue.invariants();
            for class in Priority::ALL {
                prop_assert_eq!(queue.len_of(class), flat.count(class));
            }
        }
    }
}
