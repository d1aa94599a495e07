//! A client's limits over all nodes: each second the nodes tell each other what it asked of them, and each takes its
//! part.
//!
//! What is divided, and why no two nodes have one part, is in [`core::dividing`](crate::core::admission::partition).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::cluster::link::links::Demand;
use crate::cluster::link::protocol::{Asked, LinkMessage};
use crate::cluster::shared::ClusterShared;
use crate::core::admission::partition::{Share, even};
use crate::core::cluster::node::NodeName;
use crate::core::id::ClientId;
use crate::orchestrator::fabric::ClientShared;

/// How often limits are divided.
pub(crate) const DIVIDE_PERIOD: Duration = Duration::from_secs(1);
/// Looks that a report and the word that it was heard may take.
const HEARD_LOOKS: u64 = 2;
/// Most clients of one report.
const CLIENTS_MAX: usize = 8_192;

/// One client's part of its rates, and of its quotas.
#[derive(Default)]
struct Shares {
    rates: Share,
    quotas: Share,
}

/// What is known from look to look. The members actor has it.
#[derive(Default)]
pub(crate) struct QuotaPartition {
    shares: BTreeMap<ClientId, Shares>,
    linked: Vec<NodeName>,
    /// Looks so far.
    number: u64,
    /// Looks since somebody came or went.
    calm: u32,
}

impl QuotaPartition {
    /// A second has passed.
    pub(crate) fn look(&mut self, shared: &ClusterShared) {
        let peers = shared.peers.all();
        let known = peers.len() + 1;
        let clients = shared.orchestrator.client_limits();
        clients.even.store(even(known), Relaxed);
        let links = shared.peers.links();
        let linked: Vec<NodeName> = links.iter().map(|link| link.peer.clone()).collect();
        self.number += 1;
        let theirs: Vec<Demand> = links.iter().map(|link| link.demand.lock().clone()).collect();
        // Whoever has not heard what was asked here lately still has the share that it had.
        let has_heard = |their: &Demand| their.heard.saturating_add(HEARD_LOOKS) >= self.number;
        let is_calm = linked == self.linked && theirs.iter().all(has_heard);
        self.calm = if is_calm { self.calm.saturating_add(1) } else { 0 };
        self.linked = linked;
        let limited = clients.limited();
        let ask = |(id, client): (&ClientId, &Arc<ClientShared>)| Asked {
            client: id.clone(),
            tasks: client.demand.swap(0, Relaxed),
            held: client.held(),
        };
        let own: Vec<Asked> = limited.iter().map(ask).collect();
        let is_of_use = |asked: &&Asked| wants(asked) > 0;
        let asked: Vec<Asked> = own.iter().filter(is_of_use).take(CLIENTS_MAX).cloned().collect();
        for (link, their) in links.iter().zip(&theirs) {
            link.say(LinkMessage::Demand { number: self.number, heard: their.number, asked: asked.clone() });
        }
        self.shares.retain(|id, _| limited.contains_key(id));
        for ((id, client), own) in limited.iter().zip(&own) {
            let others = || theirs.iter().map(|demand| demand.asked.get(id));
            let each = |of: fn(&Asked) -> u32| others().map(|asked| asked.map_or(0, of)).collect::<Vec<u32>>();
            let shares = self.shares.entry(id.clone()).or_default();
            let rate = shares.rates.look(own.tasks, &each(|asked| asked.tasks), known, self.calm);
            client.share.store(rate.max(1), Relaxed);
            let quota = shares.quotas.look(wants(own), &each(wants), known, self.calm);
            client.set_quotas(id, quota.max(1), others().flatten().map(|asked| asked.held).sum());
        }
    }
}

/// What a client could make use of at a node: what it has there, and what it asks for.
fn wants(asked: &Asked) -> u32 {
    asked.held.running.saturating_add(asked.held.queued).saturating_add(asked.tasks)
}
