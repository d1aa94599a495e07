//! Which engines a configuration can name, and what each of them needs.

use crate::config::{Config, ConfigError, DeviceRef, PoolConfig, ReplicaConfig};
use crate::core::task::Workload;
use crate::gpu::engines::llamacpp::LlamaCpp;
use crate::gpu::engines::openai::OpenAi;
use crate::gpu::engines::registry::EngineRegistry;
use crate::gpu::engines::sim::SimEngine;
use crate::gpu::engines::tgi::Tgi;
use crate::gpu::engines::triton::Triton;
use crate::gpu::engines::vllm::Vllm;
use crate::orchestrator::{Builder, Orchestrator};
use crate::service::config::config_file::suggestion;

/// The engines that a configuration can name.
pub const ENGINES: [&str; 6] = ["sim", "llamacpp", "vllm", "tgi", "triton", "openai"];

/// What is served without a configuration: one pool of the simulated engine on two simulated GPUs.
pub fn demo() -> Config {
    let replica = |index| ReplicaConfig { devices: vec![DeviceRef::Index(index)], ..ReplicaConfig::default() };
    let pool =
        PoolConfig { slots: 4, replicas: vec![replica(0), replica(1)], ..PoolConfig::new("demo", "sim", "demo") };
    Config { pools: vec![pool], ..Config::default() }
}

/// What is wrong with the pools' engines.
pub(crate) fn faults(config: &Config) -> Vec<ConfigError> {
    let mut faults = Vec::new();
    for (position, pool) in config.pools.iter().enumerate() {
        let mut fault = |field: &str, message: String| {
            faults.push(ConfigError { path: format!("pools[{position}].{field}"), message });
        };
        match pool.engine.as_str() {
            "sim" => {
                if pool.url.is_some() || pool.command.is_some() {
                    fault("engine", "the simulated engine has neither url nor command".into());
                }
            }
            known if ENGINES.contains(&known) => check_server(pool, &mut fault),
            other => fault("engine", format!("unknown engine {other:?}{}", suggestion(other, &ENGINES))),
        }
    }
    faults
}

/// What every engine behind HTTP needs.
fn check_server(pool: &PoolConfig, fault: &mut impl FnMut(&str, String)) {
    if pool.sim.is_some() {
        fault("sim", "only for engine: sim".into());
    }
    match (&pool.url, &pool.command) {
        (None, None) => fault("command", "an engine needs a url, or a command to start it".into()),
        (Some(_), Some(_)) => fault("url", "either a url or a command, not both".into()),
        (Some(url), None) => check_url(pool, url, fault),
        (None, Some(command)) => check_command(pool, command, fault),
    }
    let only_completions = ["tgi", "triton"].contains(&pool.engine.as_str());
    if only_completions && pool.workloads.iter().any(|workload| *workload != Workload::Completion) {
        fault("workloads", format!("{} serves completions only", pool.engine));
    }
}

fn check_command(pool: &PoolConfig, command: &[String], fault: &mut impl FnMut(&str, String)) {
    if command.is_empty() {
        return fault("command", "it must not be empty".into());
    }
    if !command.iter().any(|part| part.contains("{port}")) {
        fault("command", "it must tell the engine its port with {port}".into());
    }
    let splits = pool.replicas.iter().any(|replica| replica.tensor_split.is_some());
    if splits && !command.iter().any(|part| part.contains("{tensor_split}")) {
        fault("command", "a tensor_split is given, and nothing tells the engine: put {tensor_split} into it".into());
    }
}

/// A server that runs already, somewhere.
fn check_url(pool: &PoolConfig, url: &str, fault: &mut impl FnMut(&str, String)) {
    let parsed = url.replace("{index}", "0").parse::<hyper::Uri>().ok().filter(|_| url.starts_with("http://"));
    let Some(parsed) = parsed.filter(|parsed| parsed.host().is_some_and(|host| !host.is_empty())) else {
        return fault("url", format!("{url:?} is not of the form http://host:port"));
    };
    let has_user = parsed.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if has_user && pool.api_key_env.is_some() {
        fault("url", "it has a user in it, and api_key_env names a key: one of them has to go".into());
    } else if url.contains('#') {
        fault("url", format!("{url:?} has a fragment, which is no part of a request; leave it out"));
    } else if pool.replicas.len() > 1 && !url.contains("{index}") {
        fault("url", "several replicas need several servers: put {index} into the url".into());
    }
}

/// What a server of this pool answers with success when it is ready; `None` for an engine without a server.
pub(crate) fn ready_path(pool: &PoolConfig) -> Option<String> {
    match pool.engine.as_str() {
        "llamacpp" | "vllm" | "tgi" => Some("/health".into()),
        "triton" => Some(format!("/v2/models/{}/ready", pool.model)),
        "openai" => Some("/v1/models".into()),
        _ => None,
    }
}

/// What makes each of them.
pub fn registry() -> EngineRegistry {
    EngineRegistry::new()
        .with("sim", SimEngine::new)
        .with("llamacpp", LlamaCpp::new)
        .with("vllm", Vllm::new)
        .with("tgi", Tgi::new)
        .with("triton", Triton::new)
        .with("openai", OpenAi::new)
}

/// A runtime of these pools, ready to be started. `config` must have no faults.
pub fn builder(config: Config) -> Builder {
    Orchestrator::builder().config(config).engines(&registry()).log_tasks()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_that_a_configuration_can_name_can_be_made() {
        let named: std::collections::BTreeSet<_> = ENGINES.into_iter().collect();
        assert_eq!(registry().names().collect::<std::collections::BTreeSet<_>>(), named);
    }
}
