//! What a pool's queue costs at 1 k to 1 M waiting tasks of 1 to 10,000 clients, beside the plainest structure that
//! could hold them: a slab, a linked list and a `HashMap` by id, without classes, clients, accounts, bounds or
//! policies. Alternating in one run.
//!
//! `cargo bench --bench queue` (criterion), or `cargo bench --bench queue -- --table` for medians and ratios alone.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use orchestrator_core::Priority;
use orchestrator_core::core::fairness::{Accounts, CostWeights, Served, Size};
use orchestrator_core::core::queue::overflow::{Bounds, FullPolicy};
use orchestrator_core::core::queue::{Arrival, Enqueued, Queue};
use orchestrator_core::core::{ClientId, TaskSeq, Tokens};
use slab::Slab;

const DEPTHS: [u64; 3] = [1_000, 100_000, 1_000_000];
const CLIENTS: [usize; 3] = [1, 100, 10_000];
const ROUNDS: usize = 7;
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
    fn empty(depth: u64, clients: usize, policy: FullPolicy) -> Self;
    fn enqueue(&mut self, id: u64, item: Item);
    /// Takes the next one out.
    fn dispatch(&mut self) -> Option<(u64, Item)>;
    /// A task that was taken out has come to its end.
    fn settle(&mut self, id: u64);
    fn cancel(&mut self, id: u64) -> Option<Item>;
    /// Enqueues into a full queue: the oldest goes.
    fn evict(&mut self, id: u64, item: Item) -> Option<Item>;
}

impl Subject for Anchor {
    fn empty(_: u64, _: usize, _: FullPolicy) -> Self {
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
    fn dispatch(&mut self) -> Option<(u64, Item)> {
        (self.head != NIL).then(|| (0, self.take(self.head)))
    }
    fn settle(&mut self, _: u64) {}
    fn cancel(&mut self, id: u64) -> Option<Item> {
        let key = *self.by_id.get(&id)?;
        Some(self.take(key))
    }
    fn evict(&mut self, id: u64, item: Item) -> Option<Item> {
        let oldest = self.dispatch();
        self.enqueue(id, item);
        oldest.map(|(_, item)| item)
    }
}

/// The queue with its accounts; task `id` is of client `id` modulo their number.
struct Ours {
    queue: Queue<Item>,
    accounts: Accounts,
    clients: Vec<ClientId>,
    /// Where nobody is evicted, one task in four is batch: both classes are in play.
    batch: bool,
}

impl Ours {
    fn add(&mut self, id: u64, item: Item) -> Enqueued<Item> {
        let class = if self.batch && id.is_multiple_of(4) { Priority::Batch } else { Priority::Interactive };
        let (prompt, output_max) = (Tokens(100 + id as u32 % 512), Tokens(64));
        let size = Size::new(prompt, output_max, None);
        let client = &self.clients[(id % self.clients.len() as u64) as usize];
        let arrival = Arrival { seq: TaskSeq(id), class, client, weight: 1, session: None, size };
        self.queue.enqueue(&mut self.accounts, arrival, item)
    }
}

impl Subject for Ours {
    fn empty(depth: u64, clients: usize, policy: FullPolicy) -> Self {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let room = if policy == FullPolicy::DropLru { depth } else { depth + 1 };
        let queue = Queue::new(Bounds::of(room as u32, policy), &mut accounts);
        let clients = (0..clients).map(|number| ClientId::parse(&format!("client-{number}")).unwrap()).collect();
        Ours { queue, accounts, clients, batch: policy == FullPolicy::Reject }
    }
    fn enqueue(&mut self, id: u64, item: Item) {
        black_box(self.add(id, item));
    }
    fn dispatch(&mut self) -> Option<(u64, Item)> {
        self.queue.dispatch(&mut self.accounts, |_| true).map(|(seq, item)| (seq.0, item))
    }
    fn settle(&mut self, id: u64) {
        let served = Served::Whole { prompt: Tokens(100), output: Tokens(id as u32 % 64) };
        self.queue.settle(&mut self.accounts, TaskSeq(id), served);
    }
    fn cancel(&mut self, id: u64) -> Option<Item> {
        self.queue.cancel(&mut self.accounts, TaskSeq(id))
    }
    fn evict(&mut self, id: u64, item: Item) -> Option<Item> {
        match self.add(id, item) {
            Enqueued::Evicted { item, .. } => Some(item),
            _ => None,
        }
    }
}

fn filled<S: Subject>(depth: u64, clients: usize, policy: FullPolicy, item: &Item) -> S {
    let mut subject = S::empty(depth, clients, policy);
    (0..depth).for_each(|id| subject.enqueue(id, item.clone()));
    subject
}

/// Tasks that are out at a time.
const OUT: usize = 64;

/// Nanoseconds for one enqueue and one dispatch at a held depth; with `settles`, for the task's settlement too.
fn held<S: Subject>(depth: u64, clients: usize, item: &Item, settles: bool) -> f64 {
    let mut subject: S = filled(depth, clients, FullPolicy::Reject, item);
    let mut out = Vec::with_capacity(OUT);
    let (mut next, mut elapsed) = (depth, Duration::ZERO);
    for _ in 0..HELD / OUT as u64 {
        let start = Instant::now();
        for _ in 0..OUT {
            subject.enqueue(next, item.clone());
            next += 1;
            out.extend(subject.dispatch());
        }
        let dispatched = start.elapsed();
        out.drain(..).for_each(|(id, _)| subject.settle(id));
        elapsed += if settles { start.elapsed() } else { dispatched };
    }
    elapsed.as_nanos() as f64 / HELD as f64
}

/// Nanoseconds to cancel by id, half of all tasks in random order.
fn canceled<S: Subject>(depth: u64, clients: usize, item: &Item, order: &[u64]) -> f64 {
    let mut subject: S = filled(depth, clients, FullPolicy::Reject, item);
    let start = Instant::now();
    let found = order.iter().filter(|id| subject.cancel(**id).is_some()).count();
    assert_eq!(found, order.len());
    start.elapsed().as_nanos() as f64 / order.len() as f64
}

/// Nanoseconds to enqueue into a full queue that drops the oldest of the longest.
fn evicted<S: Subject>(depth: u64, clients: usize, item: &Item) -> f64 {
    let mut subject: S = filled(depth, clients, FullPolicy::DropLru, item);
    let start = Instant::now();
    // Beside more clients than places, a newcomer may be the one that goes.
    let gone = (depth..depth + HELD).filter(|id| subject.evict(*id, item.clone()).is_some()).count();
    black_box(gone);
    start.elapsed().as_nanos() as f64 / HELD as f64
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

fn row(name: &str, depth: u64, clients: usize, mut anchor: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) {
    let pairs: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (anchor(), ours())).collect();
    let ratio = median(pairs.iter().map(|(anchor, ours)| ours / anchor).collect());
    let (anchor, ours) =
        (median(pairs.iter().map(|pair| pair.0).collect()), median(pairs.iter().map(|pair| pair.1).collect()));
    println!(
        "{name:9} {depth:>9} waiting {clients:>6} clients   ours {ours:7.1} ns   anchor {anchor:7.1} ns   ratio {ratio:5.2}"
    );
}

fn table() {
    let item = Item::default();
    for (depth, clients) in DEPTHS.into_iter().flat_map(|depth| CLIENTS.map(|clients| (depth, clients))) {
        let anchor = || held::<Anchor>(depth, clients, &item, false);
        row("dispatch", depth, clients, anchor, || held::<Ours>(depth, clients, &item, false));
    }
    for (depth, clients) in DEPTHS.into_iter().flat_map(|depth| CLIENTS.map(|clients| (depth, clients))) {
        let anchor = || held::<Anchor>(depth, clients, &item, true);
        row("+ settle", depth, clients, anchor, || held::<Ours>(depth, clients, &item, true));
    }
    for (depth, clients) in DEPTHS.into_iter().flat_map(|depth| CLIENTS.map(|clients| (depth, clients))) {
        let anchor = || evicted::<Anchor>(depth, clients, &item);
        row("evict", depth, clients, anchor, || evicted::<Ours>(depth, clients, &item));
    }
    for (depth, clients) in DEPTHS.into_iter().flat_map(|depth| CLIENTS.map(|clients| (depth, clients))) {
        let order = random_half(depth);
        let anchor = || canceled::<Anchor>(depth, clients, &item, &order);
        row("cancel", depth, clients, anchor, || canceled::<Ours>(depth, clients, &item, &order));
    }
}

fn held_loop<S: Subject>(criterion: &mut Criterion, name: &str) {
    let item = Item::default();
    let mut group = criterion.benchmark_group("enqueue + dispatch + settle");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for (depth, clients) in DEPTHS.into_iter().flat_map(|depth| CLIENTS.map(|clients| (depth, clients))) {
        let (mut subject, mut next): (S, u64) = (filled(depth, clients, FullPolicy::Reject, &item), depth);
        group.bench_function(BenchmarkId::new(name, format!("{depth} x {clients}")), |bencher| {
            bencher.iter(|| {
                subject.enqueue(next, item.clone());
                next += 1;
                let (id, item) = subject.dispatch().unwrap();
                subject.settle(id);
                black_box(item)
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
    held_loop::<Ours>(&mut criterion, "orchestrator-core");
    criterion.final_summary();
}
