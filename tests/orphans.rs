//! Nothing that we started outlives us, however we end, and whatever it has started itself.
//!
//! `cargo xtask engines` installs llama.cpp. Without it this test says that it was skipped; with `REQUIRE_ENGINES` set,
//! it fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use crate::support::llama::server;
use crate::support::processes::members;
use crate::support::real;
use crate::support::{Service, alone, eventually, exchange};

#[tokio::test]
async fn four_engines_and_what_they_started_are_gone_when_we_are_killed() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    // Each engine has a child of its own, which ignores what it can.
    let script = format!("sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' & exec {server} \"$@\"");
    let triton = real::triton(2, 1).map(|pool| pool.command.unwrap().join(", ")).unwrap_or_default();
    let triton = match triton.as_str() {
        "" => String::new(),
        command => format!(
            "  - id: words\n    engine: triton\n    model: tiny\n    command: [{}]\n    replicas: [{{devices: [2]}}, {{devices: [3]}}]\n",
            command.replace('{', "\"{").replace('}', "}\"")
        ),
    };
    let llamas = if triton.is_empty() { ", {devices: [2]}, {devices: [3]}" } else { "" };
    let config = format!(
        "pools:\n  - id: tiny\n    engine: llamacpp\n    model: tiny.gguf\n    slots: 1\n    ctx: 1024\n    \
         command: [sh, -c, {script:?}, engine, --port, \"{{port}}\", --parallel, \"{{slots}}\", --ctx-size, \"{{ctx}}\"]\n    \
         replicas: [{{devices: [0]}}, {{devices: [1]}}{llamas}]\n{triton}"
    );
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("orphans.yaml");
    std::fs::write(&path, config).unwrap();
    let mut service = Service::start(&["--config", path.to_str().unwrap()]);
    let port = service.port;
    let engines = move || -> Vec<u64> {
        let pools: serde_json::Value = serde_json::from_str(&exchange(port, "GET", "/v1/pools", &[], b"").2).unwrap();
        let replicas = pools.as_array().unwrap().iter().flat_map(|pool| pool["replicas"].as_array().unwrap());
        replicas.filter_map(|replica| replica["engine_process_id"].as_u64()).collect()
    };
    eventually("four engines are Ready", || engines().len() == 4).await;
    let groups = engines();
    let living = || groups.iter().flat_map(|group| members(*group)).collect::<Vec<_>>();
    let before = living();
    assert!(before.len() >= 4 * 2 + 2, "an engine and its watcher in each of four groups, and children: {before:?}");
    service.child.kill().unwrap(); // SIGKILL: nothing of ours runs any more.
    let killed_at = Instant::now();
    service.child.wait().unwrap();
    eventually("all of them are gone", || living().is_empty()).await;
    let took = killed_at.elapsed();
    println!("{} processes in four groups gone {} ms after kill -9", before.len(), took.as_millis());
    assert!(took < Duration::from_secs(2), "{took:?}");
}
