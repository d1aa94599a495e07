//! Anti-affinity over nodes: which pools have nothing to do with which nodes, by their names and their zones.
//!
//! It holds on both sides. A pool that keeps away from a node is not announced to it and takes no attempt of it; and of
//! that node no pool is used here that serves a model of such a pool, so that none of its tasks can get there. A node
//! whose zone is not known yet might be in any.
//!
//! Spec: ORCH-3008.

use std::sync::Arc;

use crate::cluster::link::links::LinkShared;
use crate::cluster::link::protocol::PoolAdvertisement;
use crate::cluster::shared::ClusterShared;
use crate::core::id::PoolId;
use crate::orchestrator::fabric::PoolShared;

/// Whether this pool of our own has nothing to do with the peer.
pub(crate) fn rejects_peer(shared: &ClusterShared, pool: &PoolShared, link: &LinkShared) -> bool {
    let law = &pool.config.anti_affinity;
    names(&law.node, &law.zone, link) || is_excluded(shared, link)
}

/// Whether this node has nothing to do with the peer at all.
fn is_excluded(shared: &ClusterShared, link: &LinkShared) -> bool {
    names(&shared.apart.node, &shared.apart.zone, link)
}

fn names(nodes: &[String], zones: &[String], link: &LinkShared) -> bool {
    let is_in_zone = || match &*link.advertised.zone.lock() {
        None => !zones.is_empty(),
        Some(zone) => zone.as_ref().is_some_and(|zone| zones.contains(zone)),
    };
    nodes.iter().any(|node| node == link.peer.as_str()) || is_in_zone()
}

/// Every pool of our own: one that is leaving the configuration keeps its law as long as it has tasks.
fn own_pools(shared: &ClusterShared) -> Vec<Arc<PoolShared>> {
    shared.orchestrator.pool_table().every().filter(|pool| !pool.is_remote()).cloned().collect()
}

/// Whether a pool of the peer must not be used here.
pub(crate) fn is_rejected(shared: &ClusterShared, card: &PoolAdvertisement, link: &LinkShared) -> bool {
    let serves_the_same = |pool: &Arc<PoolShared>| {
        let spec = &pool.revision().spec;
        let theirs = || card.aliases.iter().chain([&card.spec.model]);
        theirs().any(|name| *name == spec.model || pool.config.aliases.contains(name))
    };
    is_excluded(shared, link)
        || own_pools(shared).iter().any(|pool| serves_the_same(pool) && rejects_peer(shared, pool, link))
}

/// Whether a pool of our own that the peer asks for keeps away from it. One that there is not is not judged here.
pub(crate) fn is_closed_to(shared: &ClusterShared, pool: &PoolId, link: &LinkShared) -> bool {
    own_pools(shared).iter().any(|own| own.id == *pool && rejects_peer(shared, own, link))
}

/// The peer's pools that are kept out, for people.
pub(crate) fn kept_out(shared: &ClusterShared, link: &LinkShared) -> Vec<PoolId> {
    let cards = link.advertised.cards.lock().clone();
    cards.values().filter(|card| is_rejected(shared, card, link)).map(|card| card.pool.clone()).collect()
}
