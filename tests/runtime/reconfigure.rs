//! The whole configuration changes while the runtime serves: in one step or not at all, and nothing is lost
//! (ORCH-3031).

use std::collections::BTreeMap;
use std::time::Duration;

use orchestrator_core::config::{ClientConfig, DeviceRef, PoolConfig, QuotaConfig};
use orchestrator_core::core::ClientId;
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::gpu::SimEngine;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Config, Env, ErrorCode, Event, Orchestrator, Priority, TaskRequest, TaskStream};

use crate::support::{millisecond, pool, pool_id, start, start_with};

fn builder(config: Config) -> orchestrator_core::Builder {
    let builder = Orchestrator::builder().config(Config { pools: Vec::new(), ..config.clone() });
    config.pools.into_iter().fold(builder, |builder, pool| builder.pool(pool, SimEngine::new))
}

fn config(pools: Vec<PoolConfig>) -> Config {
    Config { pools, ..Config::default() }
}

/// A pool of one replica on a device of its own.
fn on_device(id: &str, device: u32, slots: u32) -> PoolConfig {
    let mut pool = pool(id, 1, slots, millisecond());
    pool.replicas[0].devices = vec![DeviceRef::Index(device)];
    pool
}

async fn end_of(mut stream: TaskStream) -> (String, Event) {
    let mut text = String::new();
    loop {
        match stream.next().await.expect("a terminal event").1 {
            Event::Token { text: token, .. } => text += &token,
            Event::Started(_) => {}
            end => return (text, end),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_gets_a_successor_loses_nothing_and_its_queue_goes_over() {
    let world = start(Env::simulated(1), vec![on_device("a", 0, 2)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let mut readers = Vec::new();
    for number in 0..40 {
        let submitted =
            orchestrator.submit(TaskRequest::completion(format!("p{number}")).max_tokens(30)).await.unwrap();
        readers.push((number, tokio::spawn(end_of(submitted.stream()))));
    }
    let bigger = on_device("a", 0, 4);
    let change = orchestrator.reconfigure(builder(config(vec![bigger]))).unwrap();
    assert_eq!((change.replaced, orchestrator.config_generation()), (vec!["a".to_owned()], 2));
    assert_eq!(orchestrator.leaving(), [pool_id("a")]);
    // New tasks are taken at once, and wait behind the others.
    let late = orchestrator.submit(TaskRequest::completion("late").max_tokens(5)).await.unwrap();
    for (number, reader) in readers {
        let (text, end) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "task {number}: {end:?}");
        assert!(!text.is_empty());
    }
    assert!(matches!(end_of(late.stream()).await.1, Event::End(_)));
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Ready).await;
    while !orchestrator.leaving().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let view = orchestrator.pool(&pool_id("a")).unwrap();
    assert_eq!((view.slots_total, view.completed, view.unsettled), (4, 39, 0), "two ran out in the old one");
    assert_eq!(orchestrator.view().tasks_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_goes_finishes_what_it_has_and_takes_nothing_new() {
    let world = start(Env::simulated(2), vec![on_device("a", 0, 2), on_device("b", 1, 2)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let mut readers = Vec::new();
    for number in 0..30 {
        let submitted =
            orchestrator.submit(TaskRequest::completion(format!("p{number}")).max_tokens(20)).await.unwrap();
        readers.push(tokio::spawn(end_of(submitted.stream())));
    }
    let change = orchestrator.reconfigure(builder(config(vec![on_device("b", 1, 2)]))).unwrap();
    assert_eq!((change.removed, change.kept), (vec!["a".to_owned()], vec!["b".to_owned()]));
    assert!(orchestrator.pool(&pool_id("a")).is_none());
    for reader in readers {
        assert!(matches!(reader.await.unwrap().1, Event::End(_)));
    }
    while !orchestrator.leaving().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Back again, as a new pool beside the other.
    orchestrator.reconfigure(builder(config(vec![on_device("a", 0, 1), on_device("b", 1, 2)]))).unwrap();
    orchestrator.until_ready().await;
    assert_eq!(orchestrator.pools().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_changes_nothing_and_every_fault_is_named() {
    let world = start(Env::simulated(3), vec![on_device("a", 0, 2)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let before = orchestrator.config();
    let mut two = config(vec![on_device("a", 0, 0), on_device("a", 0, 1)]);
    two.retention.tasks = 5;
    let faults = orchestrator.reconfigure(builder(two)).unwrap_err();
    let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
    assert!(paths.contains(&"pools[0].slots") && paths.contains(&"pools[1].id"), "{paths:?}");
    let mut fixed = config(vec![on_device("b", 0, 1)]);
    fixed.retention.tasks = 5;
    let faults = orchestrator.reconfigure(builder(fixed)).unwrap_err();
    assert!(faults[0].path == "retention" && faults[0].message.contains("restart"), "{faults:?}");
    assert_eq!((*orchestrator.config() == *before, orchestrator.config_generation()), (true, 1));
    assert_eq!(orchestrator.pools().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_may_do_changes_at_once_and_what_it_uses_stays_counted() {
    let quota = |running| ClientConfig {
        quotas: QuotaConfig { running: Some(running), ..QuotaConfig::default() },
        ..ClientConfig::default()
    };
    let with = |running| Config {
        clients: BTreeMap::from([("c".to_owned(), quota(running))]),
        ..config(vec![on_device("a", 0, 4)])
    };
    let world = start_with(Env::simulated(4), Config { pools: vec![], ..with(1) }, vec![on_device("a", 0, 4)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let client = ClientId::parse("c").unwrap();
    let mut readers = Vec::new();
    for _ in 0..6 {
        let request = TaskRequest::completion("x").max_tokens(100).client(client.clone());
        readers.push(tokio::spawn(end_of(orchestrator.submit(request).await.unwrap().stream())));
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(orchestrator.pools()[0].slots_used, 1);
    let change = orchestrator.reconfigure(builder(with(3))).unwrap();
    assert!(change.settings && change.replaced.is_empty());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(orchestrator.pools()[0].slots_used, 3, "two more may run now");
    for reader in readers {
        assert!(matches!(reader.await.unwrap().1, Event::End(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_to_be_listed_and_goes_again_keeps_what_it_uses() {
    let quota = |running| ClientConfig {
        quotas: QuotaConfig { running: Some(running), ..QuotaConfig::default() },
        ..ClientConfig::default()
    };
    let with = |listed: Option<u32>| Config {
        clients: listed.map(|running| ("c".to_owned(), quota(running))).into_iter().collect(),
        default_client: quota(1),
        ..config(vec![on_device("a", 0, 4)])
    };
    let world =
        start_with(Env::simulated(12), Config { pools: vec![], ..with(None) }, vec![on_device("a", 0, 4)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let mut readers = Vec::new();
    for _ in 0..6 {
        let request = TaskRequest::completion("x").max_tokens(100).client(ClientId::parse("c").unwrap());
        readers.push(tokio::spawn(end_of(orchestrator.submit(request).await.unwrap().stream())));
    }
    for (listed, runs) in [(None, 1), (Some(2), 2), (Some(3), 3), (None, 3)] {
        let _ = orchestrator.reconfigure(builder(with(listed))).unwrap();
        let request = TaskRequest::completion("x").max_tokens(100).client(ClientId::parse("c").unwrap());
        readers.push(tokio::spawn(end_of(orchestrator.submit(request).await.unwrap().stream())));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(orchestrator.pools()[0].slots_used, runs, "{listed:?}: no more than it may, no new count");
    }
    for reader in readers {
        assert!(matches!(reader.await.unwrap().1, Event::End(_)));
    }
}

/// A configuration drawn by chance: pools a to d, with models, slots and queues of all kinds; one in four is wrong.
fn drawn(random: &mut fastrand::Rng) -> Config {
    let mut pools = Vec::new();
    for (index, id) in ["a", "b", "c", "d"].iter().enumerate() {
        // The first always serves "tiny".
        if index == 0 || random.bool() {
            let mut pool = pool(id, random.u32(1..=2), random.u32(1..=3), millisecond());
            for (replica, device) in pool.replicas.iter_mut().zip(0..) {
                replica.devices = vec![DeviceRef::Index(index as u32 * 2 + device)];
            }
            pool.queue.capacity = random.u32(200..400);
            pool.model = if index > 1 && random.bool() { "other".into() } else { "tiny".into() };
            pool.timeouts.drain_ms = 60_000;
            pools.push(pool);
        }
    }
    let mut config = config(pools);
    config.prompt_bytes_max = random.u32(1_000..9_000);
    config.clients.insert("c1".into(), ClientConfig { weight: random.u32(1..5), ..ClientConfig::default() });
    match random.u32(0..16) {
        0 => config.pools[0].slots = 0,
        1 => config.pools.push(config.pools[0].clone()),
        2 => config.retention.tasks = 7,
        3 => config.pools.clear(),
        _ => {}
    }
    config
}

#[tokio::test(start_paused = true)]
async fn a_thousand_configurations_under_load_lose_nothing_and_wrong_ones_change_nothing() {
    let mut random = fastrand::Rng::with_seed(7);
    let first = config(vec![pool("a", 1, 2, millisecond())]);
    let world = start(Env::simulated(5), first.pools.clone()).await;
    let orchestrator = world.orchestrator;
    let (mut applied, mut refused, mut readers) = (0, 0, Vec::new());
    for round in 0..1_000 {
        for _ in 0..random.u32(0..4) {
            let number = readers.len();
            let request = TaskRequest {
                session_id: (number % 5 == 0).then(|| orchestrator_core::core::SessionId::parse("s").unwrap()),
                priority: if number % 3 == 0 { Priority::Batch } else { Priority::Interactive },
                model_ref: Some("tiny".into()),
                seed: Some(number as u64),
                client_id: ClientId::parse(&format!("c{}", number % 4)).unwrap(),
                ..TaskRequest::completion(format!("p{number}")).max_tokens(1 + random.u32(0..20))
            };
            match orchestrator.submit(request.clone()).await {
                Ok(submitted) => readers.push(tokio::spawn(async move { (end_of(submitted.stream()).await, request) })),
                Err(error) => assert_eq!(error.code, ErrorCode::PoolUnready, "{error}"),
            }
        }
        let (before, generation) = (orchestrator.config(), orchestrator.config_generation());
        match orchestrator.reconfigure(builder(drawn(&mut random))) {
            Ok(_) => applied += 1,
            Err(_) => {
                refused += 1;
                assert_eq!((*orchestrator.config() == *before, orchestrator.config_generation()), (true, generation));
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
        assert!(orchestrator.leaving().len() < 200, "round {round}: they leave in the end");
    }
    let count = readers.len();
    for reader in readers {
        let ((text, end), request) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "{end:?} of {request:?}");
        let whole = undisturbed(&request.prompt, request.seed.unwrap(), request.max_tokens.0, "1", "tiny");
        assert_eq!(text, whole, "byte for byte");
    }
    println!("{applied} configurations applied, {refused} refused, {count} tasks, all ended well");
    assert!(applied > 600 && refused > 150 && count > 1_000);
    while !orchestrator.leaving().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let view = orchestrator.view();
    assert_eq!(view.tasks_open, 0);
    for pool in orchestrator.pools() {
        assert_eq!((pool.unsettled, pool.slots_used, pool.stalls), (0, 0, 0), "{}", pool.pool_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_was_drained_first_leaves_and_its_successor_serves_on_its_device() {
    let world = start(Env::simulated(6), vec![on_device("a", 0, 2)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    orchestrator.drain(&pool_id("a"));
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Stopped).await;
    orchestrator.reconfigure(builder(config(vec![on_device("a", 0, 3)]))).unwrap();
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Ready).await;
    assert!(orchestrator.leaving().is_empty());
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(3)).await.unwrap();
    assert!(matches!(end_of(submitted.stream()).await.1, Event::End(_)));
}

#[tokio::test(start_paused = true)]
async fn what_runs_in_the_first_of_three_generations_comes_to_its_end() {
    let slow = |slots: u32, drain_ms: u64| {
        let mut pool = on_device("a", 0, slots);
        pool.timeouts.drain_ms = drain_ms;
        pool
    };
    let world = start(Env::simulated(7), vec![slow(2, 200)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let mut readers = Vec::new();
    for number in 0..6 {
        let request = TaskRequest::completion(format!("p{number}")).max_tokens(400).seed(number);
        readers.push((number, tokio::spawn(end_of(orchestrator.submit(request).await.unwrap().stream()))));
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    // The second is replaced before it has run anything, and leaves at once; then the first one's time is over.
    orchestrator.reconfigure(builder(config(vec![slow(3, 200)]))).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    orchestrator.reconfigure(builder(config(vec![slow(4, 60_000)]))).unwrap();
    for (number, reader) in readers {
        let (text, end) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "task {number}: {end:?}");
        assert_eq!(text, undisturbed(&format!("p{number}"), number, 400, "1", "tiny"), "task {number}");
    }
    while !orchestrator.leaving().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(orchestrator.view().tasks_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_being_stopped_takes_no_other_configuration() {
    let world = start(Env::simulated(8), vec![on_device("a", 0, 2)]).await;
    let orchestrator = world.orchestrator;
    orchestrator.until_ready().await;
    let running = orchestrator.submit(TaskRequest::completion("x").max_tokens(200)).await.unwrap();
    let reader = tokio::spawn(end_of(running.stream()));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let handle = orchestrator.clone();
    let stopping = tokio::spawn(async move { handle.stop(Duration::MAX).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let faults = orchestrator.reconfigure(builder(config(vec![on_device("b", 1, 1)]))).unwrap_err();
    assert!(faults[0].message.contains("being stopped"), "{faults:?}");
    stopping.await.unwrap();
    assert!(matches!(reader.await.unwrap().1, Event::End(_)));
    assert!(orchestrator.has_ended());
}

#[tokio::test(start_paused = true)]
async fn supervisors_and_queues_may_die_while_configurations_change() {
    crate::support::hush_planned_panics();
    let actors =
        ["queue", "pool_manager", "pool_supervisor", "root", "admission", "latency", "sessions", "worker", "rollouts"];
    let mut random = fastrand::Rng::with_seed(11);
    let world = start(Env::simulated(9), vec![pool("a", 1, 2, millisecond())]).await;
    let orchestrator = world.orchestrator;
    let mut readers = Vec::new();
    for round in 0..300 {
        for _ in 0..random.u32(0..3) {
            let number = readers.len() as u64;
            let request = TaskRequest {
                model_ref: Some("tiny".into()),
                seed: Some(number),
                ..TaskRequest::completion(format!("p{number}")).max_tokens(1 + random.u32(0..20))
            };
            if let Ok(submitted) = orchestrator.submit(request.clone()).await {
                readers.push(tokio::spawn(async move { (end_of(submitted.stream()).await, request) }));
            }
        }
        orchestrator.env().arm_panic(actors[random.usize(..actors.len())]);
        let _ = orchestrator.reconfigure(builder(drawn(&mut random)));
        // No more than the supervisors' own rule allows in a minute.
        tokio::time::sleep(Duration::from_millis(random.u64(4_000..9_000))).await;
        assert!(!orchestrator.has_ended(), "round {round}");
    }
    for reader in readers {
        let ((text, end), request) = reader.await.unwrap();
        let whole = undisturbed(&request.prompt, request.seed.unwrap(), request.max_tokens.0, "1", "tiny");
        assert!(whole.starts_with(&text), "byte for byte, as far as it goes");
        assert!(matches!(end, Event::End(_)), "{end:?}");
    }
    println!("{} panics while configurations changed", orchestrator.env().panics_fired());
    while !orchestrator.leaving().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(orchestrator.view().tasks_open, 0);
}
