//! The queue as flat lists with full scans: no heap, no chains, no counters that could be out of step.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::core::fairness::{SCALE, Served, Size};
use orchestrator_core::core::queue::overflow::{Bounds, FullPolicy};

/// A class by its number: 0 is interactive, 1 is batch.
pub type Class = usize;

#[derive(Clone, Debug)]
pub struct Task {
    pub seq: u64,
    pub class: Class,
    pub client: String,
    pub weight: u32,
    pub session: Option<String>,
    pub size: Size,
    /// When it stepped aside; `None` while it is in its lane.
    aside: Option<u64>,
}

impl Task {
    pub fn new(seq: u64, class: Class, client: &str, weight: u32, session: Option<String>, size: Size) -> Self {
        Task { seq, class, client: client.to_owned(), weight, session, size, aside: None }
    }

    fn lane(&self) -> (String, Class) {
        (self.client.clone(), self.class)
    }

    fn conversation(&self) -> Option<(String, String)> {
        self.session.clone().map(|session| (self.client.clone(), session))
    }
}

/// A dispatched task and the cost that was expected of it.
#[derive(Clone, Debug)]
pub struct Out {
    pub task: Task,
    pub estimate: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    Accepted,
    Evicted(u64),
    Refused,
}

pub struct Model {
    bounds: Bounds,
    costs: (u64, u64),
    class_weights: [u32; 2],
    /// Tasks of one lane are in their order; between lanes the order means nothing.
    pub waiting: Vec<Task>,
    pub out: Vec<Out>,
    pub time: BTreeMap<(String, Class), i128>,
    pub tag: [i128; 2],
    now: i128,
    start: [i128; 2],
    /// Mean output in 1/16 tokens.
    usual: BTreeMap<String, u64>,
    held: BTreeSet<(String, Class)>,
    let_go: BTreeMap<(String, String), u64>,
    steps: u64,
}

fn price(cost: u64, weight: u32) -> i128 {
    let exact = i128::from(cost) * SCALE;
    exact / i128::from(weight) + i128::from(exact % i128::from(weight) != 0)
}

impl Model {
    pub fn new(bounds: Bounds, costs: (u32, u32), class_weights: [u32; 2]) -> Self {
        Model {
            bounds,
            costs: (costs.0.into(), costs.1.into()),
            class_weights,
            waiting: Vec::new(),
            out: Vec::new(),
            time: BTreeMap::new(),
            tag: [0; 2],
            now: 0,
            start: [0; 2],
            usual: BTreeMap::new(),
            held: BTreeSet::new(),
            let_go: BTreeMap::new(),
            steps: 0,
        }
    }

    pub fn count(&self, class: Class) -> usize {
        self.waiting.iter().filter(|task| task.class == class).count()
    }

    fn queued(&self, client: &str, class: Class) -> usize {
        self.waiting.iter().filter(|task| task.class == class && task.client == client).count()
    }

    /// Weights of the clients with a task in this class, by name.
    pub fn weights(&self, class: Class) -> BTreeMap<String, u32> {
        let of_class = self.waiting.iter().filter(|task| task.class == class);
        of_class.map(|task| (task.client.clone(), task.weight)).collect()
    }

    fn cost(&self, prompt: u64, output: u64) -> u64 {
        self.costs.0 * prompt + self.costs.1 * output
    }

    /// Exact shares of two classes: each pays by the other's weight.
    fn class_price(&self, class: Class, cost: u64) -> i128 {
        i128::from(cost) * i128::from(self.class_weights[1 - class])
    }

    fn estimate(&self, task: &Task) -> u64 {
        let most = u64::from(task.size.output_max.0);
        let usual = self.usual.get(&task.client).map(|scaled| scaled.div_ceil(16));
        let guess = u64::from(task.size.output_guess.0);
        self.cost(task.size.prompt.0.into(), usual.unwrap_or(guess).min(most))
    }

    /// Lanes with somebody to dispatch.
    fn active(&self, class: Class) -> BTreeSet<String> {
        let ready = self.waiting.iter().filter(|task| task.class == class && task.aside.is_none());
        ready.map(|task| task.client.clone()).filter(|client| !self.held.contains(&(client.clone(), class))).collect()
    }

    /// Notes who is active before a change, does it, and lifts whoever is active only since then.
    fn changing<R>(&mut self, change: impl FnOnce(&mut Self) -> R) -> R {
        let before = [self.active(0), self.active(1)];
        let result = change(self);
        for class in 0..2 {
            for client in self.active(class) {
                if before[class].contains(&client) {
                    continue;
                }
                let times = before[class].iter().filter(|other| self.active(class).contains(*other));
                let least = times.map(|other| self.time[&(other.clone(), class)]).min();
                if least.is_none() {
                    self.tag[class] = self.tag[class].max(self.now);
                }
                let time = self.time.entry((client, class)).or_insert(i128::MIN);
                let start = self.start[class];
                *time = (*time).max(least.map_or(start, |least| least.min(start)));
            }
        }
        let lanes: BTreeSet<_> = self.waiting.iter().map(Task::lane).collect();
        self.held.retain(|lane| lanes.contains(lane));
        result
    }

    pub fn enqueue(&mut self, task: Task) -> Taken {
        let (class, pool) = (task.class, self.bounds.pool as usize);
        let room = self.bounds.class[class] as usize;
        let free = pool.saturating_sub(self.waiting.len()).min(room.saturating_sub(self.count(class)));
        let own = self.queued(&task.client, class);
        let mut weights = self.weights(class);
        weights.insert(task.client.clone(), task.weight);
        let all: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        let smaller = pool.min(room) as u64;
        let reserve = smaller * u64::from(self.bounds.reserve_percent) / 100;
        let below_share = own as u64 * (all + u64::from(task.weight)) < smaller * u64::from(task.weight);
        let drops = self.bounds.policy == FullPolicy::DropLru;
        if free > 0 && (drops || free as u64 > reserve || below_share) {
            self.changing(|model| model.waiting.push(task));
            return Taken::Accepted;
        }
        let class_full = self.count(class) >= room;
        let victim = match self.bounds.policy {
            FullPolicy::Reject => None,
            FullPolicy::DropLru => {
                let below = (class + 1..2).rev().find(|below| self.count(*below) > 0 && !class_full);
                let from = below.unwrap_or(class);
                let longest = self.longest(from, below.is_none().then_some(&task));
                longest.and_then(|client| self.ends(&client, from).map(|(oldest, _)| oldest))
            }
            FullPolicy::ShedLowPriority if class_full => None,
            FullPolicy::ShedLowPriority => (class + 1..2).rev().find(|below| self.count(*below) > 0).and_then(|from| {
                let longest = self.longest(from, None);
                longest.and_then(|client| self.ends(&client, from).map(|(_, youngest)| youngest))
            }),
        };
        let Some(victim) = victim else { return Taken::Refused };
        self.cancel(victim);
        self.changing(|model| model.waiting.push(task));
        Taken::Evicted(victim)
    }

    /// The oldest and the youngest of a lane: of its two ends, and of those that stepped aside first and last.
    fn ends(&self, client: &str, class: Class) -> Option<(u64, u64)> {
        let lane = self.waiting.iter().filter(|task| task.client == client && task.class == class);
        let (mut aside, ready): (Vec<&Task>, Vec<&Task>) = lane.partition(|task| task.aside.is_some());
        aside.sort_by_key(|task| task.aside);
        let oldest = [ready.first(), aside.first()].into_iter().flatten().map(|task| task.seq).min();
        let youngest = [ready.last(), aside.last()].into_iter().flatten().map(|task| task.seq).max();
        oldest.zip(youngest)
    }

    /// The client with the most tasks by weight in this class, the newcomer counted in.
    fn longest(&self, class: Class, newcomer: Option<&Task>) -> Option<String> {
        let mut lengths: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for task in self.waiting.iter().filter(|task| task.class == class).chain(newcomer) {
            let entry = lengths.entry(task.client.clone()).or_insert((0, task.weight.into()));
            entry.0 += 1;
        }
        let mut longest: Option<(String, (u64, u64))> = None;
        for (client, (queued, weight)) in lengths {
            // Strictly longer: of equal ones the first by name stays.
            if longest.as_ref().is_none_or(|(_, (most, of))| queued * of > most * weight) {
                longest = Some((client, (queued, weight)));
            }
        }
        longest.map(|(client, _)| client)
    }

    pub fn dispatch(&mut self, may_run: impl Fn(&Task) -> bool) -> Option<u64> {
        loop {
            let class = (0..2)
                .filter(|class| !self.active(*class).is_empty())
                .min_by_key(|class| (self.tag[*class], *class))?;
            let client = self
                .active(class)
                .into_iter()
                .min_by_key(|client| (self.time[&(client.clone(), class)], client.clone()))?;
            let at = self
                .waiting
                .iter()
                .position(|task| task.client == client && task.class == class && task.aside.is_none())?;
            let task = self.waiting[at].clone();
            let conversation = task.conversation();
            let closed = conversation.as_ref().is_some_and(|conversation| {
                let is_out = self.out.iter().any(|out| out.task.conversation().as_ref() == Some(conversation));
                let others_aside = self
                    .waiting
                    .iter()
                    .any(|other| other.aside.is_some() && other.conversation().as_ref() == Some(conversation));
                is_out || (others_aside && self.let_go.get(conversation) != Some(&task.seq))
            });
            if closed {
                self.steps += 1;
                let step = self.steps;
                self.forget_let_go(&task);
                self.changing(|model| model.waiting[at].aside = Some(step));
                continue;
            }
            if !may_run(&task) {
                self.changing(|model| model.held.insert((client, class)));
                continue;
            }
            let estimate = self.estimate(&task);
            self.now = self.tag[class];
            self.tag[class] += self.class_price(class, estimate);
            let time = self.time.get_mut(&task.lane())?;
            self.start[class] = self.start[class].max(*time);
            *time += price(estimate, task.weight);
            self.forget_let_go(&task);
            let seq = task.seq;
            self.changing(|model| {
                model.waiting.remove(at);
                model.out.push(Out { task, estimate });
            });
            return Some(seq);
        }
    }

    fn forget_let_go(&mut self, task: &Task) {
        if let Some(conversation) = task.conversation()
            && self.let_go.get(&conversation) == Some(&task.seq)
        {
            self.let_go.remove(&conversation);
        }
    }

    pub fn cancel(&mut self, seq: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|task| task.seq == seq) else { return false };
        let task = self.waiting[at].clone();
        self.forget_let_go(&task);
        self.changing(|model| model.waiting.remove(at));
        self.let_next_go(&task);
        true
    }

    /// When nothing of its conversation is out or was let go, the one that stepped aside first goes to the front.
    fn let_next_go(&mut self, task: &Task) {
        let Some(conversation) = task.conversation() else { return };
        let is_out = self.out.iter().any(|out| out.task.conversation().as_ref() == Some(&conversation));
        if is_out || self.let_go.contains_key(&conversation) {
            return;
        }
        let aside =
            self.waiting.iter().enumerate().filter(|(_, other)| other.conversation().as_ref() == Some(&conversation));
        let next = aside.filter_map(|(at, other)| Some((other.aside?, at))).min();
        if let Some((_, at)) = next {
            self.let_go.insert(conversation, self.waiting[at].seq);
            self.changing(|model| {
                let mut next = model.waiting.remove(at);
                next.aside = None;
                model.insert(next);
            });
        }
    }

    /// Puts a task where its number belongs in its lane.
    fn insert(&mut self, task: Task) {
        let later = |other: &Task| other.lane() == task.lane() && other.aside.is_none() && other.seq > task.seq;
        let at = self.waiting.iter().position(later).unwrap_or(self.waiting.len());
        self.waiting.insert(at, task);
    }

    fn correct(&mut self, at: usize, cost: u64) -> Out {
        let out = self.out.remove(at);
        let (task, class) = (&out.task, out.task.class);
        *self.time.get_mut(&task.lane()).unwrap() += price(cost, task.weight) - price(out.estimate, task.weight);
        let (cost, estimate) = (self.class_price(class, cost), self.class_price(class, out.estimate));
        self.tag[class] += cost - estimate;
        out
    }

    pub fn settle(&mut self, seq: u64, served: Served) -> bool {
        let Some(at) = self.out.iter().position(|out| out.task.seq == seq) else { return false };
        let cost = match served {
            Served::Nothing => 0,
            Served::Part { prompt, output } | Served::Whole { prompt, output } => {
                self.cost(prompt.0.into(), output.0.into())
            }
        };
        let out = self.correct(at, cost);
        if let Served::Whole { output, .. } = served {
            let sample = u64::from(output.0) * 16;
            let mean = self.usual.get(&out.task.client).map_or(sample, |mean| mean - mean / 8 + sample / 8);
            self.usual.insert(out.task.client.clone(), mean);
        }
        self.let_next_go(&out.task);
        true
    }

    pub fn put_back(&mut self, seq: u64) {
        let at = self.out.iter().position(|out| out.task.seq == seq).unwrap();
        let Out { task, .. } = self.correct(at, 0);
        if let Some(conversation) = task.conversation() {
            self.let_go.insert(conversation, seq);
        }
        self.changing(|model| model.insert(task));
    }

    /// Everything that waits goes and comes back, in order; returns it.
    pub fn restart(&mut self) -> Vec<Task> {
        let mut tasks = std::mem::take(&mut self.waiting);
        tasks.sort_by_key(|task| task.seq);
        tasks.iter_mut().for_each(|task| task.aside = None);
        self.held.clear();
        self.let_go.clear();
        for task in tasks.clone() {
            self.changing(|model| model.insert(task));
        }
        tasks
    }

    pub fn release(&mut self, client: &str) {
        // One class after the other, as a change each.
        for class in 0..2 {
            self.changing(|model| model.held.remove(&(client.to_owned(), class)));
        }
    }
}
