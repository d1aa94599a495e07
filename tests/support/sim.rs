//! Runtimes of simulated pools, and readers that check what must hold for every stream.

use std::sync::Arc;

use orchestrator_core::config::{DeviceRef, PoolConfig, ReplicaConfig, SimConfig, SimFaults};
use orchestrator_core::core::device::{DeviceInfo, Inventory, Origin};
use orchestrator_core::core::{ClientId, DeviceId, PoolId, TaskId};
use orchestrator_core::env::InjectedPanic;
use orchestrator_core::gpu::sim::{SimEngine, SimStats};
use orchestrator_core::gpu::{EngineContext, SimDevices};
use orchestrator_core::{Config, Env, Event, Orchestrator, TaskRequest, TaskStream};

/// Panics that a test plans are not printed; all others are.
pub fn hush_planned_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<InjectedPanic>().is_none() {
                print(info);
            }
        }));
    });
}

/// A simulated engine without any delay.
pub fn instant() -> SimConfig {
    SimConfig { first_token_us: 0, token_us: 0, preload_us: 0, ..SimConfig::default() }
}

/// A simulated engine with a token each millisecond.
pub fn millisecond() -> SimConfig {
    SimConfig { first_token_us: 1_000, token_us: 1_000, preload_us: 1_000, ..SimConfig::default() }
}

pub fn faulty(faults: SimFaults) -> SimConfig {
    SimConfig { faults, ..millisecond() }
}

/// A pool of simulated replicas, one device each.
pub fn pool(id: &str, replicas: u32, slots: u32, sim: SimConfig) -> PoolConfig {
    let replica = |index| ReplicaConfig { devices: vec![DeviceRef::Index(index)], ..ReplicaConfig::default() };
    let replicas = (0..replicas).map(replica).collect();
    // Tests count runs and microseconds; those about the self-test switch it on.
    PoolConfig { slots, replicas, sim: Some(sim), self_test: false, ..PoolConfig::new(id, "sim", "tiny") }
}

/// A model whose name begins with `dies` kills its engine at the first token, one with `hangs` never gives a token;
/// with `-on-1` at the end only on the second replica. For reloads.
fn with_manners(context: &EngineContext) -> EngineContext {
    let mut context = context.clone();
    let (model, index) = (context.pool.model.clone(), context.replica.index.to_string());
    let (manner, on) = model.split_once("-on-").unwrap_or((&model, &index));
    if on == index && ["dies", "hangs"].contains(&manner) {
        let mut sim = context.pool.sim.clone().unwrap_or_default();
        let rate = if manner == "dies" { &mut sim.faults.die_ppm } else { &mut sim.faults.hang_first_ppm };
        *rate = 1_000_000;
        context.pool = Arc::new(PoolConfig { sim: Some(sim), ..(*context.pool).clone() });
    }
    context
}

/// A runtime of simulated pools, and what their workers have done: by pool, then by replica.
pub struct World {
    pub orchestrator: Orchestrator,
    pub stats: Vec<Vec<Arc<SimStats>>>,
}

pub async fn start(env: Env, pools: Vec<PoolConfig>) -> World {
    start_with(env, Config::default(), pools).await
}

pub async fn start_with(env: Env, config: Config, pools: Vec<PoolConfig>) -> World {
    start_on(None, env, config, pools).await
}

/// The same on these devices.
pub async fn start_on(devices: Option<SimDevices>, env: Env, config: Config, pools: Vec<PoolConfig>) -> World {
    hush_planned_panics();
    let mut builder = Orchestrator::builder().env(env).config(config);
    if let Some(devices) = devices {
        builder = builder.devices(Arc::new(devices));
    }
    let mut stats = Vec::new();
    for pool in pools {
        let of_pool: Vec<Arc<SimStats>> = pool.replicas.iter().map(|_| Arc::default()).collect();
        stats.push(of_pool.clone());
        builder = builder.pool(pool, move |context| {
            SimEngine::with_stats(&with_manners(context), of_pool[context.replica.index as usize].clone())
        });
    }
    World { orchestrator: builder.start().await.expect("starts"), stats }
}

/// Devices of a driver, by the names that these pools have for them.
pub fn devices_of(pools: &[PoolConfig]) -> (SimDevices, Vec<DeviceId>) {
    let names = pools.iter().flat_map(|pool| &pool.replicas).flat_map(|replica| &replica.devices);
    let ids: Vec<DeviceId> = names.map(|name| DeviceId::parse(&name.to_string()).unwrap()).collect();
    let info = |id: &DeviceId| DeviceInfo { index: id.as_str().parse().ok(), ..DeviceInfo::unknown(id.clone()) };
    let origin = Origin::Driver { version: "simulated".into() };
    (SimDevices::new(Inventory { origin, devices: ids.iter().map(info).collect() }), ids)
}

pub fn task_id(text: &str) -> TaskId {
    TaskId::parse(text).unwrap()
}

pub fn pool_id(text: &str) -> PoolId {
    PoolId::parse(text).unwrap()
}

pub fn client(text: &str) -> ClientId {
    ClientId::parse(text).unwrap()
}

pub fn request(id: &str, max_tokens: u32) -> TaskRequest {
    TaskRequest { task_id: Some(task_id(id)), ..TaskRequest::completion("the sky is").max_tokens(max_tokens) }
}

/// Reads a stream to its end and checks what must hold for every stream: indices without gaps, one terminal event, and
/// nothing behind it. Returns the text and the terminal event.
pub async fn read_whole(mut stream: TaskStream) -> (String, Event) {
    let (mut text, mut expected, mut tokens) = (String::new(), 0, 0);
    let mut end = None;
    while let Some((index, event)) = stream.next().await {
        assert_eq!(index, expected, "event indices have no gap");
        assert!(end.is_none(), "an event follows the terminal one: {event:?}");
        expected += 1;
        match event {
            Event::Token { text: token, index } => {
                assert_eq!(index, tokens, "token indices have no gap");
                tokens += 1;
                text.push_str(&token);
            }
            Event::Started(_) => {}
            terminal => end = Some(terminal),
        }
    }
    (text, end.expect("every stream has a terminal event"))
}

/// Waits until nothing is queued, running or leased any more.
pub async fn until_idle(orchestrator: &Orchestrator) {
    while !is_idle(orchestrator) {
        // Virtual time: the runtime's own timers decide how long this takes.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

pub fn is_idle(orchestrator: &Orchestrator) -> bool {
    let pools = orchestrator.pools();
    let idle = |pool: &orchestrator_core::PoolView| pool.slots_used == 0 && pool.queue_depth == [0, 0];
    orchestrator.view().tasks_open == 0 && pools.iter().all(idle)
}
