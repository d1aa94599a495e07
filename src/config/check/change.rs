//! What it takes to go from one configuration to another while the runtime serves (ORCH-3031). Decides nothing about
//! when.

use serde::Serialize;

use crate::config::{ClusterConfig, Config, ConfigError, PoolConfig};

/// What becomes of the pools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigChange {
    /// New ones.
    pub added: Vec<String>,
    /// Those that finish what they have and go.
    pub removed: Vec<String>,
    /// Those that get a successor of the same name: what waits goes over to it, what runs is finished.
    pub replaced: Vec<String>,
    /// Those that get another model replica by replica, while they serve.
    pub reloaded: Vec<String>,
    /// Those that stay as they are.
    pub kept: Vec<String>,
    /// Something beside the pools has changed.
    pub settings: bool,
}

impl ConfigChange {
    /// Whether nothing changes at all.
    pub fn is_empty(&self) -> bool {
        let pools = [&self.added, &self.removed, &self.replaced, &self.reloaded];
        pools.iter().all(|list| list.is_empty()) && !self.settings
    }
}

/// What to do with a pool that both configurations have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolStep {
    Keep,
    Reload,
    Replace,
}

/// How a pool gets from one configuration to another: as it is, by a rolling reload of its model, or by a successor.
pub(crate) fn step(old: &PoolConfig, new: &PoolConfig) -> PoolStep {
    if old == new {
        return PoolStep::Keep;
    }
    let spec = new.model_spec();
    // A context cannot be taken back to what the engine says: a reload only names another.
    let only_the_model = old.with_model(&spec) == *new && (spec.ctx.is_some() || old.ctx.is_none());
    if only_the_model && old.cannot_serve(&spec, &old.model_spec()).is_none() {
        PoolStep::Reload
    } else {
        PoolStep::Replace
    }
}

/// What of a node takes effect at the start only: all but who may link with it.
fn fixed_of_cluster(config: &Config) -> Option<ClusterConfig> {
    config.cluster.as_ref().map(ClusterConfig::fixed)
}

/// Compares two configurations without faults.
///
/// # Errors
/// Each setting that takes effect at the start only and differs.
pub fn compare(old: &Config, new: &Config) -> Result<ConfigChange, Vec<ConfigError>> {
    let fixed = [
        ("http.listen", old.http.listen != new.http.listen),
        ("http.admin_listen", old.http.admin_listen != new.http.admin_listen),
        ("http.tls", old.http.tls != new.http.tls),
        ("http.head_ms", old.http.head_ms != new.http.head_ms),
        ("http.bodies_bytes_max", old.http.bodies_bytes_max != new.http.bodies_bytes_max),
        ("http.requests_per_s", old.http.requests_per_s.to_bits() != new.http.requests_per_s.to_bits()),
        ("http.connections_max", old.http.connections_max != new.http.connections_max),
        ("cluster", fixed_of_cluster(old) != fixed_of_cluster(new)),
        ("access", old.access != new.access),
        ("retention", old.retention != new.retention),
        ("gpu", old.gpu != new.gpu),
    ];
    let faults: Vec<ConfigError> = fixed
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(path, _)| ConfigError::new(path, "it takes effect at the start only; restart the service to change it"))
        .collect();
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut change = ConfigChange::default();
    for pool in &new.pools {
        let list = match old.pools.iter().find(|known| known.id == pool.id).map(|known| step(known, pool)) {
            None => &mut change.added,
            Some(PoolStep::Keep) => &mut change.kept,
            Some(PoolStep::Reload) => &mut change.reloaded,
            Some(PoolStep::Replace) => &mut change.replaced,
        };
        list.push(pool.id.clone());
    }
    let is_gone = |pool: &&PoolConfig| !new.pools.iter().any(|kept| kept.id == pool.id);
    change.removed = old.pools.iter().filter(is_gone).map(|pool| pool.id.clone()).collect();
    let beside = |config: &Config| Config { pools: Vec::new(), ..config.clone() };
    let order = |config: &Config| {
        let both = config.pools.iter().filter(|pool| change.kept.contains(&pool.id));
        both.map(|pool| pool.id.clone()).collect::<Vec<_>>()
    };
    change.settings = beside(old) != beside(new) || order(old) != order(new);
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pools: &[(&str, &str, u32)]) -> Config {
        let pool = |(id, model, slots): &(&str, &str, u32)| PoolConfig {
            slots: *slots,
            ..PoolConfig::new(*id, "sim", *model)
        };
        Config { pools: pools.iter().map(pool).collect(), ..Config::default() }
    }

    #[test]
    fn each_pool_has_its_step() {
        let old = config(&[("a", "m", 1), ("b", "m", 1), ("c", "m", 1), ("d", "m", 1)]);
        let new = config(&[("e", "m", 1), ("a", "m", 1), ("b", "n", 1), ("c", "m", 2)]);
        let change = compare(&old, &new).expect("nothing is fixed");
        let lists = [&change.added, &change.removed, &change.replaced, &change.reloaded, &change.kept];
        assert_eq!(lists.map(|list| list.join(",")), ["e", "d", "c", "b", "a"]);
        assert!(!change.settings && !change.is_empty());
        assert!(compare(&old, &old).expect("the same").is_empty());
    }

    #[test]
    fn what_takes_effect_at_the_start_only_is_named() {
        let old = config(&[("a", "m", 1)]);
        let mut new = old.clone();
        new.http.listen = "127.0.0.1:1".into();
        new.gpu.poll_ms = 77;
        let faults = compare(&old, &new).expect_err("two of them");
        assert_eq!(faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), ["http.listen", "gpu"]);
    }

    #[test]
    fn of_a_node_only_who_may_link_with_it_changes_while_it_runs() {
        let mut old = config(&[("a", "m", 1)]);
        old.cluster = Some(ClusterConfig::example("one"));
        let changed = |change: fn(&mut ClusterConfig)| {
            let mut new = old.clone();
            if let Some(cluster) = &mut new.cluster {
                change(cluster);
            }
            compare(&old, &new)
        };
        let listed = changed(|cluster| cluster.deny = vec!["two".into()]).expect("it takes effect at once");
        assert!(listed.settings && listed.kept == ["a"]);
        assert!(changed(|cluster| cluster.allow = vec!["*".into()]).expect("so does this").settings);
        let faults = changed(|cluster| cluster.crl_file = Some("crl.pem".into())).expect_err("this does not");
        assert_eq!(faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), ["cluster"]);
        let mut alone = old.clone();
        alone.cluster = None;
        assert!(compare(&old, &alone).is_err());
    }

    #[test]
    fn a_setting_or_another_order_is_a_change_too() {
        let old = config(&[("a", "m", 1), ("b", "m", 1)]);
        let mut settings = old.clone();
        settings.prompt_bytes_max = 5;
        for new in [settings, config(&[("b", "m", 1), ("a", "m", 1)])] {
            assert!(compare(&old, &new).expect("nothing is fixed").settings);
        }
    }
}
