//! What enqueue + dispatch and cancel cost in a pool's queue, beside the plainest structure that could do it: a slab, a
//! linked list and a `HashMap` by id, without classes, bounds or policies. Alternating in one run.
//!
//! `cargo bench --bench queue` (criterion), or `cargo bench --bench queue -- --table` for medians and ratios alone.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use orchestrator_core::Priority;
use orchestrator_core::core::TaskSeq;
use orchestrator_core::core::queue::{Bounds, FullPolicy, Queue};
use slab::Slab;

const DEPTHS: [u64; 3] = [1_000, 100_000, 1_000_000];
const ROUNDS: usize = 9;
const HELD: u64 = 200_000;
const NIL: u32 = u32::MAX;

/// What both queues carry: a pointer, as the runtime's queue does.
type Item = Arc<()>;

struct Node {
    id: u64,
    prev: u32,
    next: u32,
    item: Item,
}

/// The anchor.
struct Anchor {
    slab: Slab<Node>,
    by_id: HashMap<u64, u32>,
    head: u32,
    tail: u32,
}

impl Anchor {
    fn take(&mut self, key: u32) -> Item {
        let node = self.slab.remove(key as usize);
        match node.prev {
            NIL => self.head = node.next,
            prev => self.slab[prev as usize].next = node.next,
        }
        match node.next {
            NIL => self.tail = node.prev,
            next => self.slab[next as usize].prev = node.prev,
        }
        self.by_id.remove(&node.id);
        node.item
    }
}

trait Subject {
    fn empty(depth: u64) -> Self;
    fn enqueue(&mut self, id: u64, item: Item);
    fn dispatch(&mut self) -> Option<Item>;
    fn cancel(&mut self, id: u64) -> Option<Item>;
}

impl Subject for Anchor {
    fn empty(_: u64) -> Self {
        Anchor { slab: Slab::new(), by_id: HashMap::new(), head: NIL, tail: NIL }
    }
    fn enqueue(&mut self, id: u64, item: Item) {
        let key = self.slab.insert(Node { id, prev: self.tail, next: NIL, item }) as u32;
        match self.tail {
            NIL => self.head = key,
            tail => self.slab[tail as usize].next = key,
        }
        self.tail = key;
        self.by_id.insert(id, key);
    }
    fn dispatch(&mut self) -> Option<Item> {
        (self.head != NIL).then(|| self.take(self.head))
    }
    fn cancel(&mut self, id: u64) -> Option<Item> {
        let key = *self.by_id.get(&id)?;
        Some(self.take(key))
    }
}

impl Subject for Queue<Item> {
    fn empty(depth: u64) -> Self {
        let most = depth as u32 + 1;
        Queue::new(Bounds { pool: most, class: [most, most], policy: FullPolicy::Reject })
    }
    fn enqueue(&mut self, id: u64, item: Item) {
        // One task in four is batch: both classes are in play.
        let class = if id.is_multiple_of(4) { Priority::Batch } else { Priority::Interactive };
        black_box(Queue::enqueue(self, TaskSeq(id), class, item));
    }
    fn dispatch(&mut self) -> Option<Item> {
        Queue::dispatch(self).map(|(_, item)| item)
    }
    fn cancel(&mut self, id: u64) -> Option<Item> {
        Queue::cancel(self, TaskSeq(id))
    }
}

fn filled<S: Subject>(depth: u64, item: &Item) -> S {
    let mut subject = S::empty(depth);
    (0..depth).for_each(|id| subject.enqueue(id, item.clone()));
    subject
}

/// Nanoseconds for one enqueue and one dispatch at a held depth.
fn held<S: Subject>(depth: u64, item: &Item) -> f64 {
    let mut subject: S = filled(depth, item);
    let start = Instant::now();
    for id in depth..depth + HELD {
        subject.enqueue(id, item.clone());
        black_box(subject.dispatch());
    }
    start.elapsed().as_nanos() as f64 / HELD as f64
}

/// Nanoseconds to cancel by id, half of all tasks in random order.
fn canceled<S: Subject>(depth: u64, item: &Item, order: &[u64]) -> f64 {
    let mut subject: S = filled(depth, item);
    let start = Instant::now();
    let found = order.iter().filter(|id| subject.cancel(**id).is_some()).count();
    assert_eq!(found, order.len());
    start.elapsed().as_nanos() as f64 / order.len() as f64
}

fn random_half(depth: u64) -> Vec<u64> {
    let mut ids: Vec<u64> = (0..depth).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut ids);
    ids.truncate(depth as usize / 2);
    ids
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, depth: u64, mut anchor: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) {
    let pairs: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (anchor(), ours())).collect();
    let ratio = median(pairs.iter().map(|(anchor, ours)| ours / anchor).collect());
    let (anchor, ours) =
        (median(pairs.iter().map(|pair| pair.0).collect()), median(pairs.iter().map(|pair| pair.1).collect()));
    println!("{name:20} depth {depth:>9}   ours {ours:7.1} ns   anchor {anchor:7.1} ns   ratio {ratio:5.2}");
}

fn table() {
    let item = Item::default();
    for depth in DEPTHS {
        row("enqueue + dispatch", depth, || held::<Anchor>(depth, &item), || held::<Queue<Item>>(depth, &item));
    }
    for depth in DEPTHS {
        let order = random_half(depth);
        row(
            "cancel by id",
            depth,
            || canceled::<Anchor>(depth, &item, &order),
            || canceled::<Queue<Item>>(depth, &item, &order),
        );
    }
}

fn held_loop<S: Subject>(criterion: &mut Criterion, name: &str) {
    let item = Item::default();
    let mut group = criterion.benchmark_group("enqueue + dispatch");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for depth in DEPTHS {
        let (mut subject, mut next): (S, u64) = (filled(depth, &item), depth);
        group.bench_function(BenchmarkId::new(name, depth), |bencher| {
            bencher.iter(|| {
                subject.enqueue(next, item.clone());
                next += 1;
                black_box(subject.dispatch())
            });
        });
    }
    group.finish();
}

fn main() {
    if std::env::args().any(|argument| argument == "--table") {
        return table();
    }
    let mut criterion = Criterion::default().configure_from_args();
    held_loop::<Anchor>(&mut criterion, "slab + list + HashMap");
    held_loop::<Queue<Item>>(&mut criterion, "orchestrator-core");
    criterion.final_summary();
}
