//! Ten times more than the pool can do, for a minute: everything is bounded, every refusal is computed, and the work
//! that gets done is that of a pool at its capacity.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use orchestrator_core::config::SimConfig;
use orchestrator_core::{Env, Event, Orchestrator, TaskRequest};

use crate::support::{World, client, pool, read_whole, start, until_idle};

const SLOTS: u32 = 8;
const RUN_S: f64 = 0.2;
const SECONDS: u64 = 60;

#[derive(Default)]
struct Tally {
    sent: u64,
    refused: u64,
    tokens: u64,
    waits_ms: Vec<u64>,
}

async fn one(orchestrator: Orchestrator, number: u32, output: u32, tally: Arc<Mutex<Tally>>) {
    let request = TaskRequest::completion("some words to go on from").max_tokens(output);
    tally.lock().unwrap().sent += 1;
    match orchestrator.submit(request.client(client(&format!("c{number}")))).await {
        Err(error) => {
            let wait = error.retry_after_ms.expect("every refusal carries a computed wait");
            let mut tally = tally.lock().unwrap();
            tally.refused += 1;
            tally.waits_ms.push(wait);
        }
        Ok(submitted) => {
            let (_, end) = read_whole(submitted.stream()).await;
            if let Event::End(end) = end
                && orchestrator.env().now().as_micros() < SECONDS * 1_000_000
            {
                tally.lock().unwrap().tokens += u64::from(end.tokens_out);
            }
        }
    }
}

async fn run(load: f64) -> Tally {
    let sim = SimConfig { first_token_us: 10_000, token_us: 10_000, preload_us: 0, ..SimConfig::default() };
    let World { orchestrator, .. } = start(Env::simulated(1), vec![pool("a", 1, SLOTS, sim)]).await;
    orchestrator.until_ready().await;
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let mut dice = fastrand::Rng::with_seed(5);
    let mut tasks = tokio::task::JoinSet::new();
    let begin = tokio::time::Instant::now();
    let per_s = load * f64::from(SLOTS) / RUN_S;
    let mut due = 0.0;
    while due < SECONDS as f64 {
        tokio::time::sleep_until(begin + Duration::from_secs_f64(due)).await;
        tasks.spawn(one(orchestrator.clone(), dice.u32(..100), dice.u32(10..=30), tally.clone()));
        while tasks.try_join_next().is_some() {}
        due -= (1.0 - dice.f64()).ln() / per_s;
        let (pool, view) = (&orchestrator.pools()[0], orchestrator.view());
        assert!(pool.queue_depth[0] + pool.queue_depth[1] <= pool.queue_capacity, "the queue is bounded");
        assert!(view.tasks_open <= view.tasks_open_max && view.tasks_known <= 10_000 + view.tasks_open_max);
    }
    tasks.shutdown().await;
    until_idle(&orchestrator).await;
    assert_eq!(orchestrator.pools()[0].unsettled, 0);
    std::mem::take(&mut *tally.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn at_ten_times_the_load_the_goodput_is_that_of_a_busy_pool() {
    let (once, tenfold) = (run(1.0).await, run(10.0).await);
    let goodput = tenfold.tokens as f64 / once.tokens as f64;
    let mut waits = tenfold.waits_ms.clone();
    waits.sort_unstable();
    waits.dedup();
    println!(
        "at 1x {} sent, {} refused, {} tokens; at 10x {} sent, {} refused, {} tokens: goodput {goodput:.3}; advice from {} to {} ms, {} different",
        once.sent,
        once.refused,
        once.tokens,
        tenfold.sent,
        tenfold.refused,
        tenfold.tokens,
        waits[0],
        waits[waits.len() - 1],
        waits.len()
    );
    assert!(goodput >= 0.95, "{goodput}");
    assert!(tenfold.refused > tenfold.sent * 8 / 10);
    assert!(waits.len() > 10, "advice is computed: {waits:?}");
}
