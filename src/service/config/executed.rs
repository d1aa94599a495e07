//! What of a configuration makes the service run or load something, or hand out what it alone knows: commands of
//! engines with their users and environments, libraries, files that it reads, and keys in its environment.
//!
//! Where requests need keys, an operator's key stands for that. Without keys anybody who reaches the port may send a
//! configuration, so these come from the file of `--config` alone, and a request may only name what is in force
//! already.

use crate::config::{Config, PoolConfig};
use crate::core::pool::model::ModelChange;

/// Most faults that are named one by one.
const FAULTS_MAX: usize = 8;

/// What of `wanted` is run, loaded or handed out, and is not in force as it is there, a line each.
pub(crate) fn faults(in_force: &Config, wanted: &Config) -> Vec<String> {
    let changed = wanted.pools.iter().filter(|pool| !in_force.pools.contains(pool));
    let path = |pool: &PoolConfig| Some(format!("pools.{} ({})", pool.id, what_of(pool)?));
    let mut paths: Vec<String> = changed.filter_map(path).collect();
    if in_force.gpu.library != wanted.gpu.library {
        paths.push("gpu.library".to_owned());
    }
    // Who is a node is the operators' word: a node that was put out must not come back by anybody's.
    let nodes = |config: &Config| config.cluster.as_ref().map(|node| (node.allow.clone(), node.deny.clone()));
    if nodes(in_force) != nodes(wanted) {
        paths.push("cluster (allow, deny)".to_owned());
    }
    let more = paths.len().saturating_sub(FAULTS_MAX);
    let line = |path: String| {
        format!("{path}: without access.keys_file it is taken from the configuration file alone; put it into the file")
    };
    let mut lines: Vec<String> = paths.into_iter().take(FAULTS_MAX).map(line).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// What of a pool is run, loaded or handed out; the first of it.
fn what_of(pool: &PoolConfig) -> Option<&'static str> {
    let parts = [
        ("command", pool.command.is_some()),
        ("api_key_env", pool.api_key_env.is_some()),
        ("process", pool.process.decides()),
        ("model_files", !pool.model_files.is_empty()),
    ];
    parts.into_iter().find_map(|(name, is_there)| is_there.then_some(name))
}

/// What is wrong with another model for a pool whose engines are started by a command, into which the model's name is
/// filled.
pub(crate) fn model_fault(pool: &PoolConfig, change: &ModelChange) -> Option<String> {
    let model = change.model.as_ref().filter(|model| pool.command.is_some() && **model != pool.model)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@+-".contains(&byte);
    if model.bytes().all(is_plain) && !model.starts_with('-') && !model.contains("..") {
        return None;
    }
    Some(
        "field 'model': it becomes a part of the pool's command, so without access.keys_file it may have letters, \
         digits and . _ / : @ + - alone, must not begin with '-', and must not contain '..'"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(id: &str, command: Option<&[&str]>) -> PoolConfig {
        let command = command.map(|parts| parts.iter().map(|part| (*part).to_owned()).collect());
        PoolConfig { command, ..PoolConfig::new(id, "llamacpp", "m") }
    }

    fn config(pools: Vec<PoolConfig>) -> Config {
        Config { pools, ..Config::default() }
    }

    #[test]
    fn what_is_run_or_loaded_is_in_force_as_it_is_or_not_taken() {
        let server: Option<&[&str]> = Some(&["llama-server", "--port", "{port}"]);
        let in_force = config(vec![pool("a", server), pool("b", None)]);
        let found = |pools: Vec<PoolConfig>| faults(&in_force, &config(pools)).join("; ");
        assert_eq!(found(vec![pool("b", None), pool("a", server)]), "");
        assert_eq!(found(vec![pool("c", None)]), "");
        assert!(found(vec![pool("c", server)]).starts_with("pools.c (command): without access.keys_file"));
        assert!(found(vec![pool("a", Some(&["sh"]))]).starts_with("pools.a (command): "));
        assert!(found(vec![PoolConfig { slots: 9, ..pool("a", server) }]).starts_with("pools.a (command): "));
        let key = PoolConfig { api_key_env: Some("HOME".into()), ..pool("b", None) };
        assert!(found(vec![key]).starts_with("pools.b (api_key_env): "));
        let file = crate::config::ModelFile { path: "/etc/shadow".into(), sha256: "00".into() };
        let files = PoolConfig { model_files: vec![file], ..pool("b", None) };
        assert!(found(vec![files]).starts_with("pools.b (model_files): "));
        let mut given = pool("b", None);
        given.process.env_inherit = vec!["HOME".into()];
        assert!(found(vec![given]).starts_with("pools.b (process): "));
        let mut given = pool("b", None);
        given.process.env = [("LD_PRELOAD".to_owned(), "/tmp/library.so".to_owned())].into();
        assert!(found(vec![given]).starts_with("pools.b (process): "));
        let mut given = pool("a", server);
        given.process.user = Some("nobody".into());
        assert!(found(vec![given]).starts_with("pools.a (command): "));
        let mut library = in_force.clone();
        library.gpu.library = Some("/tmp/library.so".into());
        assert!(faults(&in_force, &library).join("; ").starts_with("gpu.library: "));
        let many = (0..100).map(|number| pool(&format!("p{number}"), server)).collect();
        assert_eq!(faults(&in_force, &config(many)).last().map(String::as_str), Some("and 92 more"));
    }

    #[test]
    fn a_model_that_is_filled_into_a_command_is_a_plain_word() {
        let fault = |pool: &PoolConfig, model: &str| {
            model_fault(pool, &ModelChange { model: Some(model.to_owned()), ..ModelChange::default() }).is_some()
        };
        let (run, reached) = (pool("a", Some(&["serve", "{model}"])), pool("b", None));
        for model in ["m", "org/name-7b_v1.5:q4@main+x", "/models/a.gguf", ""] {
            assert!(!fault(&run, model), "{model:?}");
        }
        for model in ["--trust-remote-code", "-c", "a b", "a;b", "$(x)", "../x", "a/..", "{slots}", "\u{fc}", "a\nb"] {
            assert!(fault(&run, model) && !fault(&reached, model), "{model:?}");
        }
        assert_eq!(model_fault(&run, &ModelChange::default()), None);
        let odd = PoolConfig { model: "my model".into(), ..run };
        assert!(!fault(&odd, "my model"), "it is in force");
    }
}
