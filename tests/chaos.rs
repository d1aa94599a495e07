//! Real llama.cpp servers that are killed and stopped at random under load: no stream is lost, doubled or changed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use orchestrator_core::config::{PoolConfig, RestartConfig};
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::{Event, Orchestrator, TaskRequest, TaskStream};

use crate::support::llama::{lives, pool, prompt, server, start};
use crate::support::{alone, eventually, is_idle, kill};

const STREAMS: u64 = 200;
const CHAOS: Duration = Duration::from_secs(60);
const STRIKE_EVERY: Duration = Duration::from_millis(500);
const IDLE_MS: u64 = 1_000;

/// What a client has seen of one stream.
struct Seen {
    text: String,
    /// The longest wait for the next token behind each loss.
    gaps: Vec<Duration>,
    attempts: u32,
}

/// Reads a stream to its end; its token indices must be 0, 1, 2 and so on.
async fn read(mut stream: TaskStream) -> Seen {
    let (mut seen, mut next, mut ends) = (Seen { text: String::new(), gaps: Vec::new(), attempts: 0 }, 0, 0);
    let (mut newest, mut lost) = (Instant::now(), false);
    while let Some((_, event)) = stream.next().await {
        match event {
            Event::Started(started) => {
                seen.attempts = started.attempt;
                // Before the first token nobody sees a gap in a stream.
                lost = next > 0;
            }
            Event::Token { text, index } => {
                assert_eq!(index, next, "each token once, in order");
                if std::mem::take(&mut lost) {
                    seen.gaps.push(newest.elapsed());
                }
                (next, newest) = (next + 1, Instant::now());
                seen.text.push_str(&text);
            }
            Event::End(end) => {
                assert_eq!((end.finish_reason, end.tokens_out), (FinishReason::Length, next));
                ends += 1;
            }
            other => panic!("{}: {other:?}", stream.task_id()),
        }
    }
    assert_eq!(ends, 1);
    seen
}

fn task(number: u64) -> TaskRequest {
    TaskRequest::completion(prompt(number)).max_tokens(256 + (number % 97) as u32).seed(number)
}

/// Submits all streams, evenly over this time, and reads them.
async fn run_all(orchestrator: &Orchestrator, over: Duration) -> Vec<Seen> {
    let mut readers = Vec::new();
    for number in 0..STREAMS {
        // While every engine is down at once the pool says so, and when to come back.
        let submitted = loop {
            match orchestrator.submit(task(number)).await {
                Ok(submitted) => break submitted,
                Err(error) => {
                    let wait = error.retry_after_ms.expect("it says when to come back");
                    tokio::time::sleep(Duration::from_millis(wait.clamp(1, 100))).await;
                }
            }
        };
        readers.push(tokio::spawn(read(submitted.stream())));
        tokio::time::sleep(over / STREAMS as u32).await;
    }
    let mut seen = Vec::new();
    for reader in readers {
        let one = tokio::time::timeout(Duration::from_secs(120), reader).await.expect("every stream ends");
        seen.push(one.expect("a whole stream"));
    }
    seen
}

/// How long after a blow the runtime had taken the replica out of service.
#[derive(Default)]
struct Noticed {
    deaths: Vec<Duration>,
    /// Only of engines that were running a task: nobody asks the others anything for a while.
    stops: Vec<Duration>,
    pids: BTreeSet<u32>,
}

/// Kills or stops a random engine, twice a second.
async fn strike(orchestrator: Orchestrator) -> Noticed {
    let (mut dice, mut noticed) = (fastrand::Rng::with_seed(4), Noticed::default());
    let end = Instant::now() + CHAOS;
    let mut watches = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(STRIKE_EVERY).await;
        let pools = orchestrator.pools();
        let ready = pools[0].replicas.iter().filter(|replica| replica.state.is_ready());
        let targets: Vec<_> = ready.filter_map(|replica| Some((replica.clone(), replica.engine_process_id?))).collect();
        noticed.pids.extend(targets.iter().map(|(_, pid)| *pid));
        if targets.is_empty() {
            continue;
        }
        let (replica, pid) = &targets[dice.usize(..targets.len())];
        let stops = dice.u32(..3) == 0;
        kill(*pid, if stops { "-STOP" } else { "-KILL" });
        let (struck, watched) = (Instant::now(), orchestrator.clone());
        let (pid, index, busy) = (*pid, replica.replica_id.index as usize, replica.slots_used > 0);
        watches.push(tokio::spawn(async move {
            let out = || {
                let replica = &watched.pools()[0].replicas[index];
                !replica.state.is_ready() || replica.engine_process_id != Some(pid)
            };
            eventually("the blow is noticed", out).await;
            (stops, busy, struck.elapsed())
        }));
    }
    for watch in watches {
        match watch.await.unwrap() {
            (false, _, after) => noticed.deaths.push(after),
            (true, true, after) => noticed.stops.push(after),
            (true, false, _) => {}
        }
    }
    noticed
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

fn line(name: &str, mut durations: Vec<Duration>) -> Vec<Duration> {
    durations.sort_unstable();
    let [half, most, all] = [0.5, 0.99, 1.0].map(|part| quantile(&durations, part));
    println!("{name:44} {:4} times: p50 {half:?}, p99 {most:?}, longest {all:?}", durations.len());
    durations
}

fn hardy(pool: PoolConfig) -> PoolConfig {
    let mut pool = pool;
    (pool.timeouts.idle_ms, pool.timeouts.stop_ms) = (IDLE_MS, 500);
    // Sixty deaths a minute are the point here and not a reason to give up.
    pool.restart = RestartConfig { intensity: 1_000, backoff_ms: 10, backoff_max_ms: 10, ..RestartConfig::default() };
    pool.resume.attempts_max = 200;
    (pool.resume.ejection_ms, pool.resume.ejection_max_ms) = (5, 20);
    pool.queue.capacity = 1_000;
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_are_killed_and_stopped_for_a_minute_change_no_stream() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    // One slot each: what this server computes beside a run can change the run's rounding (see ARCHITECTURE.md).
    let orchestrator = start(hardy(pool(&server, 2, 1))).await;
    let begin = Instant::now();
    let undisturbed = run_all(&orchestrator, Duration::ZERO).await;
    println!("{STREAMS} streams undisturbed in {:?}", begin.elapsed());
    let striking = tokio::spawn(strike(orchestrator.clone()));
    let begin = Instant::now();
    let disturbed = run_all(&orchestrator, CHAOS).await;
    println!("{STREAMS} streams under blows in {:?}", begin.elapsed());
    let noticed = striking.await.unwrap();
    let equal = undisturbed.iter().zip(&disturbed).filter(|(one, other)| one.text == other.text).count();
    let attempts: u32 = disturbed.iter().map(|seen| seen.attempts).sum();
    let pool = &orchestrator.pools()[0];
    println!("{equal} of {STREAMS} streams equal, {attempts} attempts, {} resumed", pool.resumed);
    let deaths = line("a death is noticed", noticed.deaths);
    let stops = line("a stop under a running task is noticed", noticed.stops);
    line("the gap that a client sees at a failover", disturbed.iter().flat_map(|seen| seen.gaps.clone()).collect());
    assert_eq!(equal as u64, STREAMS);
    assert_eq!((pool.diverged, pool.completed, pool.failed.values().sum::<u64>()), (0, 2 * STREAMS, 0));
    assert!(pool.resumed > 20 && deaths.len() > 20 && stops.len() > 5, "the blows strike");
    // The machine may be busy with anything: the median says what the runtime does.
    assert!(quantile(&deaths, 0.5) <= Duration::from_millis(100), "{deaths:?}");
    assert!(quantile(&stops, 0.5) <= Duration::from_millis(IDLE_MS + 1_000), "{stops:?}");
    let watched = orchestrator.clone();
    eventually("no slot is lost", || is_idle(&watched)).await;
    orchestrator.stop(Duration::MAX).await;
    eventually("no engine is left", || noticed.pids.iter().all(|pid| !lives(*pid))).await;
}
