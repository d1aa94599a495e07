//! One fairness over many gateways: what a pool has served is told to the other nodes, so that each gateway's order
//! knows what its clients got through the others, and each owner's what they got at other owners.
//!
//! A unit of service counts once in each queue: where it was charged, or by the report of the node whose engine served
//! it. A report leaves out what the receiver itself has sent, since that was charged there. It is sent with every look
//! of a link, some 50 ms.

use crate::cluster::link::protocol::ServedBy;
use crate::cluster::shared::{ClusterShared, PeerShared};
use crate::cluster::sharing::announce::own_pools;
use crate::cluster::sharing::anti_affinity::rejects_peer;
use crate::core::cluster::node::NodeName;

/// Most clients of one report. Beyond them the others' service is forgotten: they are favoured for a moment.
const CLIENTS_MAX: usize = 8_192;

/// What this node is to be told now.
pub(crate) fn news_for(shared: &ClusterShared, peer: &NodeName) -> Vec<ServedBy> {
    let linked = shared.peers.links();
    let mut news = shared.served.0.lock();
    news.due.retain(|name, _| linked.iter().any(|link| link.peer == *name));
    for pool in own_pools(shared) {
        let hear: Vec<_> = linked.iter().filter(|link| !rejects_peer(shared, &pool, link)).collect();
        let journal = pool.waiting.accounts.lock().take_journal();
        for entry in journal {
            let gateway = news.gateways.get(&entry.seq).cloned();
            for name in hear.iter().map(|link| &link.peer).filter(|name| gateway.as_ref() != Some(*name)) {
                let due = news.due.entry(name.clone()).or_default();
                let key = (pool.id.clone(), entry.client.clone(), entry.class);
                if due.len() < CLIENTS_MAX || due.contains_key(&key) {
                    *due.entry(key).or_default() += entry.cost;
                }
            }
        }
    }
    let due = news.due.remove(peer).unwrap_or_default();
    let served = due.into_iter().filter(|(_, cost)| *cost != 0);
    served.map(|((pool, client, class), cost)| ServedBy { pool, client, class, cost }).collect()
}

/// Counts what a node has served in every queue here whose tasks may run there.
pub(crate) fn take_in(peer: &PeerShared, served: &[ServedBy]) {
    let remote_pools = peer.remote_pools.lock().clone();
    for (id, remote) in remote_pools {
        let of_pool = served.iter().filter(|entry| entry.pool == id);
        let list: Vec<_> = of_pool.map(|entry| (entry.client.clone(), entry.class, entry.cost)).collect();
        if list.is_empty() {
            continue;
        }
        let list: std::sync::Arc<[_]> = list.into();
        for pool in remote.pool.peers().chain([remote.pool.clone()]) {
            pool.note_served_elsewhere(list.clone());
        }
    }
}
