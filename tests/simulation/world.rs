//! One simulated world: everything follows from its seed.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use orchestrator_core::config::{
    ClientConfig, DeviceRef, GpuConfig, LimitConfig, PoolConfig, QueueConfig, QuotaConfig, ReplicaConfig,
    RestartConfig, SimConfig, SimFaults, TimeoutConfig,
};
use orchestrator_core::core::SessionId;
use orchestrator_core::core::device::health::Condition;
use orchestrator_core::core::lifecycle::{PoolState, ReplicaState};
use orchestrator_core::core::queue::overflow::FullPolicy;
use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::task::{FinishReason, OnDisconnect};
use orchestrator_core::core::trace::TraceEvent;
use orchestrator_core::env::InjectedPanic;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{
    Cause, Config, DeviceView, Env, ErrorCode, Event, ModelChange, Orchestrator, PoolView, Priority, ReplicaView,
    TaskRequest,
};

use super::check::{Checker, Spec};
use super::driver::driver;
use super::support::{World, client as client_id, devices_of, is_idle, pool, pool_id, read_whole, start_on, task_id};
use super::tally::Tally;

const TASKS: u64 = 60;
/// What pools are reloaded with. The first two are good, all others come to grief while faults strike.
const MODELS: [&str; 5] = ["tiny", "other", "dies", "dies-on-1", "hangs-on-0"];
/// Events of one run. The longest of the first two thousand has a twentieth.
const EVENTS_MAX: usize = 100_000;
/// Virtual time after which a task that has not ended never will: the wall timeout of all its attempts, and every wait.
const LIVENESS: Duration = Duration::from_secs(3_600);

pub struct Rng(pub fastrand::Rng);

impl Rng {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(0..limit)
    }
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

fn world(dice: &mut Rng, id: &str) -> PoolConfig {
    let faults = SimFaults {
        refuse_preloads: dice.one_of(&[0, 0, 1, 2]),
        // A self-test has a hundred tokens and more: what strikes one token in a hundred lets few of them pass.
        hang_first_ppm: dice.one_of(&[0, 0, 20_000]),
        hang_ppm: dice.one_of(&[0, 0, 0, 1_000, 20_000]),
        die_ppm: dice.one_of(&[0, 500, 2_000, 10_000, 50_000]),
        garble_ppm: dice.one_of(&[0, 0, 0, 2_000, 50_000]),
        stick_ppm: dice.one_of(&[0, 0, 20_000, 200_000]),
        ..SimFaults::default()
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
        let shift = |replica: &mut ReplicaConfig| {
            replica.devices.iter_mut().for_each(|device| {
                *device = DeviceRef::Uuid(format!("GPU-b{device:?}").replace(['(', ')'], "-"));
            });
        };
        pool.replicas.iter_mut().for_each(shift);
    }
    pool.queue = QueueConfig { capacity: dice.one_of(&[2, 8, 64]), full_policy: policy, ..QueueConfig::default() };
    pool.timeouts = TimeoutConfig {
        wall_ms: 5_000,
        idle_ms: 1_000,
        preload_ms: 2_000,
        drain_ms: 500,
        stop_ms: 200,
        ..TimeoutConfig::default()
    };
    pool.restart = RestartConfig { breaker_open_ms: 5_000, ..RestartConfig::default() };
    pool.self_test = dice.below(2) == 0;
    pool.resume.on_loss = dice.one_of(&[None, None, Some(OnLoss::RestartIfNoToken), Some(OnLoss::Fail)]);
    pool
}

/// Engines whose code panics, does not come back, and fakes its ends, in half of all worlds. By dice of their own, so
/// that the other half is what it was without them.
fn with_rough_code(mut pool: PoolConfig, seed: u64) -> PoolConfig {
    let mut dice = Rng(fastrand::Rng::with_seed(seed ^ 0x9e37_79b9_7f4a_7c15));
    if let (0, Some(sim)) = (seed % 2, &mut pool.sim) {
        sim.faults.panic_ppm = dice.one_of(&[0, 500, 5_000, 50_000]);
        sim.faults.hang_call_ppm = dice.one_of(&[0, 0, 20_000]);
        sim.faults.fake_stop_ppm = dice.one_of(&[0, 0, 2_000]);
    }
    pool
}

/// One client is heavy, one is narrow, one may use only the first pool, one is like everybody.
fn clients(dice: &mut Rng) -> Config {
    let heavy = ClientConfig { weight: 5, ..ClientConfig::default() };
    let quotas = QuotaConfig { running: Some(1), queued: Some(dice.one_of(&[1, 20])), ..QuotaConfig::default() };
    let narrow = ClientConfig { quotas, ..ClientConfig::default() };
    let kept = ClientConfig { pools: Some(vec!["a".into()]), ..ClientConfig::default() };
    let limits = LimitConfig { tokens_per_s: dice.one_of(&[None, Some(100.0)]), ..LimitConfig::default() };
    let default_client = ClientConfig { limits, ..ClientConfig::default() };
    let named = [("a", heavy), ("b", narrow), ("c", kept)].map(|(name, client)| (name.to_owned(), client));
    Config { clients: named.into(), default_client, disconnect_grace_ms: 100, ..Config::default() }
}

async fn client(orchestrator: Orchestrator, number: u64, mut dice: Rng, horizon_ms: u64) -> Tally {
    let env = orchestrator.env().clone();
    let mut tally = Tally::default();
    tokio::time::sleep(Duration::from_millis(dice.below(horizon_ms))).await;
    if dice.below(10) == 0 {
        orchestrator.ping_supervisors(); // So that they panic too.
    }
    let session = (dice.below(3) == 0).then(|| format!("s{}", dice.below(5)));
    let max_tokens = 1 + dice.below(30) as u32;
    let request = TaskRequest {
        task_id: Some(task_id(&format!("t{number}"))),
        session_id: session.map(|id| SessionId::parse(&id).unwrap()),
        model_ref: (dice.below(5) == 0).then(|| dice.one_of(&MODELS[..2]).to_owned()),
        ..TaskRequest::completion(format!("prompt {number}")).max_tokens(max_tokens)
    };
    let named = request.model_ref.clone();
    let priority = dice.one_of(&Priority::ALL);
    let request = TaskRequest { on_disconnect: dice.one_of(&[OnDisconnect::Cancel, OnDisconnect::Keep]), ..request };
    let request = request.priority(priority).client(client_id(["a", "b", "c", "d"][dice.below(4) as usize]));
    let submitted = match orchestrator.submit(request).await {
        Ok(submitted) => submitted,
        Err(error) => {
            // What is served may be another model, or several, or this one only where the client may not go.
            let is_misfit = error.code == ErrorCode::InvalidParams && error.message.contains("serve");
            assert!(is_misfit || error.retry_after_ms.is_some(), "a refusal says when to come back: {error}");
            tally.refused += 1;
            return tally;
        }
    };
    tally.accepted += 1;
    if dice.below(6) == 0 {
        // Somebody looks for a while and leaves; somebody else may come later.
        let looker = submitted.stream();
        tokio::time::sleep(Duration::from_millis(dice.below(200))).await;
        drop(looker);
        tokio::time::sleep(Duration::from_millis(dice.below(200))).await;
    }
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
    let models = MODELS.into_iter().filter(|model| named.as_ref().is_none_or(|named| named == model));
    let wholes = models.map(|model| undisturbed(&format!("prompt {number}"), task.seed, max_tokens, "1", model));
    // One model's word may begin like another's: " a" is whole, and a part of " always".
    let wholes: Vec<String> = wholes.collect();
    let whole = wholes.iter().find(|whole| **whole == text).or(wholes.iter().find(|whole| whole.starts_with(&text)));
    let whole = whole.unwrap_or_else(|| panic!("t{number} says {text:?}, which no model says that it asked for"));
    match end {
        Event::End(end) if end.finish_reason == FinishReason::Canceled => tally.canceled += 1,
        Event::End(_) => {
            assert_eq!(text, *whole, "t{number} is whole");
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

/// Reloads a pool at some moment, and waits for the end of it.
async fn operator(orchestrator: Orchestrator, pools: u64, mut dice: Rng) {
    tokio::time::sleep(Duration::from_millis(dice.below(2_000))).await;
    let pool = pool_id(["a", "b"][dice.below(pools) as usize]);
    let change = ModelChange { undo: dice.below(8) == 0, ..ModelChange::default() };
    let change = if change.undo {
        change
    } else {
        ModelChange::to_model(if dice.below(2) == 0 { dice.one_of(&MODELS) } else { MODELS[1] })
    };
    if orchestrator.reload(&pool, &change).is_ok() {
        orchestrator.until_reloaded(&pool).await.expect("there was one");
    }
}

/// What a run has shown.
pub struct Run {
    pub trace: Vec<TraceEvent>,
    pub tally: Tally,
}

/// What a run has broken.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    /// The event at which it shows, as an index of the trace.
    pub step: usize,
    pub last: Vec<TraceEvent>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} (step {})", self.what, self.step)?;
        self.last.iter().try_for_each(|event| writeln!(f, "  {:>10} us  {:?}", event.at.as_micros(), event.kind))
    }
}

/// Events that are shown with a violation.
const SHOWN: usize = 12;

thread_local! {
    /// Panics of this thread that nobody planned. An actor's panic is caught by its supervisor, and would not be seen.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The environment of the world that runs in this thread, for whoever looks at it after it has failed.
    static ENV: RefCell<Option<Env>> = const { RefCell::new(None) };
}

/// Keeps panics off the screen and in mind. Once in a process, before the first run.
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
pub fn run(seed: u64) -> Result<Run, Box<Violation>> {
    PANICS.take();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run_world(seed)));
    let trace = ENV.take().map(|env| env.recorded()).unwrap_or_default();
    let violation = |what: String, step: usize| {
        let shown = trace[..(step + 1).min(trace.len())].iter().rev().take(SHOWN).rev().cloned().collect();
        Err(Box::new(Violation { what, step, last: shown }))
    };
    // The trace first: it says which step was the first that went wrong.
    let law = result.as_ref().ok().map(|(law, _)| law);
    let anyway = Spec { capacity: vec![u32::MAX; 2], attempts_max: u32::MAX, narrow: client_id("nobody") };
    let broken = Checker::check(law.unwrap_or(&anyway), &trace).err();
    if let Some((step, what)) = broken.filter(|(step, _)| law.is_some() || *step < trace.len()) {
        return violation(what, step);
    }
    if let Some(panic) = PANICS.take().into_iter().next() {
        return violation(panic.replace('\n', ": "), trace.len());
    }
    match result {
        Ok((_, tally)) => Ok(Run { trace, tally }),
        Err(_) => violation("it failed without a word".into(), trace.len()),
    }
}

/// What matters of a pool, in one line.
fn digest(pool: &PoolView) -> String {
    let replica = |replica: &ReplicaView| format!("{} {:?}", replica.state.as_str(), replica.model_digest);
    let replicas: Vec<String> = pool.replicas.iter().map(replica).collect();
    format!("{} {:?} used {} depth {:?} {replicas:?}", pool.pool_id, pool.state, pool.slots_used, pool.queue_depth)
}

fn run_world(seed: u64) -> (Spec, Tally) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Rng(fastrand::Rng::with_seed(seed));
        let env = Env::simulated(seed);
        ENV.set(Some(env.clone()));
        let pools: Vec<PoolConfig> =
            (0..1 + dice.below(2)).map(|index| world(&mut dice, ["a", "b"][index as usize])).collect();
        let pools: Vec<PoolConfig> = pools.into_iter().map(|pool| with_rough_code(pool, seed)).collect();
        let pools_count = pools.len() as u64;
        let capacity = pools.iter().map(|pool| pool.queue.capacity).collect();
        let attempts_max = pools.iter().map(|pool| pool.resume.attempts_max).max().unwrap_or_default();
        let law = Spec { capacity, attempts_max, narrow: client_id("b") };
        let drains_b = dice.below(4) == 0 && pools.len() == 2;
        let (devices, ids) = devices_of(&pools);
        let gpu = GpuConfig {
            poll_ms: 100,
            answer_ms: 200,
            recover_ms: dice.one_of(&[0, 100, 1_000]),
            ..GpuConfig::default()
        };
        let config = Config { gpu, ..clients(&mut dice) };
        let has_driver = dice.below(2) == 0;
        let probe = has_driver.then(|| devices.clone());
        let World { orchestrator, stats } = start_on(probe, env.clone(), config, pools).await;
        let driving = has_driver.then(|| tokio::spawn(driver(devices, ids, Rng(dice.0.fork()))));
        env.set_events_max(EVENTS_MAX);
        env.set_panic_ppm(dice.one_of(&[0, 3_000, 15_000]));
        let clients: Vec<_> = (0..TASKS)
            .map(|number| tokio::spawn(client(orchestrator.clone(), number, Rng(dice.0.fork()), 2_000)))
            .collect();
        let operators: Vec<_> = (0..dice.below(6))
            .map(|_| tokio::spawn(operator(orchestrator.clone(), pools_count, Rng(dice.0.fork()))))
            .collect();
        let mut tally = Tally::default();
        // Faults go on while tasks come; then they stop, and everything that was accepted must come to its end.
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        if drains_b {
            orchestrator.drain(&pool_id("b"));
        }
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        env.set_panic_ppm(0);
        env.make_engines_behave();
        for client in clients {
            let one = tokio::time::timeout(LIVENESS, client).await.expect("every task ends");
            tally += one.expect("a client found nothing wrong");
        }
        for operator in operators {
            tokio::time::timeout(LIVENESS, operator)
                .await
                .expect("every reload ends")
                .expect("and finds nothing wrong");
        }
        if let Some(driving) = driving {
            driving.await.expect("it goes by its dice");
        }
        // A device that failed too often is out for ten minutes.
        let is_out = |device: &DeviceView| matches!(device.condition, Condition::Failed { .. });
        let all_well = async {
            while orchestrator.devices().devices.iter().any(is_out) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(LIVENESS, all_well).await.expect("every device comes back");
        tokio::time::sleep(Duration::from_secs(10)).await;
        for pool in orchestrator.pools().iter().filter(|pool| pool.state == PoolState::Ready) {
            let (first, rest) = pool.replicas.split_first().expect("it has replicas");
            assert!(
                rest.iter().all(|replica| replica.model_digest == first.model_digest),
                "one model: {}",
                digest(pool)
            );
            assert!(
                pool.replicas.iter().all(|replica| replica.state == ReplicaState::Ready),
                "all serve: {}",
                digest(pool)
            );
        }
        assert!(orchestrator.pools().iter().all(|pool| pool.unsettled == 0), "every charge is settled");
        assert!(
            is_idle(&orchestrator),
            "no slot, place or permit is left behind: {:?}",
            orchestrator.pools().iter().map(digest).collect::<Vec<_>>()
        );
        for replica in stats.iter().flatten() {
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            let (early, conflicts) = (count(&replica.runs_before_ready), count(&replica.slot_conflicts));
            assert_eq!((early, conflicts), (0, 0), "runs before Ready, and runs in a slot that another had");
        }
        let ended = tally.completed + tally.canceled + tally.resets + tally.timeouts + tally.evicted + tally.turned_out;
        assert_eq!(tally.accepted, ended);
        tally.resumed = orchestrator.pools().iter().map(|pool| pool.resumed).sum();
        assert!(orchestrator.pools().iter().all(|pool| pool.diverged == 0), "this engine repeats itself");
        tally.deserted = orchestrator.pools().iter().map(|pool| pool.deserted).sum();
        let stalls: u64 = orchestrator.pools().iter().map(|pool| pool.stalls).sum();
        assert_eq!(stalls, 0, "no task waits beside a free slot for a second");
        let leaks: u64 =
            orchestrator.pools().iter().flat_map(|pool| &pool.replicas).map(|replica| replica.slot_leaks).sum();
        assert_eq!(leaks, 0, "no engine computes for nobody");
        tally.panics = env.panics_fired();
        tally.device_failures = orchestrator.devices().devices.iter().map(|device| device.failures).sum();
        let pools = orchestrator.pools();
        let replicas = pools.iter().flat_map(|pool| &pool.replicas);
        let of_panics = |counts: &std::collections::BTreeMap<Cause, u64>| counts.get(&Cause::EnginePanic).copied();
        let panics = |replica: &ReplicaView| [of_panics(&replica.deaths), of_panics(&replica.attempts_failed)];
        tally.engine_panics = replicas.clone().flat_map(panics).flatten().sum();
        tally.stuck = replicas.clone().map(|replica| replica.stop_timeouts).sum();
        assert!(replicas.clone().all(|replica| replica.slots_quarantined == 0), "every slot comes back");
        for [done, undone] in orchestrator.pools().iter().map(|pool| pool.reloads) {
            (tally.reloaded, tally.reloads_undone) = (tally.reloaded + done, tally.reloads_undone + undone);
        }
        tally.events = env.recorded().len();
        (law, tally)
    })
}

/// How a planted bug was found.
#[cfg(feature = "planted-bugs")]
pub struct Found {
    /// The first seed that found it.
    pub first: u64,
    /// How many of the first hundred seeds found it.
    pub of_hundred: u32,
    /// What the first said.
    pub what: String,
}

/// Looks for a planted bug with the seeds up to `most`.
#[cfg(feature = "planted-bugs")]
pub fn hunt(bug: orchestrator_core::planted::Bug, most: u64) -> Option<Found> {
    let mut found: Option<Found> = None;
    for seed in 0..most {
        if seed >= 100 && found.is_some() {
            break;
        }
        orchestrator_core::planted::plant(Some(bug));
        let outcome = run(seed);
        orchestrator_core::planted::plant(None);
        if let Err(violation) = outcome {
            let first = found.get_or_insert(Found { first: seed, of_hundred: 0, what: violation.what });
            first.of_hundred += u32::from(seed < 100);
        }
    }
    found
}
