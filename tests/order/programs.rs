//! Random programs of operations, run on the queue and on the model side by side. Every return value must be equal, and
//! the invariants F7 to F13 hold after each operation.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use orchestrator_core::Priority;
use orchestrator_core::core::fairness::{Accounts, CostWeights, Served, Size};
use orchestrator_core::core::queue::overflow::{Bounds, FullPolicy};
use orchestrator_core::core::queue::{Arrival, Enqueued, Queue};
use orchestrator_core::core::{ClientId, SessionId, TaskSeq, Tokens};

use crate::model::{Model, Taken, Task};

const OPERATIONS: usize = 400;

#[derive(Clone, Debug)]
struct Config {
    bounds: Bounds,
    costs: (u32, u32),
    class_weights: [u32; 2],
    /// Weight of each client.
    weights: Vec<u32>,
    /// Most tasks that are out at once.
    slots: usize,
    sessions: u32,
}

#[derive(Clone, Debug)]
enum Op {
    Enqueue {
        class: usize,
        client: usize,
        session: Option<u32>,
        prompt: u32,
        most: u32,
        expected: Option<u32>,
    },
    /// Dispatches one; clients in the mask may not run now.
    Dispatch {
        barred: u8,
    },
    Cancel {
        nth: usize,
    },
    PutBack {
        nth: usize,
    },
    /// Ends one that is out, with so much of its budget generated, in percent.
    Settle {
        nth: usize,
        percent: u32,
        whole: bool,
    },
    Release {
        client: usize,
    },
    /// The queue dies; a new one is filled with what waited.
    Restart,
}

/// The worst that was seen, so that a run shows that it tried.
#[derive(Default, Debug)]
pub struct Seen {
    dispatched: u64,
    evicted: u64,
    refused: u64,
    canceled: u64,
    returned: u64,
    settled: u64,
    passed_over: u64,
    restarts: u64,
}

fn pick<T: Copy>(dice: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[dice.usize(..choices.len())]
}

fn config(dice: &mut fastrand::Rng) -> Config {
    let pool = pick(dice, &[0, 1, 3, 6, 12, 30, 60]);
    let class = [dice.u32(0..=pool), pool];
    let class = pick(dice, &[[pool; 2], class, [class[1], class[0]]]);
    let policy = pick(dice, &FullPolicy::ALL);
    let reserve_percent = pick(dice, &[0, 0, 10, 30, 50]);
    let clients = 1 + dice.usize(..6);
    Config {
        bounds: Bounds { pool, class, policy, reserve_percent },
        costs: pick(dice, &[(1, 2), (0, 1), (3, 7)]),
        class_weights: pick(dice, &[[9, 1], [1, 1], [1_000_000, 1], [2, 3]]),
        weights: (0..clients).map(|_| pick(dice, &[1, 1, 2, 3, 7, 1_000])).collect(),
        slots: pick(dice, &[1, 2, 8]),
        sessions: pick(dice, &[1, 2, 4]),
    }
}

fn operation(dice: &mut fastrand::Rng, clients: usize, sessions: u32) -> Op {
    match dice.u32(..16) {
        0..=6 => Op::Enqueue {
            class: dice.usize(..2),
            client: dice.usize(..clients),
            session: (dice.u32(..3) == 0).then(|| dice.u32(..sessions)),
            prompt: dice.u32(1..50),
            most: dice.u32(1..50),
            expected: dice.bool().then(|| dice.u32(..60)),
        },
        7..=10 => Op::Dispatch { barred: if dice.u32(..4) == 0 { dice.u8(..) } else { 0 } },
        11 => Op::Cancel { nth: dice.usize(..1_000) },
        12 => Op::PutBack { nth: dice.usize(..1_000) },
        13 | 14 => Op::Settle { nth: dice.usize(..1_000), percent: dice.u32(..=100), whole: dice.bool() },
        _ if dice.u32(..8) == 0 => Op::Restart,
        _ => Op::Release { client: dice.usize(..clients) },
    }
}

fn program(seed: u64) -> (Config, Vec<Op>) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let config = config(&mut dice);
    // Some programs fill the queue more than others.
    let ops = (0..OPERATIONS).map(|_| operation(&mut dice, config.weights.len(), config.sessions)).collect();
    (config, ops)
}

fn client(number: usize) -> ClientId {
    // Names whose order is not that of their first appearance.
    ClientId::parse(&format!("c{}", 9 - number)).unwrap()
}

struct Run {
    config: Config,
    queue: Queue<u64>,
    accounts: Accounts,
    model: Model,
    next: u64,
    accepted: u64,
    ended: u64,
    /// Client and class of every task.
    owner: BTreeMap<u64, (String, usize)>,
    seen: Seen,
}

const CLASSES: [Priority; 2] = Priority::ALL;

impl Run {
    fn new(config: &Config) -> Self {
        let costs = CostWeights { prompt: config.costs.0, output: config.costs.1 };
        let mut accounts = Accounts::new(costs, config.class_weights);
        let queue = Queue::new(config.bounds, &mut accounts);
        let model = Model::new(config.bounds, config.costs, config.class_weights);
        Run {
            config: config.clone(),
            queue,
            accounts,
            model,
            next: 0,
            accepted: 0,
            ended: 0,
            owner: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Enqueue { class, client, session, prompt, most, expected } => {
                let size = Size::new(Tokens(prompt), Tokens(most), expected.map(Tokens));
                self.enqueue(class, client, session, size);
            }
            Op::Dispatch { barred } => self.dispatch(barred),
            Op::Cancel { nth } => {
                let seq = nth as u64 % (self.next + 1);
                let found = self.queue.cancel(&mut self.accounts, TaskSeq(seq));
                assert_eq!(found.is_some(), self.model.cancel(seq), "cancel {seq}");
                assert!(found.is_none_or(|item| item == seq));
                self.ended += u64::from(found.is_some());
                self.seen.canceled += u64::from(found.is_some());
            }
            Op::PutBack { nth } if !self.model.out.is_empty() => {
                let task = self.model.out[nth % self.model.out.len()].task.clone();
                let (id, session) = names(&task);
                assert!(self.queue.put_back(&mut self.accounts, arrival(&task, &id, session.as_ref()), task.seq));
                self.model.put_back(task.seq);
                self.seen.returned += 1;
            }
            Op::Settle { nth, percent, whole } if !self.model.out.is_empty() => {
                let task = self.model.out[nth % self.model.out.len()].task.clone();
                let (prompt, output) = (task.size.prompt, Tokens(task.size.output_max.0 * percent / 100));
                let served = if whole { Served::Whole { prompt, output } } else { Served::Part { prompt, output } };
                assert!(self.queue.settle(&mut self.accounts, TaskSeq(task.seq), served));
                assert!(self.model.settle(task.seq, served));
                assert!(!self.queue.settle(&mut self.accounts, TaskSeq(task.seq), served), "once");
                self.ended += 1;
                self.seen.settled += 1;
            }
            Op::PutBack { .. } | Op::Settle { .. } => {}
            Op::Restart => {
                self.queue = Queue::new(self.config.bounds, &mut self.accounts);
                for task in self.model.restart() {
                    let (id, session) = names(&task);
                    assert!(self.queue.put_back(&mut self.accounts, arrival(&task, &id, session.as_ref()), task.seq));
                }
                self.seen.restarts += 1;
            }
            Op::Release { client: number } => {
                self.queue.release(&mut self.accounts, &client(number));
                self.model.release(client(number).as_str());
            }
        }
        self.check();
    }

    fn enqueue(&mut self, class: usize, number: usize, session: Option<u32>, size: Size) {
        let (seq, id, weight) = (self.next, client(number), self.config.weights[number]);
        self.next += 1;
        let task = Task::new(seq, class, id.as_str(), weight, session.map(|session| format!("s{session}")), size);
        let (id, session) = names(&task);
        self.owner.insert(seq, (task.client.clone(), class));
        let before = self.model.weights(class);
        let before_counts: BTreeMap<String, usize> =
            before.keys().map(|client| (client.clone(), self.queued(client, class))).collect();
        let expected = self.model.enqueue(task.clone());
        let outcome = self.queue.enqueue(&mut self.accounts, arrival(&task, &id, session.as_ref()), seq);
        match (&outcome, &expected) {
            (Enqueued::Accepted, Taken::Accepted) => self.accepted += 1,
            (Enqueued::Evicted { seq, item }, Taken::Evicted(victim)) => {
                assert_eq!((seq.0, item), (*victim, victim), "the victim");
                self.accepted += 1;
                self.ended += 1;
                self.seen.evicted += 1;
                self.check_victim(class, &task, *victim, &before, &before_counts);
            }
            (Enqueued::Refused { item }, Taken::Refused) => {
                assert_eq!(*item, seq);
                self.seen.refused += 1;
            }
            _ => panic!("task {seq}: {outcome:?}, the model says {expected:?}"),
        }
    }

    fn queued(&self, client: &str, class: usize) -> usize {
        self.model.waiting.iter().filter(|task| task.client == client && task.class == class).count()
    }

    /// F11: who is evicted had its share of the queue at least, the newcomer counted in.
    fn check_victim(
        &self,
        class: usize,
        newcomer: &Task,
        victim: u64,
        weights: &BTreeMap<String, u32>,
        counts: &BTreeMap<String, usize>,
    ) {
        let (client, of_class) = &self.owner[&victim];
        if self.config.bounds.policy != FullPolicy::DropLru || *of_class != class {
            return;
        }
        let mut weights = weights.clone();
        weights.insert(newcomer.client.clone(), newcomer.weight);
        let all: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        let total = counts.values().sum::<usize>() as u64 + 1;
        let theirs = counts.get(client).copied().unwrap_or(0) as u64 + u64::from(*client == newcomer.client);
        assert!(theirs * all >= total * u64::from(weights[client]), "F11: {client} was evicted below its share");
    }

    fn dispatch(&mut self, barred: u8) {
        if self.model.out.len() >= self.config.slots {
            return;
        }
        let clients: BTreeMap<u64, usize> =
            self.model.waiting.iter().map(|task| (task.seq, 9 - task.client[1..].parse::<usize>().unwrap())).collect();
        let may_run = |number: usize| barred & (1 << number) == 0;
        let passed_over = std::cell::Cell::new(0);
        let dispatched = self.queue.dispatch(&mut self.accounts, |seq| {
            let may = may_run(clients[seq]);
            passed_over.set(passed_over.get() + u64::from(!may));
            may
        });
        let expected = self.model.dispatch(|task| may_run(clients[&task.seq]));
        assert_eq!(dispatched.map(|(seq, _)| seq.0), expected, "dispatch");
        self.seen.passed_over += passed_over.get();
        let Some(seq) = expected else { return };
        self.seen.dispatched += 1;
        let task = self.model.out.last().unwrap().task.clone();
        assert_eq!(task.seq, seq);
        // F8: one of a conversation is out, and it is the one that came first of those that wait in its class.
        if let Some(session) = &task.session {
            let same = |other: &Task| other.client == task.client && other.session.as_ref() == Some(session);
            assert_eq!(self.model.out.iter().filter(|out| same(&out.task)).count(), 1, "F8: one at a time");
            let older =
                self.model.waiting.iter().filter(|other| same(other) && other.class == task.class && other.seq < seq);
            assert_eq!(older.count(), 0, "F8: in order");
        } else {
            let older = self.model.waiting.iter().filter(|other| {
                other.client == task.client && other.class == task.class && other.session.is_none() && other.seq < seq
            });
            assert_eq!(older.count(), 0, "F8: first in, first out");
        }
    }

    fn check(&mut self) {
        self.queue.invariants(&self.accounts);
        let bounds = &self.config.bounds;
        let returned = self.seen.returned as u32;
        for (index, class) in CLASSES.into_iter().enumerate() {
            let depth = self.queue.len_of(class);
            assert_eq!(depth as usize, self.model.count(index), "depth of {class:?}");
            assert!(depth <= bounds.class[index] + returned, "F10: the class's bound");
            for number in 0..self.config.weights.len() {
                let (id, time) = (client(number), self.model.time.get(&(client(number).to_string(), index)));
                let ours = self.accounts.time(&id, class).filter(|time| *time > i128::MIN / 2);
                assert_eq!(ours, time.copied(), "F12, F13: time of {id} in {class:?}");
            }
            assert_eq!(self.accounts.tag(class), self.model.tag[index], "F12, F13: tag of {class:?}");
        }
        assert!(self.queue.len() <= bounds.pool + returned, "F10: the pool's bound");
        let here = u64::from(self.queue.len()) + self.model.out.len() as u64;
        assert_eq!(self.accepted, here + self.ended, "F9: nothing is lost and nothing appears");
    }
}

fn names(task: &Task) -> (ClientId, Option<SessionId>) {
    (ClientId::parse(&task.client).unwrap(), task.session.as_ref().map(|session| SessionId::parse(session).unwrap()))
}

fn arrival<'a>(task: &Task, client: &'a ClientId, session: Option<&'a SessionId>) -> Arrival<'a> {
    let Task { seq, class, weight, size, .. } = *task;
    Arrival { seq: TaskSeq(seq), class: CLASSES[class], client, weight, session, size }
}

/// What goes wrong with this program, if anything does, and what was seen.
fn fault(config: &Config, ops: &[Op]) -> Result<Seen, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(config);
        ops.iter().for_each(|op| run.step(op));
        run.seen
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// Leaves out whatever the fault does not need.
fn shrink(config: &Config, mut ops: Vec<Op>) -> Vec<Op> {
    let mut size = ops.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut shorter = ops.clone();
            shorter.drain(at..(at + size).min(ops.len()));
            if fault(config, &shorter).is_err() {
                ops = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    ops
}

#[test]
fn the_queue_does_what_flat_lists_do() {
    let number =
        |name| std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let seeds: u64 = number("SEEDS").unwrap_or(2_000);
    let only: Option<u64> = number("SEED");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {})); // A fault is shown once, shrunk.
    let range = only.map_or(0..seeds, |seed| seed..seed + 1);
    let (next, all, faults) = (AtomicU64::new(range.start), Mutex::new(Seen::default()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if !range.contains(&seed) || !faults.lock().unwrap().is_empty() {
                        return;
                    }
                    let (config, ops) = program(seed);
                    match fault(&config, &ops) {
                        Ok(seen) => *all.lock().unwrap() += seen,
                        Err(text) => drop(faults.lock().unwrap().insert(seed, text)),
                    }
                }
            });
        }
    });
    if let Some((seed, text)) = faults.into_inner().unwrap().pop_first() {
        let (config, ops) = program(seed);
        let ops = shrink(&config, ops);
        let shrunk = fault(&config, &ops).err();
        std::panic::set_hook(hook);
        let listed = ops.iter().map(|op| format!("{op:?}\n")).collect::<String>();
        panic!("SEED={seed}: {text}\nshrunk to {} operations: {shrunk:?}\n{config:?}\n{listed}", ops.len());
    }
    std::panic::set_hook(hook);
    let all = all.into_inner().unwrap();
    println!("{seeds} programs of {OPERATIONS} operations equal the model: {all:?}");
    let each = [all.dispatched, all.evicted, all.refused, all.canceled, all.returned, all.settled, all.passed_over];
    assert!(only.is_some() || each.iter().all(|count| *count > seeds), "everything happens: {all:?}");
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.dispatched += other.dispatched;
        self.evicted += other.evicted;
        self.refused += other.refused;
        self.canceled += other.canceled;
        self.returned += other.returned;
        self.settled += other.settled;
        self.passed_over += other.passed_over;
        self.restarts += other.restarts;
    }
}
