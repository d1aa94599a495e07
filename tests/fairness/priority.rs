//! Priority inversion (ORCH-3051): whatever waits below, interactive tasks are delayed by a bound.

use std::collections::BTreeMap;
use std::time::Duration;

use orchestrator_core::config::{Config, RetentionConfig, SimConfig};
use orchestrator_core::core::trace::TraceKind;
use orchestrator_core::{Env, Priority, TaskRequest};

use crate::support::{World, pool, start_with};

const BACKLOG: u64 = 100_000;
const SLOTS: u32 = 4;

#[tokio::test(start_paused = true)]
async fn a_batch_backlog_of_a_hundred_thousand_delays_an_interactive_task_by_no_more_than_the_bound() {
    let sim = SimConfig { first_token_us: 1_000, token_us: 1_000, preload_us: 0, ..SimConfig::default() };
    let mut one = pool("a", 1, SLOTS, sim);
    one.bytes_per_token = 2;
    one.queue.capacity = 200_000;
    let config =
        Config { retention: RetentionConfig { tasks: 100, ..RetentionConfig::default() }, ..Config::default() };
    let env = Env::simulated(3);
    let World { orchestrator, .. } = start_with(env.clone(), config, vec![one]).await;
    let mut dice = fastrand::Rng::with_seed(3);
    // Tasks are numbered in the order in which they are sent: class and cost of each.
    let mut sent: Vec<(Priority, u64)> = Vec::new();
    let (mut cost_max, mut task) = ([0; 2], |class: Priority, dice: &mut fastrand::Rng| {
        let (prompt, output) = (dice.u32(1..=40), dice.u32(1..=40));
        sent.push((class, u64::from(prompt) + 2 * u64::from(output)));
        TaskRequest::completion("x ".repeat(prompt as usize)).max_tokens(output).priority(class)
    });
    for _ in 0..BACKLOG {
        orchestrator.submit(task(Priority::Batch, &mut dice)).await.unwrap();
    }
    orchestrator.until_ready().await;
    // Interactive tasks at half of what the pool can do, at random moments, in bursts.
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        tokio::time::sleep(Duration::from_micros(dice.u64(0..80_000))).await;
        for _ in 0..dice.usize(1..8) {
            let submitted = orchestrator.submit(task(Priority::Interactive, &mut dice)).await.unwrap();
            readers.spawn(async move { submitted.stream().collect().await });
        }
    }
    while readers.join_next().await.is_some() {}
    let depth = orchestrator.pools()[0].queue_depth[1];
    assert!(depth > 50_000, "the backlog is still there: {depth}");
    for (class, cost) in &sent {
        cost_max[class.index()] = cost_max[class.index()].max(*cost);
    }

    // Interactive tasks that wait, in the order of the trace; each with the batch cost dispatched since the last
    // interactive dispatch or since the class was empty, whichever was later.
    let mut waiting: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut between, mut worst, mut worst_count, mut delayed) = (0, 0, 0, 0);
    let mut delays: Vec<u64> = Vec::new();
    for event in env.recorded() {
        match event.kind {
            TraceKind::Queued { seq, .. } if sent[seq.0 as usize].0 == Priority::Interactive => {
                waiting.insert(seq.0, event.at.as_micros());
            }
            TraceKind::Assigned { seq, .. } => match sent[seq.0 as usize] {
                (Priority::Interactive, _) => {
                    let since = waiting.remove(&seq.0).unwrap();
                    delays.push(event.at.as_micros() - since);
                    (between, delayed) = (0, 0);
                }
                (Priority::Batch, cost) if !waiting.is_empty() => {
                    (between, delayed) = (between + cost, delayed + 1);
                    (worst, worst_count) = (worst.max(between), worst_count.max(delayed));
                }
                (Priority::Batch, _) => {}
            },
            _ => {}
        }
    }
    let bound = cost_max[1] + cost_max[0] / 9 + 1;
    delays.sort_unstable();
    println!(
        "{} interactive tasks before {depth} of batch: at most {worst} weighted tokens of batch ({worst_count} tasks) between two; \
         bound {bound}; waits p50 {} us, p99 {} us",
        delays.len(),
        delays[delays.len() / 2],
        delays[delays.len() * 99 / 100]
    );
    assert!(worst <= bound && worst > 0);
}
