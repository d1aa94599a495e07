//! What a node tells its peers of its pools: what they are, and how many attempts of each peer they take now.
//!
//! A pool with free places takes that many. One without takes one attempt of each gateway beyond those that have begun,
//! so that each gateway's most deserving task waits in the pool's own order: which of them is next is decided there,
//! and nowhere else.
//!
//! Spec: ORCH-3007, ORCH-3008.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::cluster::link::links::LinkShared;
use crate::cluster::link::protocol::{AdvertisedIdentity, LinkMessage, POOLS_MAX, PoolAdvertisement, PoolCapacity};
use crate::cluster::shared::ClusterShared;
use crate::cluster::sharing::anti_affinity::rejects_peer;
use crate::cluster::sharing::inbound;
use crate::core::admission::offers::{Offer, attempts_allowed, would_wait};
use crate::core::id::PoolId;
use crate::core::pool::lifecycle::Intent;
use crate::core::pool::model::ModelSpec;
use crate::core::task::Priority;
use crate::core::text::line::is_plain;
use crate::orchestrator::fabric::PoolShared;

/// What the peer has been told.
#[derive(Default)]
pub(crate) struct Announced {
    cards: Option<(Vec<PoolAdvertisement>, bool)>,
    limits: BTreeMap<PoolId, PoolCapacity>,
}

/// Says what has changed.
pub(in crate::cluster) fn announce(shared: &Arc<ClusterShared>, link: &Arc<LinkShared>, announced: &mut Announced) {
    let mut pools = own_pools(shared);
    let all = pools.len();
    pools.retain(|pool| !rejects_peer(shared, pool, link));
    if pools.len() < all {
        inbound::stop_closed(shared, link);
    }
    let draining = shared.is_draining();
    let cards: Vec<PoolAdvertisement> = pools.iter().map(|pool| card(pool)).collect();
    let said = (cards, draining);
    if announced.cards.as_ref() != Some(&said) {
        link.say(LinkMessage::Pools { cards: said.0.clone(), zone: shared.place.zone.clone(), draining });
        announced.cards = Some(said);
    }
    let room = |pool: &Arc<PoolShared>| {
        let is_open = !draining && pool.intent() == Intent::Serve && pool.state().takes_tasks();
        let places = pool.replicas.iter().filter(|replica| replica.state().is_ready());
        let offer = Offer {
            slots: places.map(|replica| replica.capacity.slots.limit()).sum(),
            free: pool.slots_free(),
            waiting: pool.depth_total(),
            has_room: Priority::ALL.into_iter().any(|class| pool.has_room(class)),
        };
        let attempts = if is_open { attempts_allowed(offer) } else { 0 };
        PoolCapacity { pool: pool.id.clone(), attempts, is_full: would_wait(offer) }
    };
    if link.must_say_limits.swap(false, Relaxed) {
        announced.limits.clear();
    }
    let limits: BTreeMap<PoolId, PoolCapacity> = pools.iter().map(|pool| (pool.id.clone(), room(pool))).collect();
    let is_news = |room: &&PoolCapacity| announced.limits.get(&room.pool) != Some(*room);
    let news: Vec<PoolCapacity> = limits.values().filter(is_news).cloned().collect();
    if !news.is_empty() {
        link.say(LinkMessage::Capacity(news));
        announced.limits = limits;
    }
}

/// The pools whose engines are this node's own, in the order of the configuration.
pub(crate) fn own_pools(shared: &ClusterShared) -> Vec<Arc<PoolShared>> {
    let table = shared.orchestrator.pool_table();
    table.serving.iter().filter(|pool| !pool.is_remote()).take(POOLS_MAX).cloned().collect()
}

fn card(pool: &PoolShared) -> PoolAdvertisement {
    let identity = pool.replicas.iter().filter(|replica| replica.state().is_ready()).find_map(|replica| {
        let identity = replica.loaded.identity.lock().clone()?;
        Some(AdvertisedIdentity {
            engine_version: identity.engine_version.clone(),
            model_digest: identity.model_digest.clone(),
            ctx: pool.model.ctx.load(Relaxed),
        })
    });
    PoolAdvertisement {
        pool: pool.id.clone(),
        engine: pool.config.engine.clone(),
        spec: (*pool.revision().spec).clone(),
        aliases: pool.config.aliases.clone(),
        workloads: pool.config.workloads.clone(),
        bytes_per_token: pool.config.bytes_per_token,
        slots: pool.config.slots * pool.replicas.len() as u32,
        determinism_class: pool.told_class(),
        identity,
    }
}

/// Most bytes of a name that another node says; the path of a model may have as many.
const NAME_BYTES_MAX: usize = 4_096;

/// Whether what another node says can be a name: bounded, in one line.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(is_plain)
}

impl PoolAdvertisement {
    /// Whether everything in it that is shown to people is a name.
    pub(crate) fn is_plain(&self) -> bool {
        let ModelSpec { model, quant, sampler_profile_version, .. } = &self.spec;
        let names = [&self.engine, model, quant, sampler_profile_version];
        self.engine.len() <= 256 && names.into_iter().chain(&self.aliases).all(|name| is_name(name))
    }
}
