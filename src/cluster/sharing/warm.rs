//! Conversations find their caches over all nodes: each node tells the others which conversations its own replicas have
//! served, so that the next task of one goes where its cache is, whichever gateway it comes to. A hint, like all that
//! is known of conversations.
//!
//! Spec: ORCH-3009.

use std::collections::BTreeSet;

use crate::cluster::link::protocol::WarmSession;
use crate::cluster::shared::{ClusterShared, PeerShared};
use crate::cluster::sharing::announce::own_pools;
use crate::cluster::sharing::anti_affinity::rejects_peer;
use crate::core::cluster::node::NodeName;
use crate::core::id::{ClientId, PoolId, SessionId};
use crate::orchestrator::fabric::SessionLocation;

/// Most conversations of one report. Beyond them some are forgotten: they start cold.
const WARM_MAX: usize = 4_096;

/// What this node is to be told now.
pub(crate) fn news_for(shared: &ClusterShared, peer: &NodeName) -> Vec<WarmSession> {
    let mut due = shared.warm.0.lock();
    let linked = shared.peers.links();
    due.retain(|name, _| linked.iter().any(|link| link.peer == *name));
    let warmed = shared.orchestrator.take_session_locations();
    if !warmed.is_empty() {
        let own = own_pools(shared);
        for link in &linked {
            let hears = own.iter().filter(|pool| !rejects_peer(shared, pool, link)).map(|pool| &pool.id);
            let hears: BTreeSet<&PoolId> = hears.collect();
            let news = due.entry(link.peer.clone()).or_default();
            let warmed = warmed.iter().filter(|warmed| hears.contains(&warmed.pool));
            news.extend(warmed.take(WARM_MAX.saturating_sub(news.len())).cloned());
        }
    }
    let news = due.remove(peer).unwrap_or_default();
    news.into_iter().map(|SessionLocation { pool, client, session }| WarmSession { pool, client, session }).collect()
}

/// Notes where conversations are warm, for those pools of the node that this runtime uses.
///
/// # Errors
/// One line: a name in it is none.
pub(crate) fn take_in(shared: &ClusterShared, peer: &PeerShared, warm: Vec<WarmSession>) -> Result<(), String> {
    let remote_pools = peer.remote_pools.lock().clone();
    let mut hints = Vec::new();
    for WarmSession { pool, client, session } in warm {
        let client = ClientId::parse(client.as_str()).map_err(|error| format!("client: {error}"))?;
        let session = SessionId::parse(session.as_str()).map_err(|error| format!("session: {error}"))?;
        let replica = remote_pools.get(&pool).map(|remote| &remote.pool.replicas[0]);
        if let Some(identity) = replica.and_then(|replica| replica.loaded.identity.lock().clone()) {
            hints.push((client, session, identity));
        }
    }
    shared.orchestrator.note_sessions_elsewhere(hints);
    Ok(())
}
