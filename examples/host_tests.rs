//! How a host program tests its own code around the runtime: time that is paused, chance that is repeatable, and an
//! engine that misbehaves on demand. `cargo test --example host_tests`.

#![allow(clippy::print_stdout)] // A program that prints.

use std::time::Duration;

use orchestrator_core::config::SimConfig;
#[cfg(test)]
use orchestrator_core::config::SimFaults;
use orchestrator_core::prelude::*;

/// The host's own code: asks for a summary, and is content with a shorter one when there is little time.
async fn summary(orchestrator: &Orchestrator, text: &str, within: Duration) -> Result<String, TaskError> {
    let request = TaskRequest::completion(format!("Summarise: {text}"))
        .max_tokens(if within < Duration::from_secs(1) { 8 } else { 64 })
        .deadline(within)
        .on_disconnect(OnDisconnect::Cancel);
    match orchestrator.submit_when_room(request).await?.stream().collect().await {
        (text, Some(Event::End(_))) => Ok(text),
        (_, Some(Event::Error(error))) => Err(error),
        (_, other) => Err(TaskError::new(ErrorCode::Internal, format!("no end: {other:?}"))),
    }
}

async fn start(env: Env, sim: SimConfig) -> Result<Orchestrator, StartError> {
    let mut pool = PoolConfig::new("summaries", "sim", "small");
    pool.sim = Some(sim);
    pool.self_test = false; // A slow engine would be ten minutes at it.
    Orchestrator::builder().pool(pool, SimEngine::new).env(env).start().await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let orchestrator = start(Env::real(), SimConfig::default()).await?;
    println!("{}", summary(&orchestrator, "a long text", Duration::from_secs(10)).await?);
    Ok(())
}

// Paused time goes on by itself whenever nothing else can happen: these tests take no time, however long their engines
// do.

#[tokio::test(start_paused = true)]
async fn a_slow_engine_costs_a_test_no_time_and_one_seed_gives_one_run() {
    let slow = || SimConfig { token_us: 20_000_000, first_token_us: 20_000_000, ..SimConfig::default() };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let env = Env::simulated(7);
        let orchestrator = start(env.clone(), slow()).await.expect("it starts");
        let request = TaskRequest::completion("x").max_tokens(3);
        let submitted = orchestrator.submit(request).await.expect("accepted");
        runs.push((submitted.task_id.clone(), submitted.stream().collect().await, env.recorded()));
    }
    assert!(runs[0] == runs[1], "the ids, the text, and everything that happened on the way");
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_an_error_of_the_hosts_own() {
    let slow = SimConfig { token_us: 500_000, ..SimConfig::default() };
    let orchestrator = start(Env::simulated(1), slow).await.expect("it starts");
    let error =
        summary(&orchestrator, "x", Duration::from_millis(900)).await.expect_err("eight tokens take four seconds");
    assert_eq!(error.code, ErrorCode::DecodeTimeout);
}

#[tokio::test(start_paused = true)]
async fn engines_that_die_and_panic_cost_the_host_nothing() {
    let faults = SimFaults { die_ppm: 2_000, panic_ppm: 2_000, ..SimFaults::default() };
    let rough = SimConfig { faults, ..SimConfig::default() };
    let orchestrator = start(Env::simulated(3), rough).await.expect("it starts");
    let mut lost = 0;
    for number in 0..50 {
        let text = format!("text {number}");
        let answer = summary(&orchestrator, &text, Duration::from_secs(3_600)).await;
        lost += u32::from(answer.inspect_err(|error| println!("{error}")).is_err());
    }
    assert!(lost <= 2, "a task is run again up to three times: {lost} were lost");
}
