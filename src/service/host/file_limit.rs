//! How many files the process may have open, and how many of them connections may take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::service::http::listener::connections::kept;

/// Files of the service itself: its log, listeners, timers, what it reads at times.
const OWN_FILES: u64 = 64;
/// Files of an engine beside a connection for each of its slots: pipes and handles of its process, probes.
const ENGINE_FILES: u64 = 8;
/// Files of a link with another node.
const PEER_FILES: u64 = 4;

/// Raises the limit as far as the system lets us: ten thousand streams need as many files, and it is often 1,024.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }); // It goes on with what it has.
    }
}

/// Most connections of each listener: `http.connections_max`, or less where fewer files may be open, which is said.
pub(crate) fn connections_max(config: &Config, listeners: u64) -> u32 {
    let (wanted, files) = (config.http.connections_max, getrlimit(Resource::Nofile).current);
    // A listener keeps some more for those who come when all are taken.
    let kept = u64::try_from(kept(wanted as usize)).unwrap_or(u64::MAX).saturating_mul(listeners);
    let bound = share(wanted, files, reserve(config).saturating_add(kept), listeners);
    if bound < wanted {
        tracing::warn!(
            files,
            connections_max = wanted,
            effective = bound,
            "fewer connections are taken than configured: too few files may be open (LimitNOFILE=, ulimit -n)"
        );
    }
    bound
}

/// Files that are kept from connections: those of the service, its engines and its links.
fn reserve(config: &Config) -> u64 {
    let of_pool = |pool: &crate::config::PoolConfig| {
        (u64::from(pool.slots) + ENGINE_FILES).saturating_mul(pool.replicas.len() as u64)
    };
    let engines = config.pools.iter().map(of_pool).fold(0, u64::saturating_add);
    let peers = config.cluster.as_ref().map_or(0, |cluster| cluster.peers.len() as u64);
    OWN_FILES.saturating_add(engines).saturating_add(peers * PEER_FILES)
}

/// Most connections of one of so many listeners. Connections get at least half of the files, and at least one; `None`
/// is no limit.
fn share(wanted: u32, files: Option<u64>, reserve: u64, listeners: u64) -> u32 {
    let Some(files) = files else { return wanted };
    let left = files - reserve.min(files / 2);
    u32::try_from(left / listeners.max(1)).unwrap_or(u32::MAX).clamp(1, wanted.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_engines_and_files_leave_and_half_at_least() {
        assert_eq!(share(16_384, None, 100, 1), 16_384);
        assert_eq!(share(16_384, Some(1_048_576), 100, 1), 16_384);
        assert_eq!(share(16_384, Some(1_024), 100, 1), 924);
        assert_eq!(share(16_384, Some(1_024), 100, 2), 462);
        assert_eq!(share(16_384, Some(64), 100, 1), 32);
        assert_eq!(share(10, Some(64), 100, 1), 10);
        assert_eq!((share(16_384, Some(1), 100, 2), share(16_384, Some(0), 0, 0)), (1, 1));
    }

    #[test]
    fn each_slot_and_each_engine_is_reserved_for() {
        let mut config = Config::default();
        assert_eq!(reserve(&config), OWN_FILES);
        let mut pool = crate::config::PoolConfig::new("a", "sim", "m");
        (pool.slots, pool.replicas) = (4, vec![Default::default(); 3]);
        config.pools.push(pool);
        assert_eq!(reserve(&config), OWN_FILES + 3 * (4 + ENGINE_FILES));
    }
}
