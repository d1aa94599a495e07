//! Ten times more than the pool can do, for thirty seconds of real time on two threads: what gets done beside the same
//! pool at its capacity, how long a refusal takes, and whether memory stays where it is. Prints a few lines; panics
//! where a bound is broken.
//!
//! `cargo bench --bench overload`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use orchestrator_core::config::{Config, PoolConfig, RetentionConfig, SimConfig};
use orchestrator_core::core::ClientId;
use orchestrator_core::gpu::SimEngine;
use orchestrator_core::{Event, Orchestrator, TaskRequest};

const SLOTS: u32 = 160;
/// 16 tokens of 10 ms, each of which takes the timer about a millisecond longer.
const RUN_S: f64 = 0.176;
/// Refusals that took longer than this many microseconds are counted as that.
const REFUSAL_US_MAX: usize = 10_000;

struct Tally {
    sent: AtomicU64,
    refused: AtomicU64,
    without_advice: AtomicU64,
    tokens: AtomicU64,
    /// Refusals by the microseconds that they took.
    refusals_us: Vec<AtomicU64>,
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

async fn one(orchestrator: Orchestrator, number: u64, tally: Arc<Tally>) {
    let client = ClientId::parse(&format!("c{}", number % 1_000)).unwrap();
    let request = TaskRequest::completion("some words to go on from").max_tokens(16).client(client);
    tally.sent.fetch_add(1, Relaxed);
    let asked = Instant::now();
    match orchestrator.submit(request).await {
        Err(error) => {
            tally.refused.fetch_add(1, Relaxed);
            tally.without_advice.fetch_add(u64::from(error.retry_after_ms.is_none()), Relaxed);
            tally.refusals_us[(asked.elapsed().as_micros() as usize).min(REFUSAL_US_MAX)].fetch_add(1, Relaxed);
        }
        Ok(submitted) => {
            if let (_, Some(Event::End(end))) = submitted.stream().collect().await {
                tally.tokens.fetch_add(u64::from(end.tokens_out), Relaxed);
            }
        }
    }
}

/// Tokens a second at this load.
async fn run(load: f64, seconds: u64) -> f64 {
    let mut pool = PoolConfig::new("a", "sim", "tiny");
    pool.slots = SLOTS;
    pool.sim = Some(SimConfig { first_token_us: 10_000, token_us: 10_000, preload_us: 0, ..SimConfig::default() });
    let config =
        Config { retention: RetentionConfig { tasks: 1_000, ..RetentionConfig::default() }, ..Config::default() };
    let orchestrator = Orchestrator::builder().config(config).pool(pool, SimEngine::new).start().await.unwrap();
    orchestrator.until_ready().await;
    let none = || AtomicU64::new(0);
    let refusals_us = (0..=REFUSAL_US_MAX).map(|_| none()).collect();
    let tally = Tally { sent: none(), refused: none(), without_advice: none(), tokens: none(), refusals_us };
    let (tally, begin) = (Arc::new(tally), tokio::time::Instant::now());
    let per_s = load * f64::from(SLOTS) / RUN_S;
    let (mut next, mut depth_max, mut resident) = (0_u64, 0, [0; 2]);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let due = (begin.elapsed().as_secs_f64() * per_s) as u64;
        for number in next..due {
            tokio::spawn(one(orchestrator.clone(), number, tally.clone()));
        }
        next = due.max(next);
        let view = &orchestrator.pools()[0];
        depth_max = depth_max.max(view.queue_depth[0]);
        assert!(
            view.queue_depth[0] <= view.queue_capacity
                && orchestrator.view().tasks_open <= orchestrator.view().tasks_open_max
        );
        if begin.elapsed().as_secs_f64() > seconds as f64 / 3.0 && resident[0] == 0 {
            resident[0] = resident_kib();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    resident[1] = resident_kib();
    let per_second = tally.tokens.load(Relaxed) as f64 / begin.elapsed().as_secs_f64();
    let at = |part: f64| {
        let wanted = (tally.refused.load(Relaxed) as f64 * part) as u64;
        let mut passed = 0;
        tally.refusals_us.iter().position(|count| {
            passed += count.load(Relaxed);
            passed > wanted
        })
    };
    let (p50, p99) = (at(0.5).unwrap_or(0), at(0.99).unwrap_or(0));
    println!(
        "{load:4} x: {} sent, {} refused, {} without advice, {per_second:.0} tokens/s, deepest queue {depth_max}, \
         refusal p50 {} us, p99 {} us; resident after a third {} KiB, at the end {} KiB",
        tally.sent.load(Relaxed),
        tally.refused.load(Relaxed),
        tally.without_advice.load(Relaxed),
        p50,
        p99,
        resident[0],
        resident[1]
    );
    assert_eq!(tally.without_advice.load(Relaxed), 0, "every refusal carries a computed wait");
    orchestrator.stop(Duration::MAX).await;
    per_second
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (once, tenfold) = runtime.block_on(async { (run(1.0, 15).await, run(10.0, 30).await) });
    println!("goodput at 10 x: {:.3} of that at 1 x", tenfold / once);
}
