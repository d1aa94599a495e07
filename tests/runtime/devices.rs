//! Devices that fail at any moment, and a monitor that dies: streams are the undisturbed ones, and pools come back with
//! their devices.

use std::time::Duration;

use orchestrator_core::config::GpuConfig;
use orchestrator_core::core::device::health::Condition;
use orchestrator_core::core::device::{DeviceSample, Observation};
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::{Config, Env, Event, TaskRequest};

use crate::support::{World, devices_of, millisecond, pool, pool_id, read_whole, start_on, until_idle};

fn config() -> Config {
    let gpu = GpuConfig { poll_ms: 10, answer_ms: 50, recover_ms: 40, ..GpuConfig::default() };
    Config { gpu, ..Config::default() }
}

fn well() -> Option<Observation> {
    Some(Observation::Sample(DeviceSample::default()))
}

#[tokio::test(start_paused = true)]
async fn a_device_may_fail_at_any_moment_and_no_stream_differs() {
    const TOKENS: u32 = 30;
    let request = |number: u64| TaskRequest::completion(format!("prompt {number}")).max_tokens(TOKENS).seed(number);
    let (mut undisturbed, mut resumed) = (Vec::new(), 0);
    for moment in 0..=60_u64 {
        let env = Env::simulated(moment);
        let pools = vec![pool("a", 2, 2, millisecond())];
        let (devices, ids) = devices_of(&pools);
        let World { orchestrator, .. } = start_on(Some(devices.clone()), env, config(), pools).await;
        orchestrator.until_ready().await;
        let mut streams = Vec::new();
        for number in 0..6 {
            let submitted = orchestrator.submit(request(number)).await.unwrap();
            streams.push(tokio::spawn(read_whole(submitted.stream())));
        }
        // The first world has no fault; each other one at its own moment, by the driver's word or by a look.
        if moment > 0 {
            tokio::time::sleep(Duration::from_millis(moment)).await;
            match moment % 3 {
                0 => devices.report(&ids[1], Observation::Xid(79)),
                1 => devices.set(&ids[1], Some(Observation::Lost)),
                _ => devices.set(&ids[1], None),
            }
        }
        let mut texts = Vec::new();
        for stream in streams {
            let (text, end) = stream.await.unwrap();
            assert!(matches!(&end, Event::End(end) if end.tokens_out == TOKENS), "at {moment}: {end:?}");
            texts.push(text);
        }
        if moment == 0 {
            undisturbed = texts;
        } else {
            assert_eq!(texts, undisturbed, "at {moment}");
        }
        let view = orchestrator.pools()[0].clone();
        resumed += view.resumed;
        assert_eq!((view.diverged, view.replicas[0].restarts), (0, 0), "at {moment}: the other replica never notices");
        devices.set(&ids[1], well());
        while !orchestrator.pools()[0].replicas.iter().all(|replica| replica.state.is_ready()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        until_idle(&orchestrator).await;
    }
    println!("61 worlds, {resumed} attempts resumed on the sibling, every stream equal");
    assert!(resumed > 40, "{resumed}");
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_dies_a_hundred_times_misses_no_failure_and_costs_no_engine() {
    let env = Env::simulated(3);
    let pools = vec![pool("a", 1, 1, millisecond())];
    let (devices, ids) = devices_of(&pools);
    let World { orchestrator, .. } = start_on(Some(devices.clone()), env.clone(), config(), pools).await;
    orchestrator.until_ready().await;
    for round in 1..=100 {
        env.arm_panic("gpu_monitor");
        while env.panics_fired() < round {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_secs(4)).await; // Not more than a supervisor allows.
    }
    assert_eq!((orchestrator.pools()[0].replicas[0].restarts, orchestrator.devices().devices[0].failures), (0, 0));
    devices.set(&ids[0], Some(Observation::Lost));
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
    env.arm_panic("gpu_monitor");
    devices.set(&ids[0], well());
    orchestrator.until_ready().await;
    assert_eq!(orchestrator.devices().devices[0].condition, Condition::Healthy);
}
