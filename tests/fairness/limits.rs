//! What a client may do: rates, quotas, pools, deadlines; and what it is told.

use std::time::Duration;

use orchestrator_core::config::{ClientConfig, LimitConfig, MemoryConfig, QuotaConfig};
use orchestrator_core::core::task::Phase;
use orchestrator_core::{Config, Env, ErrorCode, TaskError, TaskRequest};

use crate::support::{World, client, millisecond, pool, read_whole, request, start_with, task_id, until_idle};

fn config(name: &str, of_client: ClientConfig) -> Config {
    Config { clients: [(name.to_owned(), of_client)].into(), ..Config::default() }
}

fn task(id: &str, name: &str, tokens: u32) -> TaskRequest {
    request(id, tokens).client(client(name))
}

fn refused(outcome: Result<orchestrator_core::Submitted, TaskError>) -> TaskError {
    outcome.expect_err("refused")
}

#[tokio::test(start_paused = true)]
async fn who_sends_too_fast_is_told_exactly_when_to_come_back() {
    let limits = LimitConfig { requests_per_s: Some(2.0), requests_burst: Some(2), ..LimitConfig::default() };
    let config = config("fast", ClientConfig { limits, ..ClientConfig::default() });
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, vec![pool("a", 1, 1, millisecond())]).await;
    for id in ["a", "b"] {
        orchestrator.submit(task(id, "fast", 1)).await.unwrap();
    }
    let error = refused(orchestrator.submit(task("c", "fast", 1)).await);
    assert_eq!((error.code, error.policy.as_deref()), (ErrorCode::AdmissionReject, Some("rate-limit")));
    assert_eq!(error.retry_after_ms, Some(500));
    orchestrator.submit(task("other", "slow", 1)).await.expect("another client is not concerned");
    let explained = orchestrator.explain(&task_id("c")).await.unwrap().expect("remembered");
    assert_eq!(explained.refusal, Some(error), "and may ask afterwards which limit it was");
    tokio::time::sleep(Duration::from_millis(500)).await;
    orchestrator.submit(task("c", "fast", 1)).await.expect("it came back when it was told to");
    assert_eq!(orchestrator.view().limited["rate-limit"], 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_were_not_generated_come_back_to_the_budget() {
    let limits = LimitConfig { tokens_per_s: Some(10.0), tokens_burst: Some(110), ..LimitConfig::default() };
    let config = config("a", ClientConfig { limits, ..ClientConfig::default() });
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, vec![pool("p", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let first = orchestrator.submit(task("first", "a", 100)).await.unwrap();
    let error = refused(orchestrator.submit(task("second", "a", 100)).await);
    assert!(error.retry_after_ms.is_some_and(|wait| wait > 9_000), "ten seconds of tokens are missing: {error:?}");
    tokio::time::sleep(Duration::from_millis(10)).await;
    orchestrator.cancel(&first.task_id);
    orchestrator.submit(task("second", "a", 80)).await.expect("the rest of the first one's budget is back");
}

#[tokio::test(start_paused = true)]
async fn a_client_runs_no_more_than_its_quota_and_others_pass_it_by() {
    let quotas = QuotaConfig { running: Some(1), queued: Some(3), ..QuotaConfig::default() };
    let config = config("narrow", ClientConfig { quotas, ..ClientConfig::default() });
    let World { orchestrator, stats } =
        start_with(Env::simulated(2), config, vec![pool("a", 1, 4, millisecond())]).await;
    orchestrator.until_ready().await;
    for number in 0..4 {
        orchestrator.submit(task(&format!("n{number}"), "narrow", 100)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let error = refused(orchestrator.submit(task("n4", "narrow", 100)).await);
    assert_eq!(error.policy.as_deref(), Some("quota"));
    assert!(error.retry_after_ms.is_some());
    orchestrator.submit(task("wide", "wide", 10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let phases: Vec<Phase> =
        ["n0", "n1", "wide"].iter().map(|id| orchestrator.task(&task_id(id)).unwrap().phase).collect();
    assert_eq!(phases, [Phase::Running, Phase::Queued, Phase::Running]);
    let explained = orchestrator.explain(&task_id("n1")).await.unwrap().unwrap();
    assert_eq!(explained.why, "client narrow runs as much as its quota allows");
    until_idle(&orchestrator).await;
    assert_eq!(orchestrator.pools()[0].completed, 5, "all of them ran, one after the other");
    assert_eq!(stats[0][0].active_max.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn memory_of_running_tasks_is_bounded_by_its_quota() {
    let quotas = QuotaConfig { memory_bytes: Some(1_000), ..QuotaConfig::default() };
    let config = config("a", ClientConfig { quotas, ..ClientConfig::default() });
    let mut one = pool("p", 1, 4, millisecond());
    one.memory = MemoryConfig { kv_bytes_per_token: 2, scratch_bytes: 100, ..MemoryConfig::default() };
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, vec![one]).await;
    orchestrator.until_ready().await;
    // 3 tokens of prompt and 197 of output: 500 bytes each. Two fit.
    for id in ["x", "y", "z"] {
        orchestrator.submit(task(id, "a", 197)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!((orchestrator.pools()[0].slots_used, orchestrator.pools()[0].queue_depth), (2, [1, 0]));
    let error = refused(orchestrator.submit(task("large", "a", 500)).await);
    assert_eq!((error.code, error.policy.as_deref()), (ErrorCode::InvalidParams, Some("quota")));
    until_idle(&orchestrator).await;
    assert_eq!(orchestrator.pools()[0].completed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_kept_to_its_pools() {
    let config = config("a", ClientConfig { pools: Some(vec![]), ..ClientConfig::default() });
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, vec![pool("p", 1, 1, millisecond())]).await;
    let error = refused(orchestrator.submit(task("t", "a", 1)).await);
    assert_eq!((error.code, error.policy.as_deref()), (ErrorCode::InvalidParams, Some("allowed-pools")));
    orchestrator.submit(task("u", "b", 1)).await.expect("others are not concerned");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cannot_start_in_time_is_refused_at_once() {
    let World { orchestrator, .. } =
        start_with(Env::simulated(2), Config::default(), vec![pool("p", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let first = orchestrator.submit(request("first", 100)).await.unwrap();
    read_whole(first.stream()).await; // Now a run is known to take 100 ms.
    for number in 0..5 {
        orchestrator.submit(request(&format!("t{number}"), 100)).await.unwrap();
    }
    let hasty = |id: &str, millis| TaskRequest { deadline: Some(Duration::from_millis(millis)), ..request(id, 100) };
    let error = refused(orchestrator.submit(hasty("hasty", 100)).await);
    assert_eq!((error.code, error.policy.as_deref()), (ErrorCode::AdmissionReject, Some("deadline")));
    assert!(error.message.contains("predicted to start in"), "{error}");
    let wait = error.retry_after_ms.expect("computed");
    assert!((300..=500).contains(&wait), "{wait}");
    let patient = orchestrator.submit(hasty("patient", 5_000)).await.expect("in time");
    assert!(matches!(read_whole(patient.stream()).await.1, orchestrator_core::Event::End(_)));
    tokio::time::sleep(Duration::from_millis(300)).await; // For the percentiles to be published.
    let latency = orchestrator.pools()[0].latency.clone();
    let row = orchestrator_core::Stage::ALL.iter().position(|stage| *stage == orchestrator_core::Stage::StartError);
    let error = latency.stages[0][row.unwrap()].quantiles;
    println!("predicted starts of {} tasks were off by {} ms (p50), {} ms (p99)", error.count, error.p50, error.p99);
    assert!(error.count == 7 && error.p99 < 110.0, "off by no more than one run: {error:?}");
}

#[tokio::test(start_paused = true)]
async fn limits_outlive_the_actors_that_ask_for_them() {
    let quotas = QuotaConfig { running: Some(1), queued: Some(50), ..QuotaConfig::default() };
    let default_client = ClientConfig { quotas, ..ClientConfig::default() };
    let config = Config { default_client, ..Config::default() };
    let World { orchestrator, stats } =
        start_with(Env::simulated(2), config, vec![pool("a", 1, 4, millisecond())]).await;
    orchestrator.until_ready().await;
    let env = orchestrator.env().clone();
    for round in 0..20 {
        env.arm_panic(["queue", "admission", "pool_manager", "worker"][round % 4]);
        let number = |index: usize| format!("t{}", 5 * round + index);
        for index in 0..5 {
            // A death may cost a task its way in; the limits must not notice.
            let _ = orchestrator.submit(task(&number(index), "a", 3)).await;
        }
        orchestrator.cancel(&task_id(&number(4)));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    until_idle(&orchestrator).await;
    assert_eq!(env.panics_fired(), 20);
    assert_eq!(stats[0][0].active_max.load(std::sync::atomic::Ordering::Relaxed), 1, "never more than one at once");
    assert_eq!(orchestrator.pools()[0].unsettled, 0);
    // Nothing is left of the fifty that may wait: else this would be refused.
    for number in 0..50 {
        orchestrator.submit(task(&format!("last{number}"), "a", 1)).await.unwrap();
    }
    until_idle(&orchestrator).await;
}
