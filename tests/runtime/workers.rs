//! Readiness, masks, timeouts and engines that fail.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use orchestrator_core::config::{SimFaults, TimeoutConfig};
use orchestrator_core::core::lifecycle::{PoolState, ReplicaState};
use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::trace::TraceKind;
use orchestrator_core::{Env, ErrorCode, Event};

use crate::support::{World, faulty, millisecond, pool, pool_id, read_whole, request, start, until_idle};

#[tokio::test(start_paused = true)]
async fn nothing_is_dispatched_before_ready() {
    let env = Env::simulated(3);
    let mut slow = pool("a", 2, 2, millisecond());
    slow.sim.as_mut().unwrap().preload_us = 60_000_000;
    let World { orchestrator, stats } = start(env.clone(), vec![slow]).await;
    let submitted = orchestrator.submit(request("early", 3)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(orchestrator.pools()[0].state, PoolState::Preloading);
    assert_eq!(orchestrator.pools()[0].slots_used, 0);
    assert!(matches!(read_whole(submitted.stream()).await.1, Event::End(_)));
    let begun = env.recorded().into_iter().find(|event| matches!(event.kind, TraceKind::Begun { .. })).unwrap();
    assert!(begun.at.as_micros() >= 60_000_000, "begun at {:?}", begun.at);
    assert!(stats[0].iter().all(|replica| replica.runs_before_ready.load(Relaxed) == 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_preload_is_tried_again_with_backoff_and_the_pool_says_so() {
    let faults = SimFaults { refuse_preloads: 3, ..SimFaults::default() };
    let World { orchestrator, stats } = start(Env::simulated(3), vec![pool("a", 1, 1, faulty(faults))]).await;
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
    let error = orchestrator.submit(request("t", 1)).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PoolUnready);
    assert!(error.retry_after_ms.is_some_and(|ms| ms >= 1), "{error:?}");
    orchestrator.until_ready().await;
    assert_eq!(stats[0][0].preloads.load(Relaxed), 4);
    let view = &orchestrator.pools()[0].replicas[0];
    assert_eq!((view.preload_failures, view.preload_successes, view.restarts), (3, 1, 3));
    assert!(matches!(read_whole(orchestrator.submit(request("t", 1)).await.unwrap().stream()).await.1, Event::End(_)));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fails_too_often_is_left_alone_until_its_breaker_closes() {
    let faults = SimFaults { refuse_preloads: 7, ..SimFaults::default() };
    let mut pool = pool("a", 1, 1, faulty(faults));
    pool.restart.breaker_open_ms = 600_000;
    let World { orchestrator, .. } = start(Env::simulated(3), vec![pool]).await;
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Broken).await;
    assert!(matches!(orchestrator.pools()[0].replicas[0].state, ReplicaState::Broken { .. }));
    let error = orchestrator.submit(request("t", 1)).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    assert!(error.retry_after_ms.is_some_and(|ms| ms > 500_000), "{error:?}");
    orchestrator.until_ready().await;
}

#[tokio::test(start_paused = true)]
async fn every_task_runs_on_a_replica_inside_the_pools_mask() {
    let mut masked = pool("a", 3, 2, millisecond());
    masked.devices = Some(masked.replicas.iter().flat_map(|replica| replica.devices.clone()).collect());
    let World { orchestrator, .. } = start(Env::simulated(5), vec![masked, pool_on("b", 7)]).await;
    orchestrator.until_ready().await;
    for number in 0..40 {
        let mut request = request(&format!("t{number}"), 3);
        request.model_ref = Some(if number % 2 == 0 { "tiny" } else { "other" }.into());
        let submitted = orchestrator.submit(request).await.unwrap();
        read_whole(submitted.stream()).await;
        let replica = orchestrator.task(&submitted.task_id).unwrap().replica_id.unwrap();
        let pool = orchestrator.pool(&replica.pool).unwrap();
        let used = pool.replicas[replica.index as usize].devices.to_string();
        let allowed = if number % 2 == 0 { ["0", "1", "2"].contains(&used.as_str()) } else { used == "7" };
        assert!(allowed, "task {number} ran on device {used} of {replica}");
    }
}

fn pool_on(id: &str, device: u32) -> orchestrator_core::config::PoolConfig {
    let mut pool = pool(id, 1, 2, millisecond());
    pool.model = "other".into();
    pool.replicas[0].devices = vec![orchestrator_core::config::DeviceRef::Index(device)];
    pool
}

async fn ends_by_timeout(faults: SimFaults, timeouts: TimeoutConfig, part: &str) {
    let mut hanging = pool("a", 1, 1, faulty(faults));
    hanging.timeouts = timeouts;
    let World { orchestrator, .. } = start(Env::simulated(5), vec![hanging]).await;
    let submitted = orchestrator.submit(request("hangs", 1_000_000)).await.err();
    assert!(submitted.is_some(), "a budget beyond the context never reaches the queue");
    let submitted = orchestrator.submit(request("hangs", 4_000)).await.unwrap();
    let (_, end) = read_whole(submitted.stream()).await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!(error.code, ErrorCode::DecodeTimeout);
    assert!(error.message.contains(part), "{error}");
    until_idle(&orchestrator).await;
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_counts_the_wait_before_the_first_token() {
    let faults = SimFaults { hang_first_ppm: 1_000_000, ..SimFaults::default() };
    ends_by_timeout(faults, TimeoutConfig { idle_ms: 700, ..TimeoutConfig::default() }, "idle timeout").await;
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_ends_a_task_that_hangs_between_tokens() {
    let faults = SimFaults { hang_ppm: 50_000, ..SimFaults::default() };
    ends_by_timeout(faults, TimeoutConfig { idle_ms: 700, ..TimeoutConfig::default() }, "idle timeout").await;
}

#[tokio::test(start_paused = true)]
async fn the_wall_timeout_ends_a_task_that_goes_on_for_ever() {
    let timeouts = TimeoutConfig { wall_ms: 900, idle_ms: 700, ..TimeoutConfig::default() };
    ends_by_timeout(SimFaults::default(), timeouts, "wall timeout").await;
}

#[tokio::test(start_paused = true)]
async fn a_tasks_own_deadline_ends_it_running_or_waiting() {
    let World { orchestrator, .. } = start(Env::simulated(5), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    for id in ["runs", "waits"] {
        let mut request = request(id, 3_000);
        request.deadline = Some(Duration::from_millis(500));
        orchestrator.submit(request).await.unwrap();
    }
    for id in ["runs", "waits"] {
        let stream = orchestrator.stream(&crate::support::task_id(id), 0).unwrap();
        let (_, end) = read_whole(stream).await;
        assert!(matches!(&end, Event::Error(error) if error.code == ErrorCode::DecodeTimeout), "{id}: {end:?}");
    }
    until_idle(&orchestrator).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_engine_costs_its_tasks_where_that_is_their_rule_and_restarts_alone() {
    let faults = SimFaults { die_ppm: 3_000, ..SimFaults::default() };
    let mut dying = pool("a", 2, 2, faulty(faults));
    dying.restart.intensity = 1000;
    dying.resume.on_loss = Some(OnLoss::Fail);
    let World { orchestrator, stats } = start(Env::simulated(11), vec![dying]).await;
    orchestrator.until_ready().await;
    let (mut resets, mut completed) = (0, 0);
    for number in 0..100 {
        let submitted = match orchestrator.submit(request(&format!("t{number}"), 20)).await {
            Ok(submitted) => submitted,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::PoolUnready);
                orchestrator.until_ready().await;
                continue;
            }
        };
        match read_whole(submitted.stream()).await.1 {
            Event::Error(error) => {
                assert_eq!(error.code, ErrorCode::WorkerReset);
                resets += 1;
            }
            _ => completed += 1,
        }
    }
    assert!(resets > 0 && completed > resets, "{resets} of {}", resets + completed);
    until_idle(&orchestrator).await;
    let restarts: u64 = orchestrator.pools()[0].replicas.iter().map(|replica| replica.restarts).sum();
    let loads: u32 = stats[0].iter().map(|replica| replica.loaded.load(Relaxed)).sum();
    assert!(restarts > 0 && u64::from(loads) <= 2 + restarts);
}

/// An engine that says another version on each replica.
struct Versioned(String);

impl orchestrator_core::gpu::Engine for Versioned {
    async fn preload(&self) -> Result<orchestrator_core::gpu::EngineInfo, orchestrator_core::gpu::EngineError> {
        Ok(orchestrator_core::gpu::EngineInfo::new(self.0.clone(), "digest"))
    }

    async fn generate<'a>(
        &'a self,
        _: orchestrator_core::gpu::Job<'a>,
        out: &'a mut dyn orchestrator_core::gpu::TokenOutput,
    ) -> Result<orchestrator_core::gpu::Finish, orchestrator_core::gpu::EngineError> {
        out.push("token")?;
        let reason = orchestrator_core::core::task::FinishReason::Stop;
        Ok(orchestrator_core::gpu::Finish { reason, tokens_in: None })
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_like_its_siblings_never_becomes_ready() {
    let mixed = pool("a", 2, 1, millisecond());
    let builder = orchestrator_core::Orchestrator::builder().env(Env::simulated(1));
    let factory = |context: &orchestrator_core::gpu::EngineContext| Versioned(format!("v{}", context.replica.index));
    let orchestrator = builder.pool(mixed, factory).start().await.unwrap();
    orchestrator.until_ready().await;
    for number in 0..6 {
        let submitted = orchestrator.submit(request(&format!("t{number}"), 1)).await.unwrap();
        read_whole(submitted.stream()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let replicas = &orchestrator.pools()[0].replicas;
    assert_eq!((replicas[0].started[0], replicas[1].started[0]), (6, 0));
    assert!(replicas[1].preload_failures > 1 && replicas[1].preload_successes == 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_task_ends_at_its_deadline_and_not_at_its_turn() {
    let World { orchestrator, .. } = start(Env::simulated(5), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    orchestrator.submit(request("long", 3_000)).await.unwrap();
    let mut waits = request("waits", 5);
    waits.deadline = Some(Duration::from_millis(200));
    let waits = orchestrator.submit(waits).await.unwrap();
    let begin = orchestrator.env().now();
    let (_, end) = read_whole(waits.stream()).await;
    assert!(matches!(&end, Event::Error(error) if error.code == ErrorCode::DecodeTimeout), "{end:?}");
    assert!(orchestrator.env().now().since(begin) < Duration::from_millis(210));
    assert_eq!(orchestrator.pools()[0].queue_depth, [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_breakers_are_open_turns_its_waiting_tasks_out() {
    let faults = SimFaults { refuse_preloads: 100, ..SimFaults::default() };
    let World { orchestrator, .. } = start(Env::simulated(3), vec![pool("a", 1, 1, faulty(faults))]).await;
    let waits = orchestrator.submit(request("t", 1)).await.unwrap();
    let (_, end) = read_whole(waits.stream()).await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    assert!(error.retry_after_ms.is_some_and(|ms| ms > 50_000), "it says when the next probe is made: {error:?}");
    until_idle(&orchestrator).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_takes_long_to_fail_opens_its_breaker_too() {
    let mut slow = pool("a", 1, 1, millisecond());
    slow.sim.as_mut().unwrap().preload_us = 300_000_000; // Beyond its limit of two minutes.
    let World { orchestrator, stats } = start(Env::simulated(3), vec![slow]).await;
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let loads = stats[0][0].preloads.load(Relaxed);
    assert!((10..=30).contains(&loads), "two minutes each, with waits that grow: {loads}");
}

#[cfg(feature = "planted-bugs")]
#[tokio::test(start_paused = true)]
async fn planted_a_stall_is_noticed_within_two_seconds_and_healed() {
    use orchestrator_core::planted::{Bug, plant};
    let World { orchestrator, .. } = start(Env::simulated(5), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    plant(Some(Bug::LostNudge));
    let begin = tokio::time::Instant::now();
    let mut streams = Vec::new();
    for number in 0..3 {
        streams.push(orchestrator.submit(request(&format!("t{number}"), 20)).await.unwrap().stream());
    }
    for stream in streams {
        assert!(matches!(read_whole(stream).await.1, Event::End(_)));
    }
    plant(None);
    let stalls = orchestrator.pools()[0].stalls;
    println!("{stalls} stalls, healed: three tasks ended within {:?}", begin.elapsed());
    assert!(stalls >= 1 && begin.elapsed() < Duration::from_secs(2 * stalls + 1));
}
