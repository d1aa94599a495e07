//! Real servers of the engines that `cargo xtask engines` installs.

use std::path::PathBuf;

use orchestrator_core::config::{Config, DeviceRef, PoolConfig, ReplicaConfig};
use orchestrator_core::service::engines;
use orchestrator_core::{Orchestrator, TaskRequest};

use super::{eventually, llama};

fn home(engine: &str) -> Option<PathBuf> {
    let own = std::env::var_os(format!("{}_HOME", engine.to_uppercase())).map(PathBuf::from);
    own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/orchestrator-core").join(engine)))
}

fn command(engine: &str, program: &str, arguments: &[&str]) -> Vec<String> {
    let program = format!("{}/xtask/engines/{engine}/{program}", super::root().display());
    std::iter::once(program).chain(arguments.iter().map(ToString::to_string)).collect()
}

fn replicas(count: u32) -> Vec<ReplicaConfig> {
    (0..count)
        .map(|index| ReplicaConfig { devices: vec![DeviceRef::Index(index)], ..ReplicaConfig::default() })
        .collect()
}

/// llama.cpp, or `None` when it is not installed.
pub fn llamacpp(replicas: u32, slots: u32) -> Option<PoolConfig> {
    Some(llama::pool(&llama::server()?, replicas, slots))
}

/// Triton with its seeded generator of words, or `None` when it is not installed.
pub fn triton(count: u32, slots: u32) -> Option<PoolConfig> {
    if home("triton").is_none_or(|home| !home.join("installed.txt").exists()) {
        assert!(std::env::var_os("REQUIRE_ENGINES").is_none(), "Triton is not installed: cargo xtask engines");
        println!("SKIPPED: Triton is not installed (cargo xtask engines installs it)");
        return None;
    }
    let mut pool = PoolConfig::new("tiny", "triton", "tiny");
    let arguments = [
        "--http-address",
        "127.0.0.1",
        "--http-port",
        "{port}",
        "--grpc-address",
        "127.0.0.1",
        "--grpc-port",
        "{port2}",
        "--metrics-port",
        "{port3}",
    ];
    pool.command = Some(command("triton", "tritonserver", &arguments));
    (pool.slots, pool.ctx, pool.replicas) = (slots, Some(65_536), replicas(count));
    Some(pool)
}

/// vLLM on the CPU, or `None` unless the environment asks for it with `VLLM=1`: it takes minutes and gigabytes.
pub fn vllm(count: u32, slots: u32) -> Option<PoolConfig> {
    if std::env::var_os("VLLM").is_none() {
        println!("SKIPPED: a real vLLM takes minutes (cargo xtask engines --vllm, then VLLM=1)");
        return None;
    }
    assert!(
        home("vllm").is_some_and(|home| home.join("installed").exists()),
        "it is not installed: cargo xtask engines --vllm"
    );
    let mut pool = PoolConfig::new("tiny", "vllm", "tiny");
    pool.command = Some(command("vllm", "vllm-serve", &["--port", "{port}", "--max-num-seqs", "{slots}"]));
    (pool.slots, pool.ctx, pool.replicas) = (slots, Some(1024), replicas(count));
    pool.timeouts.preload_ms = 400_000;
    (pool.timeouts.idle_ms, pool.restart.backoff_ms) = (60_000, 50);
    Some(pool)
}

/// A runtime of this pool, every replica of which is Ready.
pub async fn start(pool: PoolConfig) -> Orchestrator {
    let patience = pool.timeouts.preload_ms / 60_000 + 1;
    let orchestrator = engines::builder(Config { pools: vec![pool], ..Config::default() }).start().await.unwrap();
    let ready = orchestrator.clone();
    for minute in 1.. {
        let is_ready = || ready.pools()[0].replicas.iter().all(|replica| replica.state.is_ready());
        let waited = tokio::time::timeout(std::time::Duration::from_secs(58), eventually("Ready", is_ready)).await;
        if waited.is_ok() {
            break;
        }
        assert!(minute < patience, "not Ready: {:?}", ready.pools()[0].replicas[0].last_death);
    }
    orchestrator
}

/// Something to say, different for each number and the same each time.
pub fn request(number: u64) -> TaskRequest {
    let prompt = format!("The sky and the sea, day {number}: we go");
    TaskRequest::completion(prompt).max_tokens(24).seed(number * 31 + 7)
}
