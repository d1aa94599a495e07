//! Memory: what a load needs is there before it is begun, what an engine held is free before the next one comes, a
//! device that runs out is good for fewer tasks, and what tasks may come to need in a KV cache counts.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use orchestrator_core::config::{DeviceRef, GpuConfig, PoolConfig, ReplicaConfig};
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::gpu::sim::SimEngine;
use orchestrator_core::gpu::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use orchestrator_core::{Cause, Config, Env, Event, Orchestrator, TaskRequest};

use crate::support::nvml::{FakeDriver, uuid};
use crate::support::{eventually, millisecond, pool, pool_id, read_whole, until_idle};

/// The simulated engine with a process that it says is its own, and a wish to run out of memory.
struct Demanding {
    sim: SimEngine,
    process_id: Option<u32>,
    slots: u32,
    /// Most runs at once before its device runs out.
    most: u32,
    running: Arc<AtomicU32>,
    words: &'static str,
}

impl Engine for Demanding {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        if self.slots > self.most * 2 {
            return Err(EngineError::Preload(format!("{} for {} slots", self.words, self.slots).into()));
        }
        Ok(EngineInfo { process_id: self.process_id, ..Engine::preload(&self.sim).await? })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        struct Running<'a>(&'a AtomicU32);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        let now = self.running.fetch_add(1, SeqCst) + 1;
        let _running = Running(&self.running);
        if now > self.most {
            return Err(EngineError::Lost(self.words.to_owned().into()));
        }
        Engine::generate(&self.sim, job, out).await
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        Ok(Telemetry { kv_tokens: Some(100), ..Engine::probe(&self.sim).await? })
    }
}

fn demanding(
    words: &'static str,
    most: u32,
    process_id: Option<u32>,
) -> impl Fn(&EngineContext) -> Demanding + Send + Sync {
    let running = Arc::new(AtomicU32::new(0));
    move |context| Demanding {
        sim: SimEngine::new(context),
        process_id,
        slots: context.slots,
        most,
        running: running.clone(),
        words,
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_runs_out_of_memory_is_good_for_fewer_tasks_and_a_host_that_does_is_not() {
    for (words, cause, usable) in [
        ("CUDA error: out of memory", Cause::OutOfVram, 3),
        ("std::bad_alloc: cannot allocate memory", Cause::OutOfMemory, 8),
    ] {
        let mut config = pool("p", 1, 8, millisecond());
        config.resume.attempts_max = 20;
        let factory = demanding(words, 4, None);
        let orchestrator = Orchestrator::builder().env(Env::simulated(1)).pool(config, factory).start().await.unwrap();
        orchestrator.until_ready().await;
        let mut streams = Vec::new();
        for number in 0..8 {
            let request = TaskRequest::completion(format!("prompt {number}")).max_tokens(40);
            streams.push(orchestrator.submit(request).await.unwrap().stream());
        }
        let mut completed = 0;
        for stream in streams {
            completed += u32::from(matches!(read_whole(stream).await.1, Event::End(_)));
        }
        let replica = orchestrator.pools()[0].replicas[0].clone();
        assert!(replica.attempts_failed.contains_key(&cause), "{words}: {:?}", replica.attempts_failed);
        match cause {
            Cause::OutOfVram => {
                assert!((usable..=4).contains(&replica.slots_usable), "{} usable", replica.slots_usable)
            }
            _ => assert_eq!(replica.slots_usable, usable, "{words}"),
        }
        println!("{words}: {completed} of 8 completed, {} of 8 slots usable", replica.slots_usable);
        assert!(cause != Cause::OutOfVram || completed == 8, "with fewer at once all of them run");
        until_idle(&orchestrator).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_runs_out_of_device_memory_is_tried_for_half_the_slots_and_time_gives_them_back() {
    let mut config = pool("p", 1, 16, millisecond());
    config.restart.backoff_ms = 10;
    let factory = demanding("CUDA out of memory", 2, None);
    let orchestrator = Orchestrator::builder().env(Env::simulated(1)).pool(config, factory).start().await.unwrap();
    orchestrator.until_ready().await;
    let replica = orchestrator.pools()[0].replicas[0].clone();
    assert_eq!((replica.slots_usable, replica.deaths.get(&Cause::OutOfVram)), (4, Some(&2)), "16, 8, and 4 it is");
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(3)).await.unwrap();
    assert!(matches!(read_whole(submitted.stream()).await.1, Event::End(_)));
}

#[tokio::test(start_paused = true)]
async fn tasks_that_would_not_fit_into_the_cache_together_run_one_behind_the_other() {
    let mut config = pool("p", 1, 8, millisecond());
    config.memory.kv_tokens = Some(100);
    let orchestrator =
        Orchestrator::builder().env(Env::simulated(1)).pool(config, SimEngine::new).start().await.unwrap();
    orchestrator.until_ready().await;
    // Each may need 45 or so: two fit. One more is larger than the whole cache, and runs alone.
    let mut streams = Vec::new();
    for number in 0..7 {
        let tokens = if number == 3 { 400 } else { 40 };
        let request = TaskRequest::completion(format!("prompt number {number}")).max_tokens(tokens);
        streams.push(tokio::spawn(read_whole(orchestrator.submit(request).await.unwrap().stream())));
    }
    let (mut most, mut reserved) = (0, 0);
    while orchestrator.view().tasks_open > 0 {
        let replica = orchestrator.pools()[0].replicas[0].clone();
        most = most.max(replica.slots_used);
        if replica.slots_used > 1 {
            reserved = reserved.max(replica.kv_reserved);
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    for stream in streams {
        assert!(matches!(stream.await.unwrap().1, Event::End(_)));
    }
    assert!(most == 2 && reserved <= 100, "{most} at once, {reserved} tokens");
    let view = orchestrator.pools()[0].clone();
    assert_eq!((view.stalls, view.replicas[0].kv_reserved), (0, 0), "nothing stalls, and all is given back");
}

fn on_device(model_bytes: u64) -> PoolConfig {
    let replicas = vec![ReplicaConfig { devices: vec![DeviceRef::Index(0)], ..ReplicaConfig::default() }];
    let mut pool = PoolConfig { replicas, sim: Some(millisecond()), ..PoolConfig::new("p", "sim", "tiny") };
    (pool.memory.model_bytes, pool.memory.kv_bytes_per_token, pool.restart.backoff_ms) = (Some(model_bytes), 0, 10);
    pool
}

fn fast() -> Config {
    Config { gpu: GpuConfig { poll_ms: 20, recover_ms: 100, ..GpuConfig::default() }, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_engine_is_loaded_when_the_last_ones_memory_is_free_and_not_before() {
    let mut driver = FakeDriver::new("free", 1);
    const ENGINE: u32 = 4_000_001;
    let factory = demanding("", 9, Some(ENGINE));
    let builder = Orchestrator::builder().config(fast()).devices(driver.open()).pool(on_device(40 << 30), factory);
    let orchestrator = builder.start().await.unwrap();
    orchestrator.until_ready().await;
    // The engine holds its memory on the device, and goes on holding it when the worker dies.
    driver.set(0, "compute_processes", serde_json::json!([{"pid": ENGINE, "memory": 50_u64 << 30}]));
    driver.set(0, "memory_used", 51_u64 << 30);
    driver.xid(0, 95);
    orchestrator.until_pool(&pool_id("p"), |state| state == PoolState::Unready).await;
    eventually("the next one waits for its device's memory", || orchestrator.pools()[0].state == PoolState::Preloading)
        .await;
    let loads = || orchestrator.pools()[0].replicas[0].preload_successes;
    eventually("it has been looked at", || orchestrator.devices().devices[0].sample_age_ms.is_some()).await;
    assert_eq!(loads(), 1);
    driver.set(0, "compute_processes", serde_json::json!([]));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await; // Several looks: free of the process, and not of the memory.
    assert_eq!(loads(), 1, "51 GiB of 80 are still used");
    driver.set(0, "memory_used", 1_u64 << 30);
    eventually("it is loaded", || loads() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_seen_on_a_device_outside_its_mask_never_serves() {
    let mut driver = FakeDriver::new("stray", 2);
    let pid = std::process::id();
    driver.set(1, "compute_processes", serde_json::json!([{"pid": pid, "memory": 5}]));
    let factory = demanding("", 9, Some(pid));
    let builder = Orchestrator::builder().config(fast()).devices(driver.open()).pool(on_device(1), factory);
    let orchestrator = builder.start().await.unwrap();
    eventually("it has failed", || orchestrator.pools()[0].replicas[0].last_death.is_some()).await;
    let said = orchestrator.pools()[0].replicas[0].last_death.clone().unwrap().message;
    let wanted = format!("process {pid} of p/0 uses device {}, outside its mask {}", uuid(1), uuid(0));
    assert!(said.contains(&wanted), "{said}");
    driver.set(1, "compute_processes", serde_json::json!([]));
    orchestrator.until_ready().await;
}
