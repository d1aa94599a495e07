//! A real llama.cpp server for tests. `cargo xtask engines` installs it; without it tests say that they were skipped,
//! and with `REQUIRE_ENGINES` set they fail instead.

use std::path::PathBuf;

use orchestrator_core::Orchestrator;
use orchestrator_core::config::{DeviceRef, PoolConfig, ReplicaConfig};
use orchestrator_core::gpu::llamacpp::LlamaCpp;

use super::eventually;

/// The command that starts a server, or `None` when it is not installed.
pub fn server() -> Option<String> {
    let home = std::env::var_os("LLAMACPP_HOME").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/orchestrator-core/llamacpp"))
    })?;
    let command = super::root().join("xtask/engines/llamacpp/llama-server");
    if home.join("tiny.gguf").exists() && home.join("installed.txt").exists() {
        return Some(command.display().to_string());
    }
    assert!(std::env::var_os("REQUIRE_ENGINES").is_none(), "llama.cpp is not installed: cargo xtask engines");
    println!("SKIPPED: llama.cpp is not installed (cargo xtask engines installs it)");
    None
}

pub fn pool(server: &str, replicas: u32, slots: u32) -> PoolConfig {
    let command = [server, "--port", "{port}", "--parallel", "{slots}", "--ctx-size", "{ctx}"];
    let mut pool = PoolConfig::new("tiny", "llamacpp", "tiny.gguf");
    pool.command = Some(command.map(str::to_owned).to_vec());
    pool.slots = slots;
    pool.ctx = Some(4096);
    pool.replicas = (0..replicas)
        .map(|index| ReplicaConfig { devices: vec![DeviceRef::Index(index)], ..ReplicaConfig::default() })
        .collect();
    pool.restart.backoff_ms = 50;
    pool
}

pub async fn start(pool: PoolConfig) -> Orchestrator {
    let orchestrator = Orchestrator::builder().pool(pool, LlamaCpp::new).start().await.unwrap();
    let pools = orchestrator.clone();
    eventually("every replica is Ready", || pools.pools()[0].replicas.iter().all(|r| r.state.is_ready())).await;
    orchestrator
}

pub fn pids(orchestrator: &Orchestrator) -> Vec<u32> {
    orchestrator.pools()[0].replicas.iter().map(|replica| replica.engine_process_id.unwrap()).collect()
}

/// The port that a server was started with, from its command line.
pub fn port(pid: u32) -> u16 {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let parts: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    // A flag that is given again wins.
    let at = parts.iter().rposition(|part| part == "--port" || part == "--http-port").unwrap();
    parts[at + 1].parse().unwrap()
}

pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub fn prompt(number: u64) -> String {
    format!("the sky and the sea, day {number}: we go")
}
