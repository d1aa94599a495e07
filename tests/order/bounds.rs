//! The bounds F1 to F6, F11 and F13, each with the worst that was measured beside it.
//!
//! Service is counted in weighted tokens divided by the client's weight. A bound over *any* interval is checked as the
//! range of the difference process: its largest value minus its smallest is the worst interval there was.

use orchestrator_core::Priority::{self, Batch, Interactive};
use orchestrator_core::core::fairness::{Accounts, CostWeights, Served, Size, price};
use orchestrator_core::core::queue::overflow::{Bounds, FullPolicy};
use orchestrator_core::core::queue::{Arrival, Enqueued, Queue};
use orchestrator_core::core::{ClientId, TaskSeq, Tokens};

fn client(number: usize) -> ClientId {
    ClientId::parse(&format!("c{number:03}")).unwrap()
}

/// One task as these tests know it.
#[derive(Clone, Copy, Debug)]
struct Item {
    client: usize,
    class: Priority,
    prompt: u32,
    output: u32,
}

impl Item {
    fn cost(&self) -> f64 {
        f64::from(self.prompt) + 2.0 * f64::from(self.output)
    }
}

struct Lab {
    dice: fastrand::Rng,
    queue: Queue<Item>,
    accounts: Accounts,
    weights: Vec<u32>,
    /// Largest prompt and output of each client.
    sizes: Vec<(u32, u32)>,
    next: u64,
}

impl Lab {
    fn new(seed: u64, clients: usize, weights: &[u32], bounds: Bounds) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let weights = (0..clients).map(|_| weights[dice.usize(..weights.len())]).collect();
        let sizes = (0..clients).map(|_| (dice.u32(1..2_000), dice.u32(1..500))).collect();
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        Lab { dice, queue: Queue::new(bounds, &mut accounts), accounts, weights, sizes, next: 0 }
    }

    fn endless() -> Bounds {
        Bounds::of(u32::MAX, FullPolicy::Reject)
    }

    /// Sends one task of this client; with `exact`, its size is known beforehand.
    fn send(&mut self, number: usize, class: Priority, exact: bool) -> (u64, Enqueued<Item>) {
        let (prompt, output) = self.sizes[number];
        let item = Item { client: number, class, prompt: self.dice.u32(1..=prompt), output: self.dice.u32(1..=output) };
        let (most, expected) = if exact { (item.output, Some(Tokens(item.output))) } else { (output, None) };
        let size = Size::new(Tokens(item.prompt), Tokens(most), expected);
        let (seq, id) = (self.next, client(number));
        self.next += 1;
        let arrival =
            Arrival { seq: TaskSeq(seq), class, client: &id, weight: self.weights[number], session: None, size };
        (seq, self.queue.enqueue(&mut self.accounts, arrival, item))
    }

    fn dispatch(&mut self) -> Option<(TaskSeq, Item)> {
        self.queue.dispatch(&mut self.accounts, |_| true)
    }

    fn end(&mut self, seq: TaskSeq, item: Item, learns: bool) {
        let (prompt, output) = (Tokens(item.prompt), Tokens(item.output));
        let served = if learns { Served::Whole { prompt, output } } else { Served::Part { prompt, output } };
        assert!(self.queue.settle(&mut self.accounts, seq, served));
    }

    fn cost_max(&self, number: usize) -> f64 {
        f64::from(self.sizes[number].0) + 2.0 * f64::from(self.sizes[number].1)
    }

    fn weight(&self, number: usize) -> f64 {
        f64::from(self.weights[number])
    }
}

/// The range of a process: the worst change over any interval, up or down, and the worst rise alone.
#[derive(Clone, Copy, Default)]
struct Range {
    low: f64,
    high: f64,
    rise: f64,
}

impl Range {
    fn note(&mut self, value: f64) {
        (self.low, self.high) = (self.low.min(value), self.high.max(value));
        self.rise = self.rise.max(value - self.low);
    }

    fn span(&self) -> f64 {
        self.high - self.low
    }
}

fn report(name: &str, worst: f64, what: &str) {
    println!("{name}: worst measured {worst:.4} of the bound; {what}");
    assert!(worst <= 1.0 + 1e-9, "{name}: {worst} exceeds the bound");
    assert!(worst > 0.3, "{name}: {worst} is so far below the bound that nothing was tried");
}

#[test]
fn f1_two_backlogged_clients_are_dispatched_alike_over_any_interval() {
    let mut worst: f64 = 0.0;
    for seed in 0..100 {
        let clients = 2 + (seed % 7) as usize;
        let mut lab = Lab::new(seed, clients, &[1, 1, 2, 4, 9], Lab::endless());
        let mut served = vec![0.0; clients];
        let mut ranges = vec![vec![Range::default(); clients]; clients];
        for number in 0..clients {
            lab.send(number, Batch, true);
            lab.send(number, Batch, true);
        }
        for _ in 0..10_000 {
            let (seq, item) = lab.dispatch().unwrap();
            lab.end(seq, item, false);
            lab.send(item.client, Batch, true);
            served[item.client] += item.cost() / lab.weight(item.client);
            for other in 0..clients {
                let (a, b) = (item.client.min(other), item.client.max(other));
                ranges[a][b].note(served[a] - served[b]);
            }
        }
        for a in 0..clients {
            for b in a + 1..clients {
                let bound = lab.cost_max(a) / lab.weight(a) + lab.cost_max(b) / lab.weight(b);
                worst = worst.max(ranges[a][b].span() / bound);
            }
        }
    }
    report("F1", worst, "100 mixes of 2 to 8 clients, 10,000 dispatches each; bound c_f/w_f + c_g/w_g");
}

/// A pool of `slots` that runs tasks at one weighted token a tick. Delivered service grows while tasks run.
struct Pool {
    slots: usize,
    now: f64,
    running: Vec<(f64, f64, TaskSeq, Item)>,
    delivered: Vec<f64>,
}

impl Pool {
    fn fill(&mut self, lab: &mut Lab) {
        while self.running.len() < self.slots {
            let Some((seq, item)) = lab.dispatch() else { return };
            self.running.push((self.now, self.now + item.cost(), seq, item));
        }
    }

    /// Goes on to the next end; returns who ended.
    fn advance(&mut self, lab: &mut Lab) -> Item {
        let next = (0..self.running.len()).min_by(|a, b| self.running[*a].1.total_cmp(&self.running[*b].1)).unwrap();
        let (_, end, seq, item) = self.running.swap_remove(next);
        self.now = end;
        self.delivered[item.client] += item.cost();
        lab.end(seq, item, true);
        item
    }

    /// Delivered to a client by now, tasks that run included, divided by its weight.
    fn service(&self, lab: &Lab, number: usize) -> f64 {
        let running = self.running.iter().filter(|(.., item)| item.client == number);
        (self.delivered[number] + running.map(|(start, ..)| self.now - start).sum::<f64>()) / lab.weight(number)
    }
}

#[test]
fn f2_what_is_delivered_to_backlogged_clients_differs_by_a_bound_though_lengths_are_guessed() {
    let mut worst: f64 = 0.0;
    for (seed, slots) in (0..30).flat_map(|seed| [1, 8, 64].map(|slots| (seed, slots))) {
        let clients = 4;
        let mut lab = Lab::new(seed, clients, &[1, 1, 2, 4], Lab::endless());
        let mut pool = Pool { slots, now: 0.0, running: Vec::new(), delivered: vec![0.0; clients] };
        // A client can be served no more than it sends: the queue is kept longer than the pool is wide.
        (0..clients).for_each(|number| (0..2 * slots + 2).for_each(|_| _ = lab.send(number, Batch, false)));
        let mut ranges = vec![vec![Range::default(); clients]; clients];
        pool.fill(&mut lab);
        for _ in 0..5_000 {
            let ended = pool.advance(&mut lab);
            lab.send(ended.client, Batch, false);
            pool.fill(&mut lab);
            for a in 0..clients {
                for b in a + 1..clients {
                    ranges[a][b].note(pool.service(&lab, a) - pool.service(&lab, b));
                }
            }
        }
        let cost_max = (0..clients).map(|number| lab.cost_max(number)).fold(0.0, f64::max);
        let weight_min = (0..clients).map(|number| lab.weight(number)).fold(f64::MAX, f64::min);
        let bound = 2.0 * (slots as f64 + 1.0) * cost_max / weight_min;
        let span = ranges.iter().flatten().map(Range::span).fold(0.0, f64::max);
        worst = worst.max(span / bound);
    }
    report("F2", worst, "30 mixes of 4 clients on 1, 8 and 64 slots, 5,000 ends each; bound 2(K+1)·c_max/w_min");
}

#[test]
fn f3_a_backlogged_client_falls_behind_nobody_who_comes_and_goes() {
    let mut worst: f64 = 0.0;
    for (seed, slots) in (0..40).flat_map(|seed| [1, 8].map(|slots| (seed, slots))) {
        let clients = 4;
        let mut lab = Lab::new(1_000 + seed, clients, &[1, 1, 2, 4], Lab::endless());
        let mut pool = Pool { slots, now: 0.0, running: Vec::new(), delivered: vec![0.0; clients] };
        (0..2 * slots + 2).for_each(|_| _ = lab.send(0, Batch, false));
        let mut ranges = vec![Range::default(); clients];
        let mut awake = vec![true; clients];
        for step in 0..5_000 {
            // The others sleep and wake at random, for long and short times; the first always has a backlog.
            let at = lab.dice.usize(1..clients);
            if lab.dice.u32(..40) == 0 {
                awake[at] = !awake[at];
            }
            for number in 1..clients {
                if awake[number] && lab.accounts.waiting(&client(number), Batch) < 4 {
                    lab.send(number, Batch, false);
                }
            }
            pool.fill(&mut lab);
            let ended = pool.advance(&mut lab);
            if ended.client == 0 {
                lab.send(0, Batch, false);
            }
            pool.fill(&mut lab);
            let ours = pool.service(&lab, 0);
            (1..clients).for_each(|number| ranges[number].note(pool.service(&lab, number) - ours));
            assert!(step < 5_000 && lab.accounts.waiting(&client(0), Batch) > 0, "it has a backlog");
        }
        let cost_max = (0..clients).map(|number| lab.cost_max(number)).fold(0.0, f64::max);
        let weight_min = (0..clients).map(|number| lab.weight(number)).fold(f64::MAX, f64::min);
        let bound = 2.0 * (slots as f64 + 1.0) * cost_max / weight_min;
        worst = worst.max(ranges.iter().map(|range| range.rise).fold(0.0, f64::max) / bound);
    }
    report("F3", worst, "40 mixes on 1 and 8 slots, three clients that come and go; bound 2(K+1)·c_max/w_min");
}

#[test]
fn f4_and_f5_classes_share_by_weight_and_batch_delays_interactive_by_a_bound() {
    let (mut worst_share, mut worst_between, mut share): (f64, f64, f64) = (0.0, 0.0, 0.0);
    for seed in 0..30 {
        let mut lab = Lab::new(2_000 + seed, 4, &[1], Lab::endless());
        (0..4).for_each(|number| (0..2).for_each(|_| _ = lab.send(number, class_of(number), true)));
        let (mut served, mut range, mut between) = ([0.0; 2], Range::default(), 0.0);
        let cost_max = |lab: &Lab, class| {
            (0..4).filter(|number| class_of(*number) == class).map(|number| lab.cost_max(number)).fold(0.0, f64::max)
        };
        let (c_i, c_b) = (cost_max(&lab, Interactive), cost_max(&lab, Batch));
        let mut seen_batch = false;
        for _ in 0..10_000 {
            let (seq, item) = lab.dispatch().unwrap();
            lab.end(seq, item, false);
            lab.send(item.client, item.class, true);
            served[item.class.index()] += item.cost();
            range.note(served[1] - 0.1 * (served[0] + served[1]));
            match item.class {
                Interactive => between += item.cost(),
                Batch => {
                    if seen_batch {
                        worst_between = worst_between.max(between / (9.0 * c_b + c_i));
                    }
                    (between, seen_batch) = (0.0, true);
                }
            }
        }
        worst_share = worst_share.max(range.span() / (c_i + c_b));
        share += served[1] / (served[0] + served[1]) / 30.0;
    }
    println!("F4: batch share {share:.5}, its weight's share is 0.1");
    assert!((share - 0.1).abs() < 0.001);
    report("F4", worst_share, "30 mixes, 10,000 dispatches each; bound c_i + c_b over any interval");
    report("F5", worst_between, "interactive service between two batch dispatches; bound (W_i/W_b)·c_b + c_i");
}

fn class_of(number: usize) -> Priority {
    if number < 2 { Interactive } else { Batch }
}

#[test]
fn f6_the_head_of_a_new_client_waits_for_each_of_the_others_once() {
    let mut worst: f64 = 0.0;
    for seed in 0..400 {
        let clients = 1 + (seed % 20) as usize;
        let mut lab = Lab::new(3_000 + seed, clients + 1, &[1], Lab::endless());
        (0..clients).for_each(|number| (0..60).for_each(|_| _ = lab.send(number, Batch, true)));
        for _ in 0..lab.dice.usize(..20 * clients) {
            let (seq, item) = lab.dispatch().unwrap();
            lab.end(seq, item, false);
            lab.send(item.client, Batch, true);
        }
        lab.send(clients, Batch, true);
        let mut others = 0;
        loop {
            let (seq, item) = lab.dispatch().unwrap();
            lab.end(seq, item, false);
            if item.client == clients {
                break;
            }
            lab.send(item.client, Batch, true);
            others += 1;
        }
        worst = worst.max(f64::from(others) / (clients as f64 + 1.0));
    }
    report("F6", worst, "400 arrivals beside 1 to 20 backlogged clients of equal weight; bound n dispatches + 1");
}

#[test]
fn f11_a_flood_evicts_itself_and_never_one_below_its_share() {
    let bounds = Bounds::of(100, FullPolicy::DropLru);
    let mut lab = Lab::new(7, 10, &[1], bounds);
    let (mut polite_evicted, mut flood_evicted, mut polite_refused) = (0, 0, 0);
    for round in 0..20_000 {
        for _ in 0..5 {
            match lab.send(0, Batch, true).1 {
                Enqueued::Evicted { item, .. } if item.client == 0 => flood_evicted += 1,
                Enqueued::Evicted { .. } => polite_evicted += 1,
                _ => {}
            }
        }
        let number = 1 + round % 9;
        // A polite client keeps below its share of the room, which is a tenth.
        if lab.accounts.waiting(&client(number), Batch) < 9 {
            match lab.send(number, Batch, true).1 {
                Enqueued::Evicted { item, .. } if item.client != 0 => polite_evicted += 1,
                Enqueued::Refused { .. } => polite_refused += 1,
                _ => {}
            }
        }
        if round % 2 == 0
            && let Some((seq, item)) = lab.dispatch()
        {
            lab.end(seq, item, false);
        }
    }
    println!(
        "F11: {flood_evicted} tasks of the flood evicted, {polite_evicted} of the polite, {polite_refused} refused"
    );
    assert!(flood_evicted > 10_000 && polite_evicted == 0 && polite_refused == 0);
}

#[test]
fn f13_after_a_storm_of_cancels_each_has_paid_exactly_for_what_was_computed() {
    for seed in 0..200 {
        let mut lab = Lab::new(seed, 4, &[1, 2, 5], Lab::endless());
        let class = |number: usize| class_of(number);
        // Everybody has a backlog throughout, so nobody is ever lifted: time is what was paid, and nothing else.
        (0..4).for_each(|number| (0..300).for_each(|_| _ = lab.send(number, class(number), false)));
        let mut out: Vec<(TaskSeq, Item)> = Vec::new();
        let (mut paid, mut of_class) = ([0; 4], [0_i128; 2]);
        let class_weights = lab.accounts.class_weights();
        let mut pay = |lab: &Lab, item: &Item, cost: u64| {
            paid[item.client] += price(cost, lab.weights[item.client]);
            of_class[item.class.index()] += i128::from(cost) * i128::from(class_weights[1 - item.class.index()]);
        };
        for _ in 0..600 {
            if lab.dice.bool() {
                out.extend(lab.dispatch());
            } else if !out.is_empty() {
                let at = lab.dice.usize(..out.len());
                let (seq, item) = out.swap_remove(at);
                let (prompt, output) = (Tokens(item.prompt), Tokens(lab.dice.u32(..=item.output)));
                let served = match lab.dice.u32(..3) {
                    0 => Served::Nothing,
                    1 => Served::Part { prompt, output },
                    _ => Served::Whole { prompt, output },
                };
                lab.queue.settle(&mut lab.accounts, seq, served);
                if served != Served::Nothing {
                    pay(&lab, &item, u64::from(prompt.0) + 2 * u64::from(output.0));
                }
            }
        }
        lab.queue.numbers().into_iter().for_each(|seq| _ = lab.queue.cancel(&mut lab.accounts, seq));
        for (seq, item) in out {
            lab.queue.settle(&mut lab.accounts, seq, Served::Part { prompt: Tokens(item.prompt), output: Tokens(0) });
            pay(&lab, &item, item.prompt.into());
        }
        assert_eq!(Priority::ALL.map(|class| lab.accounts.tag(class)), of_class, "seed {seed}");
        for number in 0..4 {
            let time = lab.accounts.time(&client(number), class(number));
            assert_eq!(time, Some(paid[number]), "seed {seed}, client {number}");
        }
        assert!(lab.queue.is_empty() && lab.accounts.unsettled().is_empty());
    }
}
