//! The whole tree on one thread in virtual time: random worlds with panics, dying and hanging engines and cancels. Every
//! seed runs twice and must give the same trace; every accepted task must end.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::Duration;

use orchestrator_core::config::{
    ClientConfig, LimitConfig, QueueConfig, QuotaConfig, RestartConfig, SimConfig, SimFaults, TimeoutConfig,
};
use orchestrator_core::core::full::FullPolicy;
use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::trace::TraceKind;
use orchestrator_core::core::wire;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Config, Env, ErrorCode, Event, Orchestrator, Priority, TaskRequest};
use support::{World, is_idle, pool, read_whole, start_with};

const SEEDS: u64 = 200;
const TASKS: u64 = 60;

/// What one run has shown, for the report that keeps the test honest: a simulation without faults proves nothing.
#[derive(Default, Debug)]
struct Tally {
    accepted: u64,
    refused: u64,
    completed: u64,
    canceled: u64,
    resets: u64,
    resumed: u64,
    timeouts: u64,
    evicted: u64,
    turned_out: u64,
    panics: u64,
    events: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.completed += other.completed;
        self.canceled += other.canceled;
        self.resets += other.resets;
        self.resumed += other.resumed;
        self.timeouts += other.timeouts;
        self.evicted += other.evicted;
        self.turned_out += other.turned_out;
        self.panics += other.panics;
        self.events += other.events;
    }
}

struct Dice(fastrand::Rng);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(0..limit)
    }
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

fn world(dice: &mut Dice, id: &str) -> orchestrator_core::config::PoolConfig {
    let faults = SimFaults {
        refuse_preloads: dice.one_of(&[0, 0, 1, 2]),
        hang_first_ppm: dice.one_of(&[0, 20_000]),
        hang_ppm: dice.one_of(&[0, 0, 5_000]),
        die_ppm: dice.one_of(&[0, 2_000, 10_000]),
        garble_ppm: dice.one_of(&[0, 0, 5_000]),
    };
    let sim = SimConfig {
        first_token_us: dice.one_of(&[0, 500, 20_000]),
        token_us: dice.one_of(&[0, 100, 5_000]),
        preload_us: dice.one_of(&[0, 30_000]),
        faults,
        ..SimConfig::default()
    };
    let (replicas, slots) = (1 + dice.below(3) as u32, 1 + dice.below(4) as u32);
    let policy = dice.one_of(&[FullPolicy::Reject, FullPolicy::DropLru, FullPolicy::ShedLowPriority]);
    let mut pool = pool(id, replicas, slots, sim);
    if id == "b" {
        let shift = |replica: &mut orchestrator_core::config::ReplicaConfig| {
            replica.devices.iter_mut().for_each(|device| {
                *device =
                    orchestrator_core::config::DeviceRef::Uuid(format!("GPU-b{device:?}").replace(['(', ')'], "-"));
            });
        };
        pool.replicas.iter_mut().for_each(shift);
    }
    pool.queue = QueueConfig { capacity: dice.one_of(&[2, 8, 64]), full_policy: policy, ..QueueConfig::default() };
    pool.timeouts = TimeoutConfig { wall_ms: 5_000, idle_ms: 1_000, ..TimeoutConfig::default() };
    pool.restart = RestartConfig { breaker_open_ms: 5_000, ..RestartConfig::default() };
    pool.resume.on_loss = dice.one_of(&[None, None, Some(OnLoss::RestartIfNoToken), Some(OnLoss::Fail)]);
    pool
}

/// One client is heavy, one is narrow, one may use only the first pool, one is like everybody.
fn clients(dice: &mut Dice) -> Config {
    let heavy = ClientConfig { weight: 5, ..ClientConfig::default() };
    let quotas = QuotaConfig { running: Some(1), queued: Some(dice.one_of(&[1, 20])), ..QuotaConfig::default() };
    let narrow = ClientConfig { quotas, ..ClientConfig::default() };
    let kept = ClientConfig { pools: Some(vec!["a".into()]), ..ClientConfig::default() };
    let limits = LimitConfig { tokens_per_s: dice.one_of(&[None, Some(100.0)]), ..LimitConfig::default() };
    let default_client = ClientConfig { limits, ..ClientConfig::default() };
    let named = [("a", heavy), ("b", narrow), ("c", kept)].map(|(name, client)| (name.to_owned(), client));
    Config { clients: named.into(), default_client, ..Config::default() }
}

async fn client(orchestrator: Orchestrator, number: u64, mut dice: Dice, horizon_ms: u64) -> Tally {
    let env = orchestrator.env().clone();
    let mut tally = Tally::default();
    tokio::time::sleep(Duration::from_millis(dice.below(horizon_ms))).await;
    if dice.below(10) == 0 {
        orchestrator.ping_supervisors(); // So that they panic too.
    }
    let session = (dice.below(3) == 0).then(|| format!("s{}", dice.below(5)));
    let max_tokens = 1 + dice.below(30) as u32;
    let request = TaskRequest {
        task_id: Some(support::task_id(&format!("t{number}"))),
        session_id: session.map(|id| orchestrator_core::core::SessionId::parse(&id).unwrap()),
        ..TaskRequest::completion(format!("prompt {number}")).max_tokens(max_tokens)
    };
    let priority = dice.one_of(&Priority::ALL);
    let request = request.priority(priority).client(support::client(["a", "b", "c", "d"][dice.below(4) as usize]));
    let submitted = match orchestrator.submit(request).await {
        Ok(submitted) => submitted,
        Err(error) => {
            assert!(error.retry_after_ms.is_some(), "a refusal says when to come back: {error}");
            tally.refused += 1;
            return tally;
        }
    };
    tally.accepted += 1;
    let reader = tokio::spawn(read_whole(submitted.stream()));
    if dice.below(4) == 0 {
        tokio::time::sleep(Duration::from_micros(dice.below(60_000))).await;
        orchestrator.cancel(&submitted.task_id);
        let at_cancel = orchestrator.task(&submitted.task_id).unwrap().tokens_out;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(orchestrator.task(&submitted.task_id).unwrap().tokens_out, at_cancel, "no token after cancel");
    }
    let (text, end) = reader.await.unwrap();
    let task = orchestrator.task(&submitted.task_id).expect("it is remembered");
    let whole = undisturbed(&format!("prompt {number}"), task.seed, max_tokens, "1", "tiny");
    assert!(whole.starts_with(&text), "t{number} says {text:?} and not {whole:?}");
    match end {
        Event::End(end) if end.finish_reason == orchestrator_core::core::task::FinishReason::Canceled => {
            tally.canceled += 1
        }
        Event::End(_) => {
            assert_eq!(text, whole, "t{number} is whole");
            tally.completed += 1;
        }
        Event::Error(error) => match error.code {
            ErrorCode::WorkerReset => tally.resets += 1,
            ErrorCode::DecodeTimeout => tally.timeouts += 1,
            ErrorCode::QueueFullDropLru | ErrorCode::AdmissionReject => tally.evicted += 1,
            ErrorCode::PoolUnavailable => tally.turned_out += 1,
            other => panic!("unexpected end {other} of an accepted task at {:?}", env.now()),
        },
        other => panic!("not terminal: {other:?}"),
    }
    tally
}

/// One run: the trace as bytes, and the tally. Panics when anything that must hold does not.
fn run(seed: u64) -> (Vec<u8>, Tally) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Dice(fastrand::Rng::with_seed(seed));
        let env = Env::simulated(seed);
        let pools = (0..1 + dice.below(2)).map(|index| world(&mut dice, ["a", "b"][index as usize])).collect();
        let World { orchestrator, stats } = start_with(env.clone(), clients(&mut dice), pools).await;
        env.set_panic_ppm(dice.one_of(&[0, 3_000, 15_000]));
        let clients: Vec<_> = (0..TASKS)
            .map(|number| tokio::spawn(client(orchestrator.clone(), number, Dice(dice.0.fork()), 2_000)))
            .collect();
        let mut tally = Tally::default();
        // Faults go on while tasks come; then they stop, and everything that was accepted must come to its end.
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        env.set_panic_ppm(0);
        for client in clients {
            let one = tokio::time::timeout(Duration::from_secs(3_600), client).await.expect("every task ends").unwrap();
            tally += one;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(orchestrator.pools().iter().all(|pool| pool.unsettled == 0), "every charge is settled");
        assert!(is_idle(&orchestrator), "no slot, place or permit is left behind: {:?}", orchestrator.pools());
        for replica in stats.iter().flatten() {
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!((count(&replica.runs_before_ready), count(&replica.slot_conflicts)), (0, 0));
        }
        let trace = env.recorded();
        let ends = |kind: &TraceKind| matches!(kind, TraceKind::Ended { .. } | TraceKind::Failed { .. });
        let submitted = trace.iter().filter(|event| matches!(event.kind, TraceKind::Submitted { .. })).count();
        assert_eq!(trace.iter().filter(|event| ends(&event.kind)).count(), submitted, "one end for each submission");
        let ended = tally.completed + tally.canceled + tally.resets + tally.timeouts + tally.evicted + tally.turned_out;
        assert_eq!(tally.accepted, ended);
        tally.resumed = orchestrator.pools().iter().map(|pool| pool.resumed).sum();
        assert!(orchestrator.pools().iter().all(|pool| pool.diverged == 0), "this engine repeats itself");
        tally.panics = env.panics_fired();
        tally.events = trace.len();
        (wire::encode(&trace).unwrap(), tally)
    })
}

fn explain(seed: u64, first: &[u8], second: &[u8]) -> String {
    let events = |bytes| wire::decode::<Vec<orchestrator_core::core::trace::TraceEvent>>(bytes).unwrap();
    let (first, second) = (events(first), events(second));
    let at = first.iter().zip(&second).position(|(a, b)| a != b).unwrap_or(first.len().min(second.len()));
    let from = at.saturating_sub(5);
    let part = |events: &[_]| format!("{:#?}", &events[from.min(events.len())..(at + 2).min(events.len())]);
    format!("seed {seed} differs at event {at}:\n{}\n{}", part(&first), part(&second))
}

#[test]
fn every_seed_gives_one_trace_and_every_accepted_task_ends() {
    let number =
        |name| std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let only: Option<u64> = number("SEED");
    let seeds = only.map_or(0..number("SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut all = Tally::default();
    for seed in seeds {
        // Printed before the run: a failure inside it must name its seed.
        let run = |seed| std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed} failed"));
        let (first, tally) = run(seed);
        let (second, _) = run(seed);
        assert!(first == second, "{}", explain(seed, &first, &second));
        all += tally;
    }
    println!("{all:?}");
    let each_happened =
        [all.completed, all.canceled, all.resets, all.resumed, all.timeouts, all.evicted, all.refused, all.panics];
    assert!(only.is_some() || each_happened.iter().all(|count| *count > 50), "the faults strike: {all:?}");
}
