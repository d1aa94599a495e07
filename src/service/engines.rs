//! Which engines a configuration can name, and what each of them needs.

use crate::config::{Config, ConfigError, DeviceRef, PoolConfig, ReplicaConfig};
use crate::gpu::llamacpp::LlamaCpp;
use crate::gpu::sim::SimEngine;
use crate::orchestrator::{Builder, Orchestrator};
use crate::service::config_file::suggestion;

/// The engines that a configuration can name.
pub const ENGINES: [&str; 2] = ["sim", "llamacpp"];

/// What is served without a configuration: one pool of the simulated engine on two simulated GPUs.
pub fn demo() -> Config {
    let replica = |index| ReplicaConfig { devices: vec![DeviceRef::Index(index)] };
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
            "llamacpp" => {
                if pool.sim.is_some() {
                    fault("sim", "only for engine: sim".into());
                }
                match (&pool.url, &pool.command) {
                    (None, None) => fault("command", "an engine needs a url, or a command to start it".into()),
                    (Some(_), Some(_)) => fault("url", "either a url or a command, not both".into()),
                    (Some(url), None) => check_url(pool, url, &mut fault),
                    (None, Some(command)) if command.is_empty() => fault("command", "it must not be empty".into()),
                    (None, Some(command)) if !command.iter().any(|part| part.contains("{port}")) => {
                        fault("command", "it must tell the engine its port with {port}".into());
                    }
                    (None, Some(_)) => {}
                }
            }
            other => fault("engine", format!("unknown engine {other:?}{}", suggestion(other, &ENGINES))),
        }
    }
    faults
}

fn check_url(pool: &PoolConfig, url: &str, fault: &mut impl FnMut(&str, String)) {
    if !url.starts_with("http://") || url.replace("{index}", "0").parse::<hyper::Uri>().is_err() {
        fault("url", format!("{url:?} is not of the form http://host:port"));
    } else if pool.replicas.len() > 1 && !url.contains("{index}") {
        fault("url", "several replicas need several servers: put {index} into the url".into());
    }
}

/// A runtime of these pools, ready to be started. `config` must have no faults.
pub fn builder(config: Config) -> Builder {
    let mut builder = Orchestrator::builder().config(config.clone());
    for pool in config.pools {
        builder = match pool.engine.as_str() {
            "llamacpp" => builder.pool(pool, LlamaCpp::new),
            _ => builder.pool(pool, SimEngine::new),
        };
    }
    builder
}
