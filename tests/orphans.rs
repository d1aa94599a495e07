//! Nothing that we started outlives us, however we end, and whatever it has started itself.
//!
//! `cargo xtask engines` installs llama.cpp. Without it this test says that it was skipped; with `REQUIRE_ENGINES` set, it fails.
#![cfg(all(feature = "service", feature = "engines-http"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

use std::time::{Duration, Instant};

use support::llama::server;
use support::{Service, eventually, exchange};

/// Processes of this group that have not ended.
fn members(group: u64) -> Vec<u32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_member = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name: state, parent, group.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields.first() != Some(&"Z") && fields.get(2).and_then(|field| field.parse().ok()) == Some(group)
    };
    processes.filter(is_member).collect()
}

#[tokio::test]
async fn four_engines_and_what_they_started_are_gone_when_we_are_killed() {
    let Some(server) = server() else { return };
    // Each engine has a child of its own, which ignores what it can.
    let script = format!("sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' & exec {server} \"$@\"");
    let config = format!(
        "pools:\n  - id: tiny\n    engine: llamacpp\n    model: tiny.gguf\n    slots: 1\n    ctx: 1024\n    \
         command: [sh, -c, {script:?}, engine, --port, \"{{port}}\", --parallel, \"{{slots}}\", --ctx-size, \"{{ctx}}\"]\n    \
         replicas: [{{devices: [0]}}, {{devices: [1]}}, {{devices: [2]}}, {{devices: [3]}}]\n"
    );
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("orphans.yaml");
    std::fs::write(&path, config).unwrap();
    let mut service = Service::start(&["--config", path.to_str().unwrap()]);
    let port = service.port;
    let engines = move || -> Vec<u64> {
        let pools: serde_json::Value = serde_json::from_str(&exchange(port, "GET", "/v1/pools", &[], b"").2).unwrap();
        let replicas = pools[0]["replicas"].as_array().unwrap();
        replicas.iter().filter_map(|replica| replica["engine_process_id"].as_u64()).collect()
    };
    eventually("four engines are Ready", || engines().len() == 4).await;
    let groups = engines();
    let living = || groups.iter().flat_map(|group| members(*group)).collect::<Vec<_>>();
    let before = living();
    assert!(before.len() >= 4 * 3, "an engine, its child and its watcher in each of four groups: {before:?}");
    service.child.kill().unwrap(); // SIGKILL: nothing of ours runs any more.
    let killed_at = Instant::now();
    service.child.wait().unwrap();
    eventually("all of them are gone", || living().is_empty()).await;
    let took = killed_at.elapsed();
    println!("{} processes in four groups gone {} ms after kill -9", before.len(), took.as_millis());
    assert!(took < Duration::from_secs(2), "{took:?}");
}
