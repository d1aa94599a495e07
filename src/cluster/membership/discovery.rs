//! Nodes that are found by a name: each address behind it is dialled, and who is there its certificate says.
//!
//! Of two nodes that find each other one dials; what was found is dialled again by its name, like a node of the
//! configuration, until the name stands for it no more. A node that is not in the configuration is forgotten some
//! minutes behind its last link.
//!
//! Spec: ORCH-3044.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ractor::ActorProcessingErr;
use tokio::time::timeout;

use crate::cluster::membership::members::{MembersState, on_came};
use crate::cluster::membership::messages::MembersMsg;
use crate::cluster::shared::PEERS_MAX;
use crate::cluster::transport::network::Found;
use crate::core::cluster::node::NodeName;

/// What is known of the addresses behind the name.
#[derive(Default)]
pub(in crate::cluster) struct Discovery {
    /// Who is where; this node itself too.
    found: BTreeMap<String, NodeName>,
    /// Addresses that are being dialled.
    asked: BTreeSet<String>,
    /// Why nobody was found, by address, and of the name itself under its own: each reason is logged once in a row.
    troubles: BTreeMap<String, String>,
}

impl Discovery {
    fn note_trouble(&mut self, at: String, why: String) {
        if self.troubles.get(&at) != Some(&why) {
            tracing::warn!(address = %at, %why, "no node was found");
            self.troubles.insert(at, why);
        }
    }
}

/// Asks for the addresses.
pub(in crate::cluster) fn on_search(state: &mut MembersState) {
    let Some(name) = state.shared.dns.clone() else { return };
    let (network, myself, limit) = (state.shared.network.clone(), state.myself.clone(), state.shared.policy.search);
    state.spawn(async move {
        let listed = timeout(limit, network.resolve(&name)).await;
        let listed = listed.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        let _ = myself.cast(MembersMsg::Listed(listed)); // Gone, and this task with it.
    });
}

/// Looks at every address behind which there is no link.
pub(in crate::cluster) fn on_listed(state: &mut MembersState, listed: Result<Vec<String>, String>) {
    state.myself.send_after(state.shared.policy.search, || MembersMsg::Search);
    let name = state.shared.dns.clone().unwrap_or_default();
    let mut addresses = match listed {
        Ok(addresses) => addresses,
        Err(why) => return state.discovery.note_trouble(name, why), // What was found stays.
    };
    addresses.sort();
    addresses.dedup();
    addresses.truncate(PEERS_MAX);
    let discovery = &mut state.discovery;
    discovery.found.retain(|address, _| addresses.contains(address));
    discovery.troubles.retain(|address, _| addresses.contains(address));
    for peer in state.shared.peers.all().iter().filter(|peer| !peer.is_configured) {
        let mut address = peer.address.lock();
        *address = address.take().filter(|address| addresses.contains(address));
    }
    for address in addresses {
        let known = state.discovery.found.get(&address);
        if known.is_some_and(|name| *name == state.shared.place.name || state.is_linked(name)) {
            continue;
        }
        if state.discovery.asked.insert(address.clone()) {
            let (network, myself) = (state.shared.network.clone(), state.myself.clone());
            state.spawn(async move {
                let found = network.find(&address).await;
                let _ = myself.cast(MembersMsg::FoundAt { address, found }); // Gone, and this task with it.
            });
        }
    }
}

/// Takes up who was found.
pub(in crate::cluster) async fn on_found(
    state: &mut MembersState,
    address: String,
    found: Found,
) -> Result<(), ActorProcessingErr> {
    state.discovery.asked.remove(&address);
    match found {
        Found::Node(caller) => {
            note(state, address, &caller.peer.hello.name);
            on_came(state, caller).await?;
        }
        Found::Known(name) => {
            note(state, address, &name);
            if name != state.shared.place.name && !state.is_linked(&name) {
                state.dial_later(&name, Duration::ZERO);
            }
        }
        Found::Nobody(why) => state.discovery.note_trouble(address, why),
    }
    Ok(())
}

fn note(state: &mut MembersState, address: String, name: &NodeName) {
    state.discovery.troubles.remove(&address);
    state.discovery.found.insert(address.clone(), name.clone());
    if *name == state.shared.place.name {
        return;
    }
    // With too many there is none.
    if let Some(peer) = state.shared.peers.meet(name, None).filter(|peer| !peer.is_configured) {
        *peer.address.lock() = Some(address);
    }
}

/// A second has passed: nodes that are gone for good are forgotten, with their pools.
pub(in crate::cluster) fn forget(state: &MembersState) {
    let (shared, now) = (&state.shared, state.shared.env.now());
    for peer in shared.peers.all() {
        let mut lost_at = peer.lost_at.lock();
        if state.is_linked(&peer.name) {
            *lost_at = None;
            continue;
        }
        let silent = now.since(*lost_at.get_or_insert(now));
        if peer.is_configured || peer.address.lock().is_some() || silent < shared.policy.forget {
            continue;
        }
        tracing::info!(peer = %peer.name, "a node that is gone is forgotten");
        let remote_pools = std::mem::take(&mut *peer.remote_pools.lock());
        remote_pools.values().for_each(|remote| shared.orchestrator.remove_remote(&remote.pool));
        shared.peers.forget(&peer.name);
    }
}
