//! The percentiles that are shown are those of the tasks that ran, within one percent (ORCH-3028).

use std::time::Duration;

use orchestrator_core::config::SimConfig;
use orchestrator_core::{Env, Event, Priority, Stage, TaskRequest};

use crate::support::{pool, start};

fn exact(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((part * values.len() as f64).ceil() as usize).max(1) - 1]
}

/// Runs so many tasks and compares each percentile with the one of the tasks' own ends; returns the largest difference,
/// as a share.
async fn largest_difference(tasks: usize) -> f64 {
    let sim = SimConfig { first_token_us: 1_000, token_us: 700, preload_us: 0, ..SimConfig::default() };
    let mut busy = pool("a", 4, 8, sim);
    busy.queue.capacity = 4_000;
    let world = start(Env::simulated(9), vec![busy]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let mut random = fastrand::Rng::with_seed(tasks as u64);
    let (mut queue, mut first, mut decode, mut total) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut running = tokio::task::JoinSet::new();
    for number in 0..tasks {
        let request = TaskRequest::completion("x").max_tokens(1 + random.u32(0..24)).seed(number as u64);
        if running.len() >= 2_000 {
            let end: orchestrator_core::End = running.join_next().await.unwrap().unwrap();
            let times = (end.queue_ms, end.first_token_ms.unwrap(), end.decode_ms);
            queue.push(times.0);
            first.push(times.1);
            decode.push(times.2);
            total.push(times.1 + times.2);
        }
        let submitted = orchestrator.submit(request).await.unwrap();
        running.spawn(async move {
            match submitted.stream().collect().await.1 {
                Some(Event::End(end)) => end,
                other => panic!("it ends well: {other:?}"),
            }
        });
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_micros(random.u64(0..9_000))).await;
        }
    }
    while let Some(end) = running.join_next().await {
        let end = end.unwrap();
        let times = (end.queue_ms, end.first_token_ms.unwrap(), end.decode_ms);
        queue.push(times.0);
        first.push(times.1);
        decode.push(times.2);
        total.push(times.1 + times.2);
    }
    tokio::time::sleep(Duration::from_secs(1)).await; // The newest figures are out by then.
    let view = orchestrator.pools().remove(0);
    assert_eq!(view.samples_lost, 0);
    let mut worst: f64 = 0.0;
    for (stage, values) in [
        (Stage::Queue, &mut queue),
        (Stage::FirstToken, &mut first),
        (Stage::Decode, &mut decode),
        (Stage::Total, &mut total),
    ] {
        let row = Stage::ALL.iter().position(|known| *known == stage).unwrap();
        let shown = view.latency.stages[Priority::Interactive.index()][row].quantiles;
        assert_eq!(shown.count, tasks as u64);
        for (part, shown) in [(0.5, shown.p50), (0.95, shown.p95), (0.99, shown.p99)] {
            let wanted = exact(values, part);
            // Below a microsecond there is nothing to tell apart.
            let difference = if wanted < 0.002 { 0.0 } else { (shown - wanted).abs() / wanted };
            assert!(difference <= 0.01, "{stage:?} {part}: {shown} shown, {wanted} of {tasks} tasks");
            worst = worst.max(difference);
        }
    }
    worst
}

#[tokio::test(start_paused = true)]
async fn percentiles_are_those_of_the_tasks_themselves() {
    let most: usize = std::env::var("TASKS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    for tasks in [1_000, 100_000, 1_000_000].into_iter().filter(|tasks| *tasks <= most) {
        println!("{tasks} tasks: at most {:.2} % apart", largest_difference(tasks).await * 100.0);
    }
}
