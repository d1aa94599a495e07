//! Pools of one replica set help each other out: no slot idles beside a sibling's backlog.

use std::time::Duration;

use orchestrator_core::config::{ClientConfig, DeviceRef, PoolConfig, SimConfig};
use orchestrator_core::core::SessionId;
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Finish, Job, TokenOutput};
use orchestrator_core::{Config, Env, ErrorCode, Event, Orchestrator, TaskRequest};

use crate::support::{World, client, millisecond, pool, pool_id, read_whole, request, start, start_with, until_idle};

/// Two pools of one set; the second needs longer to load.
fn two(preload_us: u64) -> Vec<PoolConfig> {
    let mut second = pool("b", 1, 2, SimConfig { preload_us, ..millisecond() });
    second.replicas[0].devices = vec![DeviceRef::Index(9)];
    vec![pool("a", 1, 2, millisecond()), second]
}

#[tokio::test(start_paused = true)]
async fn an_idle_pool_takes_from_its_siblings_queue() {
    let World { orchestrator, .. } = start(Env::simulated(2), two(200_000)).await;
    orchestrator.until_pool(&pool_id("a"), |state| state.takes_tasks()).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    // While b still loads, most are predicted to start sooner in a.
    for number in 0..40 {
        orchestrator.submit(request(&format!("t{number}"), 50)).await.unwrap();
    }
    let [first, second] = [0, 1].map(|pool| orchestrator.pools()[pool].enqueued[0]);
    assert!(first + second == 40 && first >= 25, "{first} and {second}");
    let begin = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let pools = orchestrator.pools();
    assert_eq!((pools[0].slots_used, pools[1].slots_used), (2, 2), "both are busy");
    until_idle(&orchestrator).await;
    let pools = orchestrator.pools();
    println!("{} of {first} tasks were taken over; all ended after {:?}", pools[1].taken_over, begin.elapsed());
    assert!(pools[1].taken_over >= 4, "{}", pools[1].taken_over);
    assert_eq!((pools[0].completed + pools[1].completed, pools[0].unsettled, pools[1].unsettled), (40, 0, 0));
    assert!(begin.elapsed() <= Duration::from_millis(620), "in four slots 40 runs of 50 ms take 500 ms, and the load");
    assert_eq!(
        pools[1].replicas[0].tokens_out,
        (second + pools[1].taken_over) * 50,
        "tokens count where they were made"
    );
}

#[tokio::test(start_paused = true)]
async fn slots_that_were_lent_are_there_for_their_own_tasks_again() {
    let World { orchestrator, .. } = start(Env::simulated(2), two(1_000)).await;
    orchestrator.until_ready().await;
    for round in 0..30 {
        let number = 8 + round % 5;
        for index in 0..number {
            orchestrator.submit(request(&format!("r{round}-{index}"), 1 + round)).await.unwrap();
        }
        until_idle(&orchestrator).await;
    }
    let pools = orchestrator.pools();
    assert_eq!(pools.iter().map(|pool| pool.completed).sum::<u64>(), (0..30).map(|round| 8 + round % 5).sum::<u64>());
    assert!(pools.iter().all(|pool| pool.unsettled == 0 && pool.slots_used == 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_may_not_use_the_idle_pool_waits_for_its_own() {
    let of_client = ClientConfig { pools: Some(vec!["a".into()]), ..ClientConfig::default() };
    let config = Config { clients: [("kept".to_owned(), of_client)].into(), ..Config::default() };
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, two(1_000)).await;
    orchestrator.until_ready().await;
    for number in 0..20 {
        let task = request(&format!("t{number}"), 20).client(client("kept"));
        orchestrator.submit(task).await.unwrap();
    }
    until_idle(&orchestrator).await;
    let pools = orchestrator.pools();
    assert_eq!((pools[0].completed, pools[1].taken_over), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_runs_one_task_at_a_time_in_the_whole_set() {
    let World { orchestrator, stats } = start(Env::simulated(2), two(1_000)).await;
    orchestrator.until_ready().await;
    let turn = |number: u32| TaskRequest {
        session_id: Some(SessionId::parse("talk").unwrap()),
        ..request(&format!("t{number}"), 20)
    };
    let mut streams = Vec::new();
    for number in 0..10 {
        streams.push(orchestrator.submit(turn(number)).await.unwrap().stream());
    }
    let mut starts = Vec::new();
    for stream in streams {
        let (_, end) = read_whole(stream).await;
        let Event::End(end) = end else { panic!("{end:?}") };
        starts.push(end.queue_ms);
    }
    assert!(starts.windows(2).all(|pair| pair[1] >= pair[0] + 20.0), "one after the other, in order: {starts:?}");
    let most: Vec<u32> =
        stats.iter().flatten().map(|stats| stats.active_max.load(std::sync::atomic::Ordering::Relaxed)).collect();
    assert!(most.iter().all(|most| *most <= 1), "{most:?}");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_full_and_a_pool_that_is_full_are_told_apart() {
    let mut pools = two(1_000);
    pools.iter_mut().for_each(|pool| pool.queue.capacity = 2);
    let World { orchestrator, .. } = start(Env::simulated(2), pools).await;
    orchestrator.until_ready().await;
    let mut errors = Vec::new();
    for number in 0..12 {
        if let Err(error) = orchestrator.submit(request(&format!("t{number}"), 1_000)).await {
            errors.push(error);
        }
    }
    assert_eq!(errors.len(), 4, "four run and four wait");
    for error in errors {
        assert_eq!(error.code, ErrorCode::ReplicaExhausted);
        assert!(error.message.contains("a is full, b is full"), "{error}");
        assert!(error.retry_after_ms.is_some_and(|wait| wait > 0));
    }
}

#[tokio::test(start_paused = true)]
async fn no_slot_idles_beside_a_backlog_anywhere_in_the_set() {
    let World { orchestrator, .. } = start(Env::simulated(2), two(1_000)).await;
    orchestrator.until_ready().await;
    let mut dice = fastrand::Rng::with_seed(11);
    let (mut looks, mut backlogs) = (0, 0);
    for step in 0..3_000 {
        if dice.u32(..4) == 0 {
            for index in 0..dice.u32(..6) {
                let _ = orchestrator.submit(request(&format!("t{step}-{index}"), dice.u32(1..60))).await;
            }
        }
        tokio::time::sleep(Duration::from_micros(dice.u64(1_100..9_000))).await;
        // Virtual time has moved on, so every message of the last step has been handled.
        let pools = orchestrator.pools();
        let waiting: u32 = pools.iter().flat_map(|pool| pool.queue_depth).sum();
        let free: u32 = pools.iter().map(|pool| pool.slots_total - pool.slots_used).sum();
        assert!(waiting == 0 || free == 0, "step {step}: {waiting} wait beside {free} free slots");
        (looks, backlogs) = (looks + 1, backlogs + u32::from(waiting > 0));
    }
    println!("a backlog at {backlogs} of {looks} looks, and never beside a free slot");
    assert!(backlogs > 300, "{backlogs}");
    until_idle(&orchestrator).await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_pool_waits_for_what_its_sibling_runs_for_it() {
    let World { orchestrator, .. } = start(Env::simulated(2), two(200_000)).await;
    orchestrator.until_pool(&pool_id("a"), |state| state.takes_tasks()).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut streams = Vec::new();
    for number in 0..31 {
        // The last is the longest by far: when it runs in b, a has nothing of its own to do for a long time.
        let length = if number < 30 { 40 } else { 1_000 };
        streams.push(orchestrator.submit(request(&format!("t{number}"), length)).await.unwrap().stream());
    }
    let of_a = orchestrator.pools()[0].enqueued[0];
    until(|| orchestrator.pools()[1].taken_over > 0).await;
    orchestrator.drain(&pool_id("a"));
    let mut left_to_the_sibling = 0;
    until(|| {
        let drained = &orchestrator.pools()[0];
        left_to_the_sibling += u32::from(drained.slots_used == 0 && drained.queue_depth == [0, 0]);
        drained.state == PoolState::Stopped
    })
    .await;
    let pools = orchestrator.pools();
    assert_eq!((pools[0].unsettled, pools[0].completed), (0, of_a), "each of its tasks has come to its end");
    until_idle(&orchestrator).await;
    for stream in streams {
        let (_, end) = read_whole(stream).await;
        assert!(matches!(&end, Event::End(end) if end.finish_reason == FinishReason::Length), "{end:?}");
    }
    println!("for {left_to_the_sibling} ms the drain waited for nothing but the sibling");
    assert!(left_to_the_sibling > 0, "else this shows nothing");
}

/// Looks each millisecond of virtual time until it is so; a test that waits for what never comes fails.
async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come to be within a minute");
}

/// An engine whose model has this digest; a task takes a millisecond for each token that it may have.
struct OfDigest(&'static str);

impl Engine for OfDigest {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("1", self.0))
    }
    async fn generate<'a>(&'a self, job: Job<'a>, _: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        tokio::time::sleep(Duration::from_millis(job.request.max_tokens.0.into())).await;
        Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
    }
}

#[tokio::test(start_paused = true)]
async fn pools_whose_engines_turn_out_to_differ_lend_nothing() {
    for (second, is_one_set) in [("sha256:1", true), ("sha256:2", false)] {
        let [a, b] = two(1_000).try_into().unwrap();
        let builder = Orchestrator::builder().env(Env::simulated(2));
        let builder = builder.pool(a, |_| OfDigest("sha256:1")).pool(b, move |_| OfDigest(second));
        let orchestrator = builder.start().await.unwrap();
        orchestrator.until_ready().await;
        for number in 0..40 {
            // Every other one goes to a; those are the long ones, so b is done first.
            let length = if number % 2 == 0 { 100 } else { 5 };
            orchestrator.submit(request(&format!("t{number}"), length)).await.unwrap();
        }
        until_idle(&orchestrator).await;
        let taken_over: Vec<u64> = orchestrator.pools().iter().map(|pool| pool.taken_over).collect();
        println!("{second}: taken over {taken_over:?}");
        assert_eq!(taken_over.iter().any(|taken_over| *taken_over > 3), is_one_set, "{taken_over:?}");
        assert!(is_one_set || taken_over == [0, 0]);
        assert_eq!(orchestrator.replica_sets().len(), if is_one_set { 1 } else { 2 });
    }
}
