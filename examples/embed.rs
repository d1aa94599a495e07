//! A host program with an engine of its own: `cargo run --example embed`.

#![allow(clippy::print_stdout)] // A program that prints.

use std::error::Error;
use std::time::Duration;

use orchestrator_core::config::{DeviceRef, PoolConfig, ReplicaConfig};
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Finish, Job, TokenOutput};
use orchestrator_core::{Orchestrator, TaskRequest};

/// An engine that says the prompt's words backwards.
struct Backwards;

impl Engine for Backwards {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("backwards-1", "no-model"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        for word in job.request.prompt.split(' ').rev() {
            out.push(&format!("{word} "))?;
        }
        Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
    }
}

async fn run() -> Result<String, Box<dyn Error>> {
    let worker = |device| ReplicaConfig { devices: vec![DeviceRef::Index(device)], ..ReplicaConfig::default() };
    let mut pool = PoolConfig::new("mine", "backwards", "none");
    pool.replicas = vec![worker(0), worker(1)];
    pool.slots = 4;

    let orchestrator = Orchestrator::builder().pool(pool, |_| Backwards).start().await?;
    let submitted = orchestrator.submit(TaskRequest::completion("tokens to words from")).await?;
    let (text, _) = submitted.stream().collect().await;
    orchestrator.stop(Duration::from_secs(30)).await;
    Ok(text)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{}", run().await?);
    Ok(())
}

#[tokio::test]
async fn the_host_programs_engine_is_supervised_and_heard() {
    assert_eq!(run().await.expect("runs"), "from words to tokens ");
}
