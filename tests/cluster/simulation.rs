//! One simulated cluster: everything follows from its seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::cluster::Node;
use orchestrator_core::config::{PoolConfig, QueueConfig, SimConfig, SimFaults, TimeoutConfig};
use orchestrator_core::core::SessionId;
use orchestrator_core::core::node::NodeName;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::core::trace::TraceEvent;
use orchestrator_core::env::InjectedPanic;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Env, ErrorCode, Event, Orchestrator, Priority, TaskRequest};
use tokio::time::Instant;

use super::check::{Checker, Spec};
use super::network::Wires;
use super::support::{client as client_id, is_idle, pool, read_whole, task_id};
use super::tally::Tally;
use super::world::{Living, node_name, start_node};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const TASKS: u64 = 40;
/// Virtual time after which a task that has not ended never will.
const LIVENESS: Duration = Duration::from_secs(600);
/// From the last word of a gateway to the end of its attempts at an owner: three beats, a look, and what is on its way.
const LEASE_END: Duration = Duration::from_millis(750);
/// From the last word of a node to the end of its link: 3 s and a look, and what is on its way.
const DEAD_END: Duration = Duration::from_millis(3_200);

pub struct Rng(pub fastrand::Rng);

impl Rng {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(0..limit)
    }
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What a run has shown: the traces of all lives of all nodes, in the order in which they began.
pub struct Run {
    pub traces: Vec<Vec<TraceEvent>>,
    pub tally: Tally,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Every life's environment.
    static ENVS: RefCell<Vec<(bool, Env)>> = const { RefCell::new(Vec::new()) };
}

pub fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            if info.payload().downcast_ref::<InjectedPanic>().is_none() {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            }
        }));
    });
}

/// One run.
///
/// # Errors
/// The first promise that it broke.
pub fn run(seed: u64) -> Result<Run, String> {
    PANICS.take();
    ENVS.take();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run_world(seed)));
    let lives = ENVS.take();
    let traces: Vec<Vec<TraceEvent>> = lives.iter().map(|(_, env)| env.recorded()).collect();
    if let Some(panic) = PANICS.take().into_iter().next() {
        return Err(panic.replace('\n', ": "));
    }
    // What each node did, by the rules for one node. A life that was killed leaves its tasks as they were.
    let law = Spec { capacity: vec![u32::MAX; 64], attempts_max: u32::MAX, narrow: client_id("nobody") };
    for ((was_killed, _), trace) in lives.iter().zip(&traces) {
        match Checker::check(&law, trace) {
            Err((step, what)) if step < trace.len() || !was_killed => return Err(format!("{what} (step {step})")),
            _ => {}
        }
    }
    let mut tally = result.map_err(|_| "it failed without a word".to_owned())?;
    tally.events = traces.iter().map(Vec::len).sum();
    Ok(Run { traces, tally })
}

fn random_pool(dice: &mut Rng) -> PoolConfig {
    let faults = SimFaults { die_ppm: dice.one_of(&[0, 0, 500, 5_000]), ..SimFaults::default() };
    let token_us = dice.one_of(&[500, 2_000, 10_000]);
    let sim = SimConfig { first_token_us: token_us, token_us, preload_us: 5_000, faults, ..SimConfig::default() };
    let (replicas, slots) = (1 + dice.below(2) as u32, 1 + dice.below(4) as u32);
    PoolConfig {
        queue: QueueConfig { capacity: dice.one_of(&[4, 64, 256]), ..QueueConfig::default() },
        timeouts: TimeoutConfig { wall_ms: 120_000, idle_ms: 5_000, stop_ms: 200, ..TimeoutConfig::default() },
        ..pool("chat", replicas, slots, sim)
    }
}

/// A cluster while it is being disturbed.
struct Cluster {
    wires: Arc<Wires>,
    names: Vec<&'static str>,
    pools: Vec<Vec<PoolConfig>>,
    /// `None` while a node is down.
    nodes: RefCell<Vec<Option<Living>>>,
    lives: RefCell<u64>,
    /// Which life of all each node has.
    current: RefCell<Vec<usize>>,
    seed: u64,
    /// Directions that are cut, and since when.
    cuts: RefCell<BTreeMap<(usize, usize), Instant>>,
    /// Guests of each node that nobody waits for, at the last look.
    strays: RefCell<BTreeMap<usize, u64>>,
}

impl Cluster {
    async fn start_one(&self, index: usize) {
        let life = self.lives.replace_with(|life| *life + 1);
        let env = Env::simulated(self.seed.wrapping_mul(1_000_003).wrapping_add(life));
        ENVS.with_borrow_mut(|envs| envs.push((false, env.clone())));
        self.current.borrow_mut()[index] = life as usize;
        let others: Vec<&str> = self.names.iter().filter(|name| **name != self.names[index]).copied().collect();
        let living = start_node(&self.wires, env, self.names[index], &others, self.pools[index].clone()).await;
        self.nodes.borrow_mut()[index] = Some(living);
    }

    fn kill(&self, index: usize) {
        let living = self.nodes.borrow_mut()[index].take();
        if let Some(living) = living {
            let life = self.current.borrow()[index];
            ENVS.with_borrow_mut(|envs| envs[life].0 = true);
            drop(living);
        }
    }

    fn name(&self, index: usize) -> NodeName {
        node_name(self.names[index])
    }

    fn orchestrator(&self, index: usize) -> Option<Orchestrator> {
        self.nodes.borrow()[index].as_ref().map(|living| living.orchestrator().clone())
    }

    /// Cuts a direction, if it is not.
    fn cut(&self, from: usize, to: usize) {
        self.wires.cut(&self.name(from), &self.name(to));
        self.cuts.borrow_mut().entry((from, to)).or_insert_with(Instant::now);
    }

    fn mend(&self) {
        self.wires.mend();
        self.cuts.borrow_mut().clear();
    }

    /// What must hold at every moment between nodes: nobody computes for a gateway that it has not heard of for a
    /// lease, and no link outlives 3 s of silence.
    fn look(&self) {
        let nodes = self.nodes.borrow();
        for (index, living) in nodes.iter().enumerate() {
            let Some(living) = living else { continue };
            let view = living.node.view();
            let known: u64 = view.peers.iter().filter_map(|peer| peer.link.as_ref()).map(|link| link.guests).sum();
            let stray = view.guests_open.saturating_sub(known);
            let before = self.strays.borrow_mut().insert(index, stray).unwrap_or(0);
            assert!(before.min(stray) == 0, "{} computes for nobody: {stray} guests", self.names[index]);
        }
        for ((from, to), since) in &*self.cuts.borrow() {
            let Some(living) = &nodes[*to] else { continue };
            let view = living.node.view();
            let Some(peer) = view.peers.iter().find(|peer| peer.name == self.name(*from)) else { continue };
            let silent = since.elapsed();
            if let Some(link) = &peer.link {
                assert!(
                    silent < DEAD_END,
                    "{} has a link with {}, silent for {silent:?}",
                    self.names[*to],
                    self.names[*from]
                );
                assert!(
                    silent < LEASE_END || link.guests == 0,
                    "{} computes for {}, silent for {silent:?}",
                    self.names[*to],
                    self.names[*from]
                );
            }
        }
    }
}

async fn client(orchestrator: Orchestrator, number: u64, mut dice: Rng) -> Tally {
    let mut tally = Tally::default();
    tokio::time::sleep(Duration::from_micros(dice.below(3_000_000))).await;
    let max_tokens = dice.one_of(&[1, 10, 40, 400]);
    let prompt = format!("prompt {number}");
    let request = TaskRequest {
        task_id: Some(task_id(&format!("t{number}"))),
        // Some are of conversations, which find their caches on other nodes.
        session_id: number.is_multiple_of(3).then(|| SessionId::parse(&format!("s{}", number % 4)).unwrap()),
        ..TaskRequest::completion(prompt.clone()).max_tokens(max_tokens)
    };
    let request = request.priority(dice.one_of(&Priority::ALL)).client(client_id(dice.one_of(&["x", "y", "z"])));
    let submitted = match orchestrator.submit(request).await {
        Ok(submitted) => submitted,
        Err(_) => return Tally { refused: 1, ..tally },
    };
    tally.accepted += 1;
    let reader = tokio::spawn(read_whole(submitted.stream()));
    if dice.below(5) == 0 {
        tokio::time::sleep(Duration::from_micros(dice.below(300_000))).await;
        orchestrator.cancel(&submitted.task_id);
    }
    let (text, end) = reader.await.unwrap();
    let seed = orchestrator.task(&submitted.task_id).expect("it is remembered").seed;
    let whole = undisturbed(&prompt, seed, max_tokens, "1", "tiny");
    assert!(whole.starts_with(&text), "t{number} says {text:?}, which it should not: {whole:?}");
    match end {
        Event::End(end) if end.finish_reason == FinishReason::Canceled => tally.canceled += 1,
        Event::End(_) => {
            assert_eq!(text, whole, "t{number} is whole");
            tally.completed += 1;
        }
        Event::Error(error) => {
            let allowed = [ErrorCode::WorkerReset, ErrorCode::PoolUnavailable, ErrorCode::DecodeTimeout];
            let code = allowed.iter().position(|code| *code == error.code);
            tally.failed[code.unwrap_or_else(|| panic!("unexpected end of t{number}: {error}"))] += 1;
            if std::env::var_os("SHOW").is_some() {
                println!("t{number}: {error}");
            }
        }
        other => panic!("not terminal: {other:?}"),
    }
    tally
}

/// Disturbs the cluster for some time.
async fn disturb(cluster: &Cluster, mut dice: Rng, tally: &mut Tally) {
    let nodes = cluster.names.len() as u64;
    let end = Instant::now() + Duration::from_secs(4);
    let mut mend_at: Option<Instant> = None;
    while Instant::now() < end {
        for _ in 0..1 + dice.below(6) {
            tokio::time::sleep(Duration::from_micros(20_000 + dice.below(60_000))).await;
            cluster.look();
        }
        if mend_at.is_some_and(|at| Instant::now() >= at) {
            cluster.mend();
            mend_at = None;
        }
        let (one, step) = (dice.below(nodes) as usize, 1 + dice.below(nodes - 1) as usize);
        let other = (one + step) % cluster.names.len();
        match dice.below(12) {
            0 | 1 => {
                tally.cuts += 1;
                cluster.cut(one, other);
                if dice.below(2) == 0 {
                    cluster.cut(other, one);
                }
                mend_at.get_or_insert(Instant::now() + Duration::from_millis(dice.one_of(&[100, 900, 2_000, 3_600])));
            }
            2 => {
                tally.breaks += 1;
                cluster.wires.break_between(&cluster.name(one), &cluster.name(other));
            }
            // The first node is never killed: what it has accepted must end.
            3 if one > 0 => {
                tally.kills += 1;
                cluster.kill(one);
                // A new node knows nobody yet, and nobody is silent to it.
                cluster.cuts.borrow_mut().retain(|(_, to), _| *to != one);
            }
            4 | 5 => {
                let down = cluster.nodes.borrow().iter().position(Option::is_none);
                if let Some(down) = down {
                    cluster.start_one(down).await;
                }
            }
            _ => {}
        }
    }
    if let Some(at) = mend_at {
        while Instant::now() < at {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cluster.look();
        }
    }
}

fn run_world(seed: u64) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Rng(fastrand::Rng::with_seed(seed));
        let count = 3 + dice.below(3) as usize;
        let names = NAMES[..count].to_vec();
        let mut pools: Vec<Vec<PoolConfig>> =
            (0..count).map(|_| if dice.below(3) == 0 { Vec::new() } else { vec![random_pool(&mut dice)] }).collect();
        if pools.iter().all(Vec::is_empty) {
            pools[1] = vec![random_pool(&mut dice)];
        }
        let wires = Arc::<Wires>::default();
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                let delay = {
                    let most = dice.one_of(&[200, 2_000, 20_000]);
                    Duration::from_micros(50 + dice.below(most))
                };
                wires.set_delay(&node_name(from), &node_name(to), delay);
            }
        }
        let nodes = RefCell::new((0..count).map(|_| None).collect());
        let (lives, cuts) = (RefCell::new(0), RefCell::new(BTreeMap::new()));
        let current = RefCell::new(vec![0; count]);
        let cluster = Cluster { wires, names, pools, nodes, lives, current, seed, cuts, strays: RefCell::default() };
        for index in 0..count {
            cluster.start_one(index).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let ppm = dice.one_of(&[0, 0, 300, 2_000]);
        let envs: Vec<Env> = ENVS.with_borrow(|envs| envs.iter().map(|(_, env)| env.clone()).collect());
        envs.iter().for_each(|env| env.set_panic_ppm(ppm));
        let mut clients = Vec::new();
        for number in 0..TASKS {
            // Only the first node's tasks are followed: it lives.
            let at = if number % 2 == 0 { 0 } else { dice.below(count as u64) as usize };
            let orchestrator = cluster.orchestrator(at).expect("all live");
            let one = tokio::spawn(client(orchestrator, number, Rng(dice.0.fork())));
            if at == 0 {
                clients.push(one);
            }
        }
        let mut tally = Tally::default();
        disturb(&cluster, Rng(dice.0.fork()), &mut tally).await;
        // Faults are over: everything that was accepted must come to its end.
        cluster.mend();
        let envs: Vec<Env> = ENVS.with_borrow(|envs| envs.iter().map(|(_, env)| env.clone()).collect());
        for env in &envs {
            env.set_panic_ppm(0);
            env.make_engines_behave();
        }
        for index in 0..count {
            if cluster.orchestrator(index).is_none() {
                cluster.start_one(index).await;
            }
        }
        for client in clients {
            let one = tokio::time::timeout(LIVENESS, client).await.expect("every task ends");
            tally += one.expect("a client found nothing wrong");
        }
        // Everybody finds everybody again, and nothing is left behind.
        let others = |index: usize| (0..count).filter(move |other| *other != index);
        let linked = async {
            for index in 0..count {
                let node = cluster.nodes.borrow()[index].as_ref().map(|living| living.node.clone()).expect("it lives");
                node.until_linked(&others(index).map(|other| cluster.name(other)).collect::<Vec<_>>()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), linked).await.expect("every node finds every other");
        let idle = async {
            let nodes: Vec<_> = cluster.nodes.borrow().iter().flatten().map(|living| living.node.clone()).collect();
            let is_done = |node: &Node| {
                let view = node.view();
                let links = view.peers.iter().filter_map(|peer| peer.link.as_ref());
                is_idle(node.orchestrator()) && links.clone().all(|link| (link.lent, link.guests) == (0, 0))
            };
            while !nodes.iter().all(is_done) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(130), idle).await; // What is not so is said below.
        for living in cluster.nodes.borrow().iter().flatten() {
            let view = living.node.view();
            assert!(is_idle(living.orchestrator()), "{} is idle: {:?}", view.name, living.orchestrator().pools());
            for peer in &view.peers {
                let link = peer.link.as_ref().unwrap_or_else(|| panic!("{} has a link with {}", view.name, peer.name));
                assert_eq!((link.lent, link.guests), (0, 0), "{} and {} are done", view.name, peer.name);
            }
            let pools = living.orchestrator().pools();
            assert!(pools.iter().all(|pool| pool.unsettled == 0), "every charge is settled");
            assert_eq!(pools.iter().map(|pool| pool.diverged).sum::<u64>(), 0, "this engine repeats itself");
            for replica in living.stats.iter().flatten() {
                let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
                let (early, conflicts) = (count(&replica.runs_before_ready), count(&replica.slot_conflicts));
                assert_eq!((early, conflicts), (0, 0), "runs before Ready, and runs in a slot that another had");
            }
            tally.guests += view.guests_taken;
            tally.leases_expired += view.leases_expired;
            tally.links += view.peers.iter().map(|peer| peer.links_made).sum::<u64>();
            tally.resumed += pools.iter().map(|pool| pool.resumed).sum::<u64>();
            tally.panics += living.env.panics_fired();
        }
        let ended = tally.completed + tally.canceled + tally.failed.iter().sum::<u64>();
        assert_eq!(tally.accepted, ended);
        // Nothing of this run may be there when the next one begins: actors are known to the whole process.
        for index in 0..count {
            cluster.kill(index);
        }
        ENVS.with_borrow_mut(|envs| envs.iter_mut().for_each(|(was_killed, _)| *was_killed = true));
        tokio::time::sleep(Duration::from_secs(10)).await;
        tally
    })
}
