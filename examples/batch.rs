//! A batch of tasks that waits for room, over an engine that panics now and then:
//! `cargo run --release --example batch`.
//!
//! No sleep, no loop around refusals: `submit_when_room` waits, and `buffer_unordered` bounds what the host holds
//! itself.

#![allow(clippy::print_stdout, clippy::disallowed_methods)] // A program that prints, and looks at the clock.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use orchestrator_core::prelude::*;

const TASKS: u32 = 20_000;
const SLOTS: u32 = 32;
const TOKENS: u32 = 4;
const TOKEN: Duration = Duration::from_millis(5);

/// An engine that says numbers, and whose every 500th run panics.
struct Numbers(Arc<AtomicU32>);

impl Engine for Numbers {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("numbers-1", "no-model"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let is_broken = !job.is_self_test && self.0.fetch_add(1, Relaxed) % 500 == 499;
        for index in 0..job.request.max_tokens.0 {
            tokio::time::sleep(TOKEN).await;
            assert!(!(is_broken && index == 1), "every 500th");
            out.push(&format!("{index} "))?;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
}

/// What came of the batch.
#[derive(Debug)]
struct Outcome {
    well: usize,
    resumed: u64,
    refused: u64,
    seconds: f64,
    ideal_seconds: f64,
}

async fn run() -> Result<Outcome, Box<dyn Error>> {
    let mut pool = PoolConfig::new("numbers", "numbers", "none");
    pool.slots = SLOTS;
    pool.replicas = vec![ReplicaConfig::default(), ReplicaConfig::default()];
    pool.replicas.iter_mut().enumerate().for_each(|(index, one)| one.devices = vec![DeviceRef::Index(index as u32)]);
    let runs = Arc::new(AtomicU32::new(0));
    let orchestrator = Orchestrator::builder().pool(pool, move |_| Numbers(runs.clone())).start().await?;
    orchestrator.until_ready().await;

    let begin = tokio::time::Instant::now();
    let one = |number: u32| {
        let orchestrator = &orchestrator;
        async move {
            let task = TaskRequest::completion(format!("number {number}")).max_tokens(TOKENS).priority(Priority::Batch);
            let submitted = orchestrator.submit_when_room(task).await?;
            let (text, end) = submitted.stream().collect().await;
            Ok::<bool, TaskError>(text == "0 1 2 3 " && matches!(end, Some(Event::End(_))))
        }
    };
    // Somewhat more than there are slots: whoever ends makes room for one that is at hand.
    let ended: Vec<_> = stream::iter((0..TASKS).map(one)).buffer_unordered(1_000).collect().await;
    let seconds = begin.elapsed().as_secs_f64();

    let well = ended.into_iter().filter(|ended| matches!(ended, Ok(true))).count();
    let resumed = orchestrator.pools().iter().map(|pool| pool.resumed).sum();
    let refused = orchestrator.view().rejected.values().sum();
    orchestrator.stop(Duration::from_secs(10)).await;
    let ideal_seconds = f64::from(TASKS) * f64::from(TOKENS) * TOKEN.as_secs_f64() / f64::from(2 * SLOTS);
    Ok(Outcome { well, resumed, refused, seconds, ideal_seconds })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    std::panic::set_hook(Box::new(|_| {})); // Forty panics are part of it.
    let outcome = run().await?;
    let Outcome { well, resumed, refused, seconds, ideal_seconds } = outcome;
    println!(
        "{well} of {TASKS} tasks well, {resumed} resumed, {refused} refused: {seconds:.2} s, ideally {ideal_seconds:.2}"
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn every_task_comes_to_its_end_in_little_more_than_the_ideal_time() {
    let outcome = run().await.expect("runs");
    assert_eq!((outcome.well, outcome.refused), (TASKS as usize, 0), "{outcome:?}");
    assert!(outcome.resumed >= 35, "{outcome:?}");
    assert!(outcome.seconds <= outcome.ideal_seconds * 1.05, "{outcome:?}");
}
