//! A client's limits over all nodes: each second the nodes tell each other what it asked of them, and each takes its part.
//!
//! What is divided, and why no two nodes have one part, is in [`core::dividing`](crate::core::dividing).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::cluster::links::Demand;
use crate::cluster::shared::ClusterShared;
use crate::cluster::words::Word;
use crate::core::dividing::{Share, even};
use crate::core::id::ClientId;
use crate::core::node::NodeName;

/// How often limits are divided.
pub(crate) const DIVIDE_PERIOD: Duration = Duration::from_secs(1);
/// Looks that a report and the word that it was heard may take.
const HEARD_LOOKS: u64 = 2;
/// Most clients of one report.
const CLIENTS_MAX: usize = 8_192;

/// What is known from look to look. The members actor has it.
#[derive(Default)]
pub(crate) struct Dividing {
    shares: BTreeMap<ClientId, Share>,
    linked: Vec<NodeName>,
    /// Looks so far.
    number: u64,
    /// Looks since somebody came or went.
    calm: u32,
}

impl Dividing {
    /// A second has passed.
    pub(crate) fn look(&mut self, shared: &ClusterShared) {
        let peers = shared.peers.all();
        let known = peers.len() + 1;
        let clients = &shared.orchestrator.shared().clients;
        clients.even.store(even(known), Relaxed);
        let links: Vec<_> = peers.iter().filter_map(|peer| peer.link()).collect();
        let linked: Vec<NodeName> = links.iter().map(|link| link.peer.clone()).collect();
        self.number += 1;
        let theirs: Vec<Demand> = links.iter().map(|link| link.demand.lock().clone()).collect();
        // Whoever has not heard what was asked here lately still has the share that it had.
        let has_heard = |their: &Demand| their.heard.saturating_add(HEARD_LOOKS) >= self.number;
        let is_calm = linked == self.linked && theirs.iter().all(has_heard);
        self.calm = if is_calm { self.calm.saturating_add(1) } else { 0 };
        self.linked = linked;
        let limited = clients.limited();
        let own: BTreeMap<&ClientId, u32> =
            limited.iter().map(|(id, client)| (id, client.demand.swap(0, Relaxed))).collect();
        let asked = own.iter().filter(|(_, demand)| **demand > 0).take(CLIENTS_MAX);
        let asked: Vec<(ClientId, u32)> = asked.map(|(id, demand)| ((*id).clone(), *demand)).collect();
        for (link, their) in links.iter().zip(&theirs) {
            link.say(Word::Demand { number: self.number, heard: their.number, asked: asked.clone() });
        }
        self.shares.retain(|id, _| limited.contains_key(id));
        for (id, client) in &limited {
            let others: Vec<u32> = theirs.iter().map(|demand| demand.asked.get(id).copied().unwrap_or(0)).collect();
            let share = self.shares.entry(id.clone()).or_default();
            let share = share.look(own.get(id).copied().unwrap_or(0), &others, known, self.calm);
            client.share.store(share.max(1), Relaxed);
        }
    }
}
