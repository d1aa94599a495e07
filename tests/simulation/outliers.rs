//! Engines that fail fast, turn tasks away, and do not answer beside their work, while their pool is busy: no task is
//! lost, and a replica that is no good costs its own share alone.

use std::collections::BTreeMap;
use std::time::Duration;

use orchestrator_core::config::{PoolConfig, QueueConfig, SimConfig, SimFaults};
use orchestrator_core::core::TaskSeq;
use orchestrator_core::core::trace::{TraceEvent, TraceKind};
use orchestrator_core::{Env, Event, TaskRequest};

use super::check::{Checker, Spec};
use super::support::{World, client, millisecond, pool, read_whole, start, task_id};
use super::world::Rng;

const REPLICAS: u32 = 4;
const ALWAYS: u32 = 1_000_000;

/// How one replica of four misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// None does.
    Well,
    /// It fails every task at once.
    Black,
    /// It turns every task away for so many milliseconds, until two seconds have passed.
    Busy(u64),
    /// Its health page is never answered, while it gives tokens.
    Stalls,
}

impl Way {
    fn faults(self, replica: u16) -> SimFaults {
        let base = SimFaults { only_replica: Some(replica), ..SimFaults::default() };
        match self {
            Way::Well => base,
            Way::Black => SimFaults { fail_fast_ppm: ALWAYS, ..base },
            Way::Busy(busy_ms) => SimFaults { busy_ppm: ALWAYS, busy_ms, ..base },
            Way::Stalls => SimFaults { stall_probe_ppm: ALWAYS, ..base },
        }
    }
}

/// What a run has shown.
pub struct Shown {
    pub trace: Vec<TraceEvent>,
    /// Virtual time until the last task had ended.
    pub took: Duration,
    /// Attempts that were begun on the replica that misbehaves.
    pub wasted: usize,
}

fn config(way: Way, dice: &mut Rng, replicas: u32, token_us: u64) -> (PoolConfig, u16) {
    let sick = dice.below(u64::from(replicas)) as u16;
    let sim = SimConfig { token_us, faults: way.faults(sick), ..millisecond() };
    let queue = QueueConfig { capacity: 1_000, ..QueueConfig::default() };
    (PoolConfig { queue, ..pool("a", replicas, 2, sim) }, sick)
}

/// So many tasks of so many tokens, as many a second; zero is all at once.
struct Load {
    tasks: u64,
    tokens: u32,
    token_us: u64,
    every: Duration,
}

/// Runs a pool of so many replicas, one of which misbehaves.
///
/// # Errors
/// What was promised and not kept.
fn run(seed: u64, way: Way, replicas: u32, load: &Load) -> Result<Shown, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Rng(fastrand::Rng::with_seed(seed));
        let (config, sick) = config(way, &mut dice, replicas, load.token_us);
        let attempts_max = config.resume.attempts_max;
        let env = Env::simulated(seed);
        let World { orchestrator, .. } = start(env.clone(), vec![config]).await;
        orchestrator.until_ready().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = env.now();
        let mut readers = Vec::new();
        for number in 0..load.tasks {
            // All as long as each other where tokens have to flow on every replica to the end.
            let drawn = 1 + dice.below(u64::from(load.tokens) * 2) as u32;
            let tokens = if way == Way::Stalls { load.tokens } else { drawn };
            let request = TaskRequest { task_id: Some(task_id(&format!("t{number}"))), ..TaskRequest::completion("x") };
            let request = request.max_tokens(tokens).client(client(["a", "b", "c"][dice.below(3) as usize]));
            let submitted = orchestrator.submit(request).await.map_err(|error| format!("t{number}: {error}"))?;
            readers.push(tokio::spawn(read_whole(submitted.stream())));
            tokio::time::sleep(load.every).await;
        }
        if let Way::Busy(_) = way {
            tokio::time::sleep(Duration::from_secs(2)).await;
            env.make_engines_behave();
        }
        for (number, reader) in readers.into_iter().enumerate() {
            let end = tokio::time::timeout(Duration::from_secs(600), reader).await;
            match end.map_err(|_| format!("t{number} does not end"))?.expect("a reader finds nothing wrong").1 {
                Event::End(_) => {}
                other => return Err(format!("t{number} is lost: {other:?}")),
            }
        }
        let took = env.now().since(begun);
        let view = &orchestrator.pools()[0];
        let deaths: u64 = view.replicas.iter().map(|replica| replica.restarts).sum();
        let (trace, stalls) = (env.recorded(), view.stalls);
        let law = Spec { capacity: vec![1_000], attempts_max, narrow: client("nobody") };
        Checker::check(&law, &trace).map_err(|(step, broken)| format!("{broken} (step {step})"))?;
        if (deaths, stalls) != (0, 0) {
            return Err(format!("{deaths} engines were given up, {stalls} stalls"));
        }
        let at_sick = |event: &&TraceEvent| matches!(event.kind, TraceKind::Begun { replica, .. } if replica == sick);
        let wasted = trace.iter().filter(at_sick).count();
        if way == Way::Black {
            let mut by_task: BTreeMap<TaskSeq, u32> = BTreeMap::new();
            for event in trace.iter().filter(at_sick) {
                let TraceKind::Begun { seq, .. } = event.kind else { continue };
                *by_task.entry(seq).or_default() += 1;
            }
            // Where others have room, a task that was lost goes there.
            let again = by_task.iter().find(|(_, times)| **times > 1).filter(|_| load.every > Duration::ZERO);
            if let Some((seq, times)) = again {
                return Err(format!("task {} was sent {times} times to the replica that fails all", seq.0));
            }
        }
        Ok(Shown { trace, took, wasted })
    })
}

const BACKLOG: Load = Load { tasks: 400, tokens: 20, token_us: 1_000, every: Duration::ZERO };
const LIGHT: Load = Load { tasks: 200, tokens: 20, token_us: 1_000, every: Duration::from_millis(20) };
const FEW: Load = Load { tasks: 20, tokens: 10, token_us: 1_000, every: Duration::ZERO };
const LONG: Load = Load { tasks: 4, tokens: 120, token_us: 250_000, every: Duration::ZERO };

/// Every situation, each with the number of its replicas.
const SITUATIONS: [(Way, u32, &Load); 7] = [
    (Way::Black, REPLICAS, &BACKLOG),
    (Way::Black, REPLICAS, &LIGHT),
    (Way::Busy(500), REPLICAS, &BACKLOG),
    (Way::Busy(0), REPLICAS, &LIGHT),
    (Way::Busy(100), 1, &FEW),
    (Way::Busy(1_500), 1, &FEW),
    (Way::Stalls, 2, &LONG),
];

#[test]
fn a_replica_that_is_no_good_costs_its_share_and_no_task() {
    let (mut goodput, mut wasted, mut broken) = (Vec::new(), 0, Vec::new());
    for seed in 0..40 {
        for (way, replicas, load) in SITUATIONS {
            let (first, second) = match (run(seed, way, replicas, load), run(seed, way, replicas, load)) {
                (Ok(first), Ok(second)) => (first, second),
                (Err(what), _) | (_, Err(what)) => {
                    broken.push(format!("seed {seed}, {way:?} with {replicas} replicas: {what}"));
                    continue;
                }
            };
            if first.trace != second.trace {
                broken.push(format!("seed {seed}, {way:?}: two traces"));
            }
            if way == Way::Black && load.every == Duration::ZERO {
                wasted = wasted.max(first.wasted);
                match run(seed, Way::Well, replicas, load) {
                    Ok(well) => goodput.push(well.took.as_secs_f64() / first.took.as_secs_f64()),
                    Err(what) => broken.push(format!("seed {seed}, all well: {what}")),
                }
            }
        }
    }
    goodput.sort_by(f64::total_cmp);
    let (worst, median) = (goodput.first(), goodput.get(goodput.len() / 2));
    println!("goodput with one of four black, of four good ones: median {median:.3?}, worst {worst:.3?}");
    println!("{wasted} attempts wasted at most; {} broken:", broken.len());
    broken.iter().take(8).for_each(|what| println!("{what}"));
    assert!(broken.is_empty());
    assert!(worst.is_some_and(|worst| *worst >= 0.74), "{worst:?}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_of_outlier_detection_is_found() {
    use orchestrator_core::planted::{Bug, plant};
    for bug in Bug::OUTLIERS {
        let found = (0..40_u64).find_map(|seed| {
            SITUATIONS.iter().find_map(|(way, replicas, load)| {
                plant(Some(bug));
                let outcome = run(seed, *way, *replicas, load);
                plant(None);
                outcome.err().map(|broken| format!("seed {seed}, {way:?}: {broken}"))
            })
        });
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")));
    }
}
