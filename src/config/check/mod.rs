//! What the types of the configuration cannot say: ranges, doubles, masks. Every fault is found, not only the first.

pub(crate) mod change;
pub(in crate::config) mod masks;

use crate::config::{
    CTX_DEFAULT, ClientConfig, Config, ConfigError, DEADLINE_MS_MAX, PoolConfig, QUEUE_CAPACITY_MAX, SLOTS_MAX,
};
use crate::config::{cluster, process};
use crate::core::fairness::WEIGHT_MAX;
use crate::core::id::{ClientId, PoolId};

/// Largest cost of a token. Costs are ratios; a thousand to one says all that there is to say.
const TOKEN_COST_MAX: u64 = 1_000;
/// Largest rate of a limit, a second.
const RATE_MAX: f64 = 1e9;
/// Longest name of a model, in characters. It stands in answers, log lines and labels of metrics.
const NAME_CHARS_MAX: usize = 256;
/// Longest path of a model's file, in bytes: what Linux takes.
const PATH_BYTES_MAX: usize = 4095;

impl Config {
    /// Checks everything that the types cannot, and returns every fault found.
    pub fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        if self.pools.is_empty() && self.cluster.is_none() {
            faults.push(ConfigError::new(
                "pools",
                "at least one pool is needed, unless the service is a node of a cluster",
            ));
        }
        cluster::faults(self, &mut faults);
        for (position, pool) in self.pools.iter().enumerate() {
            let path = format!("pools[{position}]");
            faults.append(&mut pool.faults(&path));
            if self.pools[..position].iter().any(|other| other.id == pool.id) {
                faults.push(ConfigError::new(format!("{path}.id"), format!("{:?} is used twice", pool.id)));
            }
        }
        masks::faults(self, &mut faults);
        process::faults(self, &mut faults);
        self.client_faults("default_client", &self.default_client, &mut faults);
        for (name, client) in &self.clients {
            let path = format!("clients.{name}");
            if let Err(error) = ClientId::parse(name) {
                faults.push(ConfigError::new(&path, error.to_string()));
            }
            self.client_faults(&path, client, &mut faults);
        }
        let mut range = |path: &str, value: u64, low: u64, high: u64| check_range(path, value, low, high, &mut faults);
        range("sessions.capacity", self.sessions.capacity.into(), 1, 10_000_000);
        range("sessions.ttl_ms", self.sessions.ttl_ms, 1, DEADLINE_MS_MAX);
        range("retention.tasks", self.retention.tasks.into(), 1, 10_000_000);
        range("retention.age_ms", self.retention.age_ms, 1, DEADLINE_MS_MAX);
        range("http.body_bytes_max", self.http.body_bytes_max.into(), 1024, 1024 * 1024 * 1024);
        range("http.bodies_bytes_max", self.http.bodies_bytes_max, u64::from(self.http.body_bytes_max), 1 << 40);
        range("http.readers_max", self.http.readers_max.into(), 1, 1_000_000);
        range("http.connections_max", self.http.connections_max.into(), 1, 1_000_000);
        range("http.head_ms", self.http.head_ms, 100, DEADLINE_MS_MAX);
        range("http.body_ms", self.http.body_ms, 100, DEADLINE_MS_MAX);
        range("access.failures_burst", self.access.failures_burst.into(), 1, 1_000_000);
        range("http.keep_alive_ms", self.http.keep_alive_ms, 100, DEADLINE_MS_MAX);
        range("http.metrics_ms", self.http.metrics_ms, 10, DEADLINE_MS_MAX);
        range("gpu.poll_ms", self.gpu.poll_ms, 10, 5_000); // A load waits for a look.
        range("gpu.answer_ms", self.gpu.answer_ms, 1, 3_600_000);
        range("gpu.recover_ms", self.gpu.recover_ms, 0, DEADLINE_MS_MAX);
        let objectives = &self.objectives;
        range("objectives.interactive.first_token_ms", objectives.interactive.first_token_ms, 1, DEADLINE_MS_MAX);
        range("objectives.interactive.tokens_64_ms", objectives.interactive.tokens_64_ms, 1, DEADLINE_MS_MAX);
        range("intake_margin", self.intake_margin.into(), 1, 1_000_000);
        range("texts_bytes_max", self.texts_bytes_max, u64::from(self.prompt_bytes_max), 1 << 40);
        range("prompt_bytes_max", self.prompt_bytes_max.into(), 1, 64 * 1024 * 1024);
        faults.extend(objectives.share_faults());
        faults.extend(self.http.host_faults());
        faults.extend(self.http.tls_fault());
        let rates =
            [("access.failures_per_s", self.access.failures_per_s), ("http.requests_per_s", self.http.requests_per_s)];
        for (path, _) in rates.into_iter().filter(|(_, rate)| !(1e-6..=RATE_MAX).contains(rate)) {
            faults.push(ConfigError::new(path, format!("it must be from 0.000001 to {RATE_MAX}")));
        }
        faults
    }

    fn client_faults(&self, path: &str, client: &ClientConfig, faults: &mut Vec<ConfigError>) {
        faults.extend(client.faults(path));
        for (position, name) in client.pools.iter().flatten().enumerate() {
            if !self.pools.iter().any(|pool| pool.id == *name) {
                let known: Vec<&str> = self.pools.iter().map(|pool| pool.id.as_str()).collect();
                let text = format!("there is no pool {name:?}; there is {}", known.join(", "));
                faults.push(ConfigError::new(format!("{path}.pools[{position}]"), text));
            }
        }
    }
}

impl ClientConfig {
    /// What is wrong with it whatever pools there are; `path` is where it stands. The file of keys is held against the
    /// same.
    pub(crate) fn faults(&self, path: &str) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        let at = |field: &str| format!("{path}.{field}");
        check_range(&at("weight"), self.weight.into(), 1, WEIGHT_MAX.into(), &mut faults);
        let limits = &self.limits;
        let rates = [
            ("requests", limits.requests_per_s, limits.requests_burst),
            ("tokens", limits.tokens_per_s, limits.tokens_burst),
        ];
        for (name, per_s, burst) in rates {
            if per_s.is_some_and(|rate| !(1e-6..=RATE_MAX).contains(&rate)) {
                let text = format!("it must be from 0.000001 to {RATE_MAX}");
                faults.push(ConfigError::new(at(&format!("limits.{name}_per_s")), text));
            }
            if burst.is_some() && per_s.is_none() {
                let text = format!("a burst needs a rate: set {name}_per_s too");
                faults.push(ConfigError::new(at(&format!("limits.{name}_burst")), text));
            }
            check_range(
                &at(&format!("limits.{name}_burst")),
                burst.unwrap_or(1).into(),
                1,
                u32::MAX.into(),
                &mut faults,
            );
        }
        check_range(&at("quotas.running"), self.quotas.running.unwrap_or(1).into(), 1, u32::MAX.into(), &mut faults);
        faults
    }
}

impl PoolConfig {
    /// What is wrong with this pool by itself; `path` is where it stands.
    pub(crate) fn faults(&self, path: &str) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        pool_faults(self, path, &mut faults);
        faults
    }
}

fn check_range(path: &str, value: u64, low: u64, high: u64, faults: &mut Vec<ConfigError>) {
    if !(low..=high).contains(&value) {
        faults.push(ConfigError::new(path, format!("it must be from {low} to {high}, not {value}")));
    }
}

fn pool_faults(pool: &PoolConfig, path: &str, faults: &mut Vec<ConfigError>) {
    let at = |field: &str| format!("{path}.{field}");
    if let Err(error) = PoolId::parse(&pool.id) {
        faults.push(ConfigError::new(at("id"), error.to_string()));
    }
    for (field, text) in [("engine", &pool.engine), ("model", &pool.model)] {
        if text.trim().is_empty() {
            faults.push(ConfigError::new(at(field), "it must not be empty"));
        }
    }
    if pool.replicas.is_empty() || pool.replicas.len() > usize::from(u16::MAX) {
        faults.push(ConfigError::new(at("replicas"), "at least one is needed, and at most 65535"));
    }
    masks::pool_faults(pool, path, faults);
    process::pool_faults(pool, path, faults);
    model_faults(pool, path, faults);
    file_faults(pool, path, faults);
    let ranges = [
        ("ctx", u64::from(pool.ctx.unwrap_or(CTX_DEFAULT)), 2, u64::from(u32::MAX) / 2),
        ("bytes_per_token", pool.bytes_per_token.into(), 1, 64),
        ("slots", pool.slots.into(), 1, SLOTS_MAX.into()),
        ("queue.capacity", pool.queue.capacity.into(), 0, QUEUE_CAPACITY_MAX.into()),
        ("queue.reserve_percent", pool.queue.reserve_percent.into(), 0, 50),
        ("queue.weights.interactive", pool.queue.weights.interactive.into(), 1, WEIGHT_MAX.into()),
        ("queue.weights.batch", pool.queue.weights.batch.into(), 1, WEIGHT_MAX.into()),
        ("cost.prompt", pool.cost.prompt.into(), 0, TOKEN_COST_MAX),
        ("cost.output", pool.cost.output.into(), 1, TOKEN_COST_MAX),
        ("timeouts.wall_ms", pool.timeouts.wall_ms, 1, DEADLINE_MS_MAX),
        ("timeouts.idle_ms", pool.timeouts.idle_ms, 1, DEADLINE_MS_MAX),
        ("timeouts.preload_ms", pool.timeouts.preload_ms, 1, DEADLINE_MS_MAX),
        ("timeouts.drain_ms", pool.timeouts.drain_ms, 0, DEADLINE_MS_MAX),
        ("timeouts.stop_ms", pool.timeouts.stop_ms, 1, DEADLINE_MS_MAX),
        ("timeouts.term_ms", pool.timeouts.term_ms, 0, 600_000),
        ("memory.kv_tokens", pool.memory.kv_tokens.unwrap_or(1), 1, u64::MAX),
        ("timeouts.run_guess_ms", pool.timeouts.run_guess_ms, 1, DEADLINE_MS_MAX),
        ("restart.intensity", pool.restart.intensity.into(), 1, 1000),
        ("restart.period_ms", pool.restart.period_ms, 1, DEADLINE_MS_MAX),
        ("restart.backoff_ms", pool.restart.backoff_ms, 0, DEADLINE_MS_MAX),
        ("restart.backoff_max_ms", pool.restart.backoff_max_ms, 0, DEADLINE_MS_MAX),
        ("restart.jitter_percent", pool.restart.jitter_percent.into(), 0, 100),
        ("resume.attempts_max", pool.resume.attempts_max.into(), 1, 1000),
        ("resume.ejection_ms", pool.resume.ejection_ms, 1, 3_600_000),
        ("resume.ejection_max_ms", pool.resume.ejection_max_ms, pool.resume.ejection_ms, 3_600_000),
        ("restart.breaker_open_ms", pool.restart.breaker_open_ms, 1, DEADLINE_MS_MAX),
    ];
    for (field, value, low, high) in ranges {
        check_range(&at(field), value, low, high, faults);
    }
}

/// What is wrong with the names that make up a model, or with its name as a part of the command.
fn model_faults(pool: &PoolConfig, path: &str, faults: &mut Vec<ConfigError>) {
    let mut fault = |field: &str, text: String| faults.push(ConfigError::new(format!("{path}.{field}"), text));
    let names =
        [("model", &pool.model), ("quant", &pool.quant), ("sampler_profile_version", &pool.sampler_profile_version)];
    for (field, name) in names {
        name_fault(name).into_iter().for_each(|text| fault(field, text));
    }
    for (position, name) in pool.aliases.iter().enumerate() {
        name_fault(name).into_iter().for_each(|text| fault(&format!("aliases[{position}]"), text));
    }
    let leads = pool.command.iter().flatten().any(|part| part.starts_with("{model}"));
    if leads && pool.model.starts_with('-') {
        let text = "it begins with '-', and the command has it where it would be taken for an option; write --OPTION={model} there, or \
                    give the model another name";
        fault("model", text.into());
    }
}

fn name_fault(name: &str) -> Option<String> {
    if name.chars().any(char::is_control) {
        return Some("it must not have control characters, such as the end of a line".into());
    }
    let (length, most, unit) = match name.starts_with('/') {
        true => (name.len(), PATH_BYTES_MAX, "bytes as a path"),
        false => (name.chars().count(), NAME_CHARS_MAX, "characters, unless it is an absolute path"),
    };
    (length > most).then(|| format!("it must have at most {most} {unit}, not {length}"))
}

fn file_faults(pool: &PoolConfig, path: &str, faults: &mut Vec<ConfigError>) {
    if pool.workloads.is_empty() {
        faults.push(ConfigError::new(format!("{path}.workloads"), "at least one of completion, embedding, rerank"));
    }
    if pool.api_key_env.as_ref().is_some_and(String::is_empty) {
        faults.push(ConfigError::new(format!("{path}.api_key_env"), "it must name an environment variable"));
    }
    for (index, file) in pool.model_files.iter().enumerate() {
        let is_digest = file.sha256.len() == 64 && file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_digest {
            let text = format!("{:?} is no SHA-256 digest, which has 64 hexadecimal digits", file.sha256);
            faults.push(ConfigError::new(format!("{path}.model_files[{index}].sha256"), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeviceRef, ReplicaConfig};

    fn paths(change: impl FnOnce(&mut PoolConfig)) -> Vec<String> {
        let mut pool = PoolConfig::new("p", "sim", "m");
        change(&mut pool);
        let config = Config { pools: vec![pool], ..Config::default() };
        config.faults().into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn the_smallest_pool_is_valid() {
        assert!(paths(|_| {}).is_empty());
    }

    #[test]
    fn each_fault_is_found_where_it_is() {
        assert_eq!(paths(|pool| pool.slots = 0), ["pools[0].slots"]);
        assert_eq!(paths(|pool| pool.id = "a b".into()), ["pools[0].id"]);
        assert_eq!(paths(|pool| pool.model = " ".into()), ["pools[0].model"]);
        assert_eq!(paths(|pool| pool.replicas.clear()), ["pools[0].replicas"]);
        assert_eq!(paths(|pool| pool.timeouts.idle_ms = 0), ["pools[0].timeouts.idle_ms"]);
        let outside = |pool: &mut PoolConfig| {
            pool.devices = Some(vec![DeviceRef::Index(0)]);
            pool.replicas = vec![ReplicaConfig { devices: vec![DeviceRef::Index(1)], ..ReplicaConfig::default() }];
        };
        assert_eq!(paths(outside), ["pools[0].replicas[0].devices"]);
    }

    #[test]
    fn a_model_is_named_in_one_line_and_never_taken_for_an_option() {
        for wrong in ["a\nb", "\u{1b}[31m", "a\0", &"x".repeat(257), &format!("/{}", "x".repeat(4095))] {
            assert_eq!(paths(|pool| pool.model = wrong.to_owned()), ["pools[0].model"], "{wrong:?}");
        }
        for right in ["\u{e9}".repeat(256), format!("/{}", "x".repeat(4094)), "-x".into(), "{slots}".into()] {
            assert!(paths(|pool| pool.model.clone_from(&right)).is_empty(), "{right:?}");
        }
        assert_eq!(paths(|pool| pool.quant = "q\r4".into()), ["pools[0].quant"]);
        assert_eq!(paths(|pool| pool.aliases = vec!["a".into(), "b\t".into()]), ["pools[0].aliases[1]"]);
        let command = |parts: &[&str], model: &str| {
            paths(|pool| {
                pool.model = model.to_owned();
                pool.command = Some(parts.iter().map(ToString::to_string).collect());
            })
        };
        assert_eq!(command(&["serve", "{model}"], "--trust-remote-code"), ["pools[0].model"]);
        assert_eq!(command(&["serve", "{model}.gguf"], "-m"), ["pools[0].model"]);
        assert!(command(&["serve", "--model={model}"], "-m").is_empty());
        assert!(command(&["serve", "{model}"], "m-1").is_empty());
    }

    #[test]
    fn each_fault_of_a_client_is_found_where_it_is() {
        let config = |change: fn(&mut ClientConfig)| {
            let mut client = ClientConfig::default();
            change(&mut client);
            let pools = vec![PoolConfig::new("p", "sim", "m")];
            let config = Config { pools, clients: [("a".to_owned(), client)].into(), ..Config::default() };
            config.faults().into_iter().map(|fault| fault.to_string()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(config(|_| {}), "");
        assert!(config(|client| client.weight = 0).starts_with("clients.a.weight: "));
        assert!(
            config(|client| client.pools = Some(vec!["q".into()]))
                .contains("clients.a.pools[0]: there is no pool \"q\"; there is p")
        );
        assert!(
            config(|client| client.limits.tokens_per_s = Some(f64::NAN)).starts_with("clients.a.limits.tokens_per_s: ")
        );
        assert!(config(|client| client.limits.requests_burst = Some(5)).contains("set requests_per_s too"));
        assert!(config(|client| client.quotas.running = Some(0)).starts_with("clients.a.quotas.running: "));
    }
}
