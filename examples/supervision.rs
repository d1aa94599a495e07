//! Supervision, seen from outside: an engine panics in the middle of a stream, the reader sees one whole text, and the
//! host hears what happened: `cargo run --example supervision`.

#![allow(clippy::print_stdout)] // A program that prints.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use orchestrator_core::prelude::*;

/// An engine that counts, and whose first run panics behind its third token.
struct Counting(Arc<AtomicU32>);

impl Engine for Counting {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("counting-1", "no-model"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let is_first = !job.is_self_test && self.0.fetch_add(1, Relaxed) == 0;
        for number in 0..job.request.max_tokens.0 {
            assert!(!is_first || number < 3, "out of fingers");
            tokio::time::sleep(Duration::from_millis(1)).await;
            out.push(&format!("{number} "))?;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
}

/// What the reader saw, and what the host heard beside it.
async fn run(env: Env) -> Result<(String, Vec<String>), Box<dyn Error>> {
    let runs = Arc::new(AtomicU32::new(0));
    let pool = PoolConfig::new("counting", "counting", "none");
    let orchestrator = Orchestrator::builder().pool(pool, move |_| Counting(runs.clone())).env(env).start().await?;
    orchestrator.until_ready().await;
    let mut events = orchestrator.subscribe();
    let submitted = orchestrator.submit(TaskRequest::completion("count").max_tokens(6)).await?;
    let (text, _) = submitted.stream().collect().await;
    let mut heard = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            RuntimeEvent::TaskResumed { pool_id, .. } => heard.push(format!("resumed from {pool_id}")),
            RuntimeEvent::TaskEnded { task } => {
                heard.push(format!("ended behind attempt {}", task.attempts));
                break;
            }
            other => heard.push(format!("{other:?}")),
        }
    }
    for replica in orchestrator.pools().iter().flat_map(|pool| &pool.replicas) {
        heard.extend(replica.attempts_failed.iter().map(|(cause, times)| format!("{times} of {}", cause.as_str())));
    }
    orchestrator.stop(Duration::from_secs(10)).await;
    Ok((text, heard))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    std::panic::set_hook(Box::new(|_| {})); // One panic is part of it.
    let (text, heard) = run(Env::real()).await?;
    println!("{text}\n{}", heard.join("\n"));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_engine_is_heard_by_the_host_and_not_by_the_reader() {
    let (text, heard) = run(Env::simulated(5)).await.expect("runs");
    assert_eq!(text, "0 1 2 3 4 5 ");
    assert_eq!(heard, ["resumed from counting", "ended behind attempt 2", "1 of engine_panic"]);
}
