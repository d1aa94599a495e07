//! Other nodes' pools as pools of this runtime: made when a node announces them, replaced when they become others, gone
//! when they go.
//!
//! A remote pool is a pool like any other: admission, order, placement, supervision and resume need not know. Its
//! engine is the link.

use std::sync::Arc;

use crate::cluster::link::protocol::PoolAdvertisement;
use crate::cluster::shared::{ClusterShared, PeerShared, RemotePoolEntry};
use crate::cluster::sharing::anti_affinity::is_rejected;
use crate::cluster::sharing::remote_engine::RemoteEngine;
use crate::config::{PoolConfig, RestartConfig, SLOTS_MAX, TimeoutConfig};
use crate::core::cluster::node::NodeName;
use crate::core::id::PoolId;
use crate::gpu::dyn_engine::{DynEngine, EngineFactory};
use crate::gpu::engine::EngineContext;

/// What a pool of another node is called here.
pub(crate) fn remote_pool_id(pool: &PoolId, node: &NodeName) -> String {
    format!("{pool}:{node}")
}

/// Makes this runtime's pools follow what a node has announced.
pub(crate) fn follow(shared: &Arc<ClusterShared>, name: &NodeName) {
    let Some(peer) = shared.peers.get(name) else { return };
    let Some(link) = peer.link() else { return };
    let mut cards = (*link.advertised.cards.lock().clone()).clone();
    cards.retain(|_, card| !is_rejected(shared, card, &link));
    let known = peer.remote_pools.lock().clone();
    for (id, remote) in &known {
        if cards.get(id).is_none_or(|card| !is_same_pool(card, &remote.card)) {
            peer.remote_pools.lock().remove(id);
            shared.orchestrator.remove_remote(&remote.pool);
        }
    }
    for (id, card) in &cards {
        let is_there = peer.remote_pools.lock().contains_key(id);
        // A pool that has never been Ready may turn out to be anything.
        if is_there || card.identity.is_none() {
            continue;
        }
        match shared.orchestrator.add_remote((name, id), config(card, name), factory(&peer, id)) {
            Ok(pool) => drop(peer.remote_pools.lock().insert(id.clone(), RemotePoolEntry { card: card.clone(), pool })),
            Err(error) => tracing::warn!(pool = %id, peer = %name, %error, "a node's pool cannot be used here"),
        }
    }
    peer.apply_limits();
}

/// Whether what is announced is the same pool as before, whatever its engines do just now.
fn is_same_pool(card: &PoolAdvertisement, before: &PoolAdvertisement) -> bool {
    let still =
        |card: &PoolAdvertisement| PoolAdvertisement { identity: None, determinism_class: None, ..card.clone() };
    still(card) == still(before)
}

fn factory(peer: &Arc<PeerShared>, pool: &PoolId) -> EngineFactory {
    let (peer, pool) = (peer.clone(), pool.clone());
    Arc::new(move |_: &EngineContext| {
        let engine: Arc<dyn DynEngine> = Arc::new(RemoteEngine::new(peer.clone(), pool.clone()));
        engine
    })
}

/// A pool of one replica that has all the places of the node's pool. It waits for its node as long as it takes, and is
/// tried again at once.
fn config(card: &PoolAdvertisement, node: &NodeName) -> PoolConfig {
    let base = PoolConfig::new(remote_pool_id(&card.pool, node), card.engine.clone(), card.spec.model.clone());
    PoolConfig {
        aliases: card.aliases.clone(),
        workloads: card.workloads.clone(),
        bytes_per_token: card.bytes_per_token,
        // One waits there beside those that run.
        slots: card.slots.saturating_add(1).min(SLOTS_MAX),
        self_test: false,
        determinism_class: card.determinism_class,
        timeouts: TimeoutConfig { preload_ms: 2_000, stop_ms: 1_000, ..TimeoutConfig::default() },
        restart: RestartConfig {
            intensity: 20,
            period_ms: 60_000,
            backoff_ms: 20,
            backoff_max_ms: 500,
            jitter_percent: 20,
            breaker_open_ms: 1_000,
        },
        ..base
    }
    .with_model(&card.spec)
}
