//! Devices as NVIDIA's library tells of them: a fake library, loaded through the unmodified wrapper, plays every part
//! that a driver can.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use orchestrator_core::config::{DeviceRef, GpuConfig, PoolConfig, ReplicaConfig};
use orchestrator_core::core::device::health::{Condition, Failure};
use orchestrator_core::core::device::{Mig, Observation, Origin};
use orchestrator_core::core::lifecycle::{PoolState, ReplicaState};
use orchestrator_core::gpu::nvml;
use orchestrator_core::gpu::sim::SimEngine;
use orchestrator_core::service::engines;
use orchestrator_core::{Config, DeviceView, Event, Orchestrator, TaskRequest};
use serde_json::{Value, json};

use crate::support::nvml::{FakeDriver, device, uuid};
use crate::support::real;
use crate::support::{alone, eventually, is_idle, millisecond, pool_id, read_whole, root};

/// A pool of one simulated engine on this device.
fn pool_on(id: &str, device: u32) -> PoolConfig {
    let replicas = vec![ReplicaConfig { devices: vec![DeviceRef::Index(device)], ..ReplicaConfig::default() }];
    let mut pool = PoolConfig { slots: 4, replicas, sim: Some(millisecond()), ..PoolConfig::new(id, "sim", "tiny") };
    pool.restart.backoff_ms = 10;
    pool
}

fn fast() -> Config {
    let gpu = GpuConfig { poll_ms: 20, answer_ms: 200, recover_ms: 300, ..GpuConfig::default() };
    Config { gpu, ..Config::default() }
}

async fn start(driver: &FakeDriver, config: Config, pools: Vec<PoolConfig>) -> Orchestrator {
    let mut builder = Orchestrator::builder().config(config).devices(driver.open());
    for pool in pools {
        builder = builder.pool(pool, SimEngine::new);
    }
    builder.start().await.unwrap()
}

fn seen(orchestrator: &Orchestrator, index: usize) -> DeviceView {
    orchestrator.devices().devices[index].clone()
}

async fn serves(orchestrator: &Orchestrator, pool: &str) {
    let submitted = orchestrator.submit(TaskRequest::completion("the sky is").max_tokens(4)).await.unwrap();
    assert!(matches!(read_whole(submitted.stream()).await.1, Event::End(_)), "{pool}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_eight_devices_are_listed_resolved_and_measured() {
    for count in [2, 8] {
        let driver = FakeDriver::new(&format!("listed-{count}"), count);
        let orchestrator = start(&driver, fast(), vec![pool_on("a", 0), pool_on("b", count - 1)]).await;
        orchestrator.until_ready().await;
        let view = orchestrator.devices();
        assert_eq!(view.origin, Origin::Driver { version: "570.00".into() });
        assert_eq!(view.devices.len(), count as usize);
        let last = orchestrator.pools()[1].replicas[0].devices.to_string();
        assert_eq!(last, uuid(count - 1), "an index is a UUID from here on");
        eventually("each is looked at", || orchestrator.devices().devices.iter().all(|device| device.sample.is_some()))
            .await;
        let first = seen(&orchestrator, 0);
        assert_eq!((first.info.name.as_str(), first.info.compute_capability), ("Fake H100", Some((9, 0))));
        assert_eq!((first.info.pcie, first.info.nvlinks, first.info.cpus), (Some((5, 16)), 2, vec![0, 1]));
        let sample = first.sample.unwrap();
        assert_eq!(
            (sample.utilization_percent, sample.temperature_c, sample.power_mw),
            (Some(37), Some(41), Some(70_000))
        );
        assert_eq!(sample.memory_used.map(|used| used.0), Some(1 << 30));
        assert_eq!(first.replicas[0].to_string(), "a/0");
        serves(&orchestrator, "a").await;
        orchestrator.stop(Duration::MAX).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_xid_ends_in_its_documented_state() {
    // A device may fail three times in an hour; the fourth opens its breaker.
    xids_end_in_their_states("xids", &[(13, false), (31, false), (63, false), (94, false), (48, true), (64, true)])
        .await;
    let orchestrator = xids_end_in_their_states("more-xids", &[(74, true), (79, true), (95, true), (48, true)]).await;
    let waits = |state| matches!(state, ReplicaState::DeviceDown { .. });
    eventually("its worker waits for it", || waits(orchestrator.pools()[0].replicas[0].state)).await;
    let error = orchestrator.submit(TaskRequest::completion("x")).await.err().unwrap();
    assert!(error.retry_after_ms > Some(60_000), "the breaker is open for minutes: {error:?}");
}

async fn xids_end_in_their_states(name: &str, xids: &[(u64, bool)]) -> Orchestrator {
    let mut driver = FakeDriver::new(name, 1);
    let orchestrator = start(&driver, fast(), vec![pool_on("a", 0)]).await;
    orchestrator.until_ready().await;
    let (mut restarts, mut failures) = (0, 0);
    for &(number, fails) in xids {
        driver.xid(0, number);
        eventually("the XID is counted", || seen(&orchestrator, 0).xids.contains_key(&number)).await;
        let view = seen(&orchestrator, 0);
        assert_eq!(view.xids[&number].effect, orchestrator_core::core::device::xid::xid(number).effect);
        if fails {
            failures += 1;
            eventually("it has failed", || seen(&orchestrator, 0).failures == failures).await;
            let is_it =
                |condition| matches!(condition, Condition::Failed { failure: Failure::Xid(xid), .. } if xid == number);
            assert!(is_it(seen(&orchestrator, 0).condition), "{number}");
            orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
            restarts += 1;
        }
        if failures < 4 {
            orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Ready).await;
            assert_eq!(seen(&orchestrator, 0).condition, Condition::Healthy, "{number}");
            serves(&orchestrator, "a").await;
        }
        assert_eq!(orchestrator.pools()[0].replicas[0].restarts, restarts, "{number}");
    }
    orchestrator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_lost_needs_a_reset_vanishes_or_counts_errors_is_out_until_it_is_well() {
    // What goes wrong, what it is taken for, and what makes it well again.
    type Wrong = (&'static str, fn(&mut FakeDriver), Failure, fn(&mut FakeDriver));
    let wrongs: [Wrong; 4] = [
        ("lost", |driver| driver.set(0, "error", 15), Failure::Lost, |driver| driver.set(0, "error", 0)),
        ("reset", |driver| driver.set(0, "error", 16), Failure::ResetRequired, |driver| driver.set(0, "error", 0)),
        ("vanished", |driver| driver.set(0, "gone", true), Failure::Missing, |driver| driver.set(0, "gone", false)),
        (
            "ecc",
            |driver| driver.set(0, "ecc_uncorrected", 2),
            Failure::EccUncorrected,
            |driver| driver.set(0, "ecc_uncorrected", 0),
        ),
    ];
    for (name, break_it, failure, mend_it) in wrongs {
        let mut driver = FakeDriver::new(name, 1);
        let orchestrator = start(&driver, fast(), vec![pool_on("a", 0)]).await;
        orchestrator.until_ready().await;
        eventually("it is looked at", || seen(&orchestrator, 0).sample.is_some()).await;
        break_it(&mut driver);
        let is_out = |condition| matches!(condition, Condition::Failed { failure: seen, .. } if seen == failure);
        eventually("it is out", || is_out(seen(&orchestrator, 0).condition)).await;
        orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
        mend_it(&mut driver);
        orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Ready).await;
        serves(&orchestrator, name).await;
        assert_eq!((seen(&orchestrator, 0).failures, orchestrator.pools()[0].replicas[0].restarts), (1, 1), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_waits_is_shown_and_takes_nothing_out() {
    let mut driver = FakeDriver::new("pending", 1);
    let orchestrator = start(&driver, fast(), vec![pool_on("a", 0)]).await;
    orchestrator.until_ready().await;
    driver.set(0, "retired_pending", true);
    eventually("it is shown", || seen(&orchestrator, 0).condition == Condition::ResetPending).await;
    serves(&orchestrator, "a").await;
    assert_eq!(orchestrator.pools()[0].replicas[0].restarts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_answers_after_five_seconds_holds_up_nobody() {
    let mut driver = FakeDriver::new("slow", 2);
    let orchestrator = start(&driver, fast(), vec![pool_on("a", 0), pool_on("b", 1)]).await;
    orchestrator.until_ready().await;
    driver.set(1, "slow_ms", 5_000);
    eventually("it is late", || seen(&orchestrator, 1).condition == Condition::Late).await;
    let longest = AtomicU64::new(0);
    let is_out = |condition| matches!(condition, Condition::Failed { failure: Failure::Unresponsive, .. });
    while !is_out(seen(&orchestrator, 1).condition) {
        let begin = Instant::now();
        serves(&orchestrator, "beside a slow driver").await;
        longest.fetch_max(begin.elapsed().as_millis() as u64, SeqCst);
    }
    println!(
        "three looks without an answer took it out; the longest task beside them took {} ms",
        longest.load(SeqCst)
    );
    assert!(longest.load(SeqCst) < 2_000, "no handler waited for the driver");
    orchestrator.until_pool(&pool_id("b"), |state| state == PoolState::Unready).await;
    let other = seen(&orchestrator, 0);
    assert!(other.condition == Condition::Healthy && other.sample_age_ms < Some(2_000), "the other is looked at");
    driver.set(1, "slow_ms", 0);
    orchestrator.until_pool(&pool_id("b"), |state| state == PoolState::Ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_driver_lacks_is_not_known_and_nothing_else() {
    let mut driver = FakeDriver::new("lacks", 1).without("nvmlDeviceGetTemperature").without("nvmlDeviceGetNumaNodeId");
    let unsupported = [
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetMemoryInfo_v2",
    ];
    driver.set(0, "not_supported", json!(unsupported));
    let orchestrator = start(&driver, fast(), vec![pool_on("a", 0)]).await;
    orchestrator.until_ready().await;
    eventually("it is looked at", || seen(&orchestrator, 0).sample.is_some()).await;
    let view = seen(&orchestrator, 0);
    let sample = view.sample.unwrap();
    assert_eq!((sample.temperature_c, sample.utilization_percent, sample.power_mw), (None, None, None));
    assert_eq!((sample.memory_used, sample.ecc_uncorrected, view.info.numa_node), (None, None, None));
    assert_eq!((view.condition, sample.power_limit_mw), (Condition::Healthy, Some(700_000)), "the rest is there");
    serves(&orchestrator, "a").await;
}

/// Each file is what one card says, as `tools/gpu-check/compare --scenario` writes it.
#[test]
fn each_card_of_the_scenarios_is_read_as_it_is() {
    let folder = root().join("tests/fake-nvml/scenarios");
    let cards: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!cards.is_empty());
    for path in cards {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let scenario: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let driver = FakeDriver::with(&format!("card-{name}"), scenario.clone());
        let probe = driver.open();
        let (said, listed) = (&scenario["devices"][0], json!(probe.inventory().devices[0]));
        let has = |function: &str| !said["not_supported"].as_array().unwrap().contains(&json!(function));
        let unless = |function: &str, value: &Value| if has(function) { value.clone() } else { Value::Null };
        assert_eq!(listed["name"], said["name"], "{name}");
        assert_eq!(listed["memory"], unless("nvmlDeviceGetMemoryInfo_v2", &said["memory_total"]), "{name}");
        assert_eq!(listed["compute_capability"], unless("nvmlDeviceGetCudaComputeCapability", &said["cc"]), "{name}");
        assert_eq!(listed["numa_node"], unless("nvmlDeviceGetNumaNodeId", &said["numa_node"]), "{name}");
        let (sender, receiver) = std::sync::mpsc::channel();
        probe.attach(Arc::new(move |_, seen| drop(sender.send(seen))));
        probe.look(&probe.inventory().devices[0].id);
        let Observation::Sample(sample) = receiver.recv_timeout(Duration::from_secs(10)).unwrap() else {
            panic!("{name} is not well");
        };
        let kept = said["memory_used"].as_u64().unwrap() + said["memory_reserved"].as_u64().unwrap();
        let seen = json!(sample);
        assert_eq!(seen["memory_used"], unless("nvmlDeviceGetMemoryInfo_v2", &json!(kept)), "{name}: neither is free");
        for (field, function, value) in [
            ("utilization_percent", "nvmlDeviceGetUtilizationRates", "gpu_util"),
            ("temperature_c", "nvmlDeviceGetTemperature", "temperature"),
            ("power_mw", "nvmlDeviceGetPowerUsage", "power_mw"),
            ("power_limit_mw", "nvmlDeviceGetEnforcedPowerLimit", "power_limit_mw"),
            ("throttle_reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle"),
        ] {
            assert_eq!(seen[field], unless(function, &said[value]), "{name}: {field}");
        }
        let counts_errors = said["ecc_enabled"] == true && has("nvmlDeviceGetTotalEccErrors");
        assert_eq!(seen["ecc_uncorrected"], if counts_errors { said["ecc_uncorrected"].clone() } else { Value::Null });
        assert!(!sample.reset_pending, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_instances_are_devices_and_fail_with_their_whole() {
    let mut whole = device(0);
    let part = |number: u32| json!({"uuid": format!("MIG-{number}"), "name": "Fake 1g.10gb", "memory_total": 10_u64 << 30, "memory_used": 0});
    whole["mig"] = json!([part(0), part(1)]);
    let mut driver = FakeDriver::with("mig", json!({"devices": [whole, device(1)]}));
    let named = |id: &str, name: &str| {
        let mut pool = pool_on(id, 0);
        pool.replicas[0].devices = vec![DeviceRef::Uuid(name.into())];
        pool
    };
    let orchestrator =
        start(&driver, fast(), vec![named("a", "MIG-0"), named("b", "MIG-1"), pool_on("c", 1), pool_on("d", 0)]).await;
    let view = orchestrator.devices();
    let migs: Vec<Mig> = view.devices.iter().map(|device| device.info.mig.clone()).collect();
    assert!(
        matches!(&migs[0], Mig::Divided(parts) if parts.len() == 2) && matches!(&migs[1], Mig::PartOf(_)),
        "{migs:?}"
    );
    for name in ["a", "b", "c"] {
        orchestrator.until_pool(&pool_id(name), |state| state == PoolState::Ready).await;
    }
    // A divided device cannot be used whole.
    eventually("the pool on the whole says why not", || orchestrator.pools()[3].replicas[0].last_death.is_some()).await;
    let why = orchestrator.pools()[3].replicas[0].last_death.clone().unwrap().message;
    assert!(why.contains("pools[3].replicas[0].devices") && why.contains("MIG-0, MIG-1"), "{why}");
    driver.xid(0, 79);
    for name in ["a", "b"] {
        orchestrator.until_pool(&pool_id(name), |state| state == PoolState::Unready).await;
    }
    assert_eq!(orchestrator.pools()[2].state, PoolState::Ready, "another device's pool goes on");
}

#[test]
fn without_a_driver_that_is_said_and_a_broken_one_too() {
    let open = |path: &Path| nvml::open(Some(path.as_os_str()), Duration::from_secs(5)).err().unwrap().to_string();
    let missing = open(Path::new("/nowhere/libnvidia-ml.so.1"));
    assert!(missing.starts_with("no NVIDIA driver found (") && !missing.contains('\n'), "{missing}");
    let driver = FakeDriver::with("broken", json!({"init_error": 999}));
    let broken = open(&driver.library);
    assert!(broken.starts_with("the NVIDIA driver does not work: "), "{broken}");
    let driver = FakeDriver::with("unloaded", json!({"init_error": 9}));
    assert!(open(&driver.library).starts_with("no NVIDIA driver found ("));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_under_load_costs_no_task_a_byte_and_the_other_pool_nothing() {
    let driver = FakeDriver::new("load", 2);
    let orchestrator = start(&driver, fast(), vec![pool_on("a", 0), pool_on("b", 1)]).await;
    fails_under_load(driver, orchestrator, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_under_real_llamacpp_servers_costs_no_task_a_byte() {
    let Some(pool) = real::llamacpp(1, 1) else { return };
    let _alone = alone().await;
    let driver = FakeDriver::new("llama", 2);
    let on = |id: &str, device: u32| {
        let replicas = vec![ReplicaConfig { devices: vec![DeviceRef::Index(device)], ..ReplicaConfig::default() }];
        PoolConfig { id: id.into(), replicas, ..pool.clone() }
    };
    let config = Config { pools: vec![on("a", 0), on("b", 1)], ..fast() };
    let orchestrator = engines::builder(config).devices(driver.open()).start().await.unwrap();
    fails_under_load(driver, orchestrator, 1).await;
}

async fn fails_under_load(mut driver: FakeDriver, orchestrator: Orchestrator, slots: u32) {
    orchestrator.until_ready().await;
    eventually("both have said what they are", || orchestrator.replica_sets().len() == 1).await;
    let request = |number: u64| TaskRequest::completion(format!("prompt {number}")).max_tokens(300).seed(number);
    let mut texts = Vec::new();
    for round in 0..2 {
        let mut streams = Vec::new();
        for number in 0..24 {
            let submitted = orchestrator.submit(request(number)).await.unwrap();
            streams.push(tokio::spawn(read_whole(submitted.stream())));
        }
        if round == 1 {
            eventually("both run", || orchestrator.pools().iter().all(|pool| pool.slots_used == slots)).await;
            driver.xid(1, 79);
            driver.set(1, "error", 15);
            orchestrator.until_pool(&pool_id("b"), |state| state == PoolState::Unready).await;
            assert_eq!(orchestrator.pools()[0].state, PoolState::Ready);
        }
        let mut seen = Vec::new();
        for stream in streams {
            let (text, end) = stream.await.unwrap();
            assert!(matches!(&end, Event::End(end) if end.tokens_out == 300), "{end:?}");
            seen.push(text);
        }
        texts.push(seen);
    }
    assert_eq!(texts[0], texts[1], "byte for byte");
    let pools = orchestrator.pools();
    assert!(
        pools[1].resumed >= 1 && pools[0].taken_over >= 1,
        "{} resumed, {} taken over",
        pools[1].resumed,
        pools[0].taken_over
    );
    assert_eq!((pools[0].replicas[0].restarts, pools[0].replicas[0].attempts_failed.len()), (0, 0), "it never noticed");
    assert_eq!(pools[1].state, PoolState::Unready, "not before its device is well");
    driver.set(1, "error", 0);
    orchestrator.until_pool(&pool_id("b"), |state| state == PoolState::Ready).await;
    eventually("all slots are free", || is_idle(&orchestrator)).await;
    let engine = &pools[0].engine;
    println!("{engine}: 24 of 24 streams equal, {} resumed on the sibling; the pool is back", pools[1].resumed);
    orchestrator.stop(Duration::MAX).await;
}
