//! What can be seen of a runtime: plain values, as of the moment they were taken. No actor is asked for them.

mod devices;
mod overview;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::actors::metrics::view::LatencyView;
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::revision::ReloadView;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::LIMITS;
use crate::core::cluster::node::NodeName;
use crate::core::id::{DeviceMask, PoolId, ReplicaId};
use crate::core::pool::lifecycle::{PoolState, ReplicaState};
use crate::core::pool::self_test::SelfTest;
use crate::core::task::error::ErrorCode;
use crate::core::task::failure::Cause;
use crate::core::text::line::{Line, Message, Name};
use crate::core::units::{Timestamp, millis_ceil};
use crate::orchestrator::Orchestrator;

pub use devices::{DeviceView, DevicesView, XidView};
pub use overview::{ClientView, ConfigGeneration, FailureView, LatencyRow, OverviewView, PoolOverview};

/// One pool.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolView {
    /// Its name.
    pub pool_id: PoolId,
    /// The node whose pool it is, if it is another node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Its engine.
    pub engine: String,
    /// The model that it serves.
    pub model: String,
    /// The reload that is under way, else the last that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<ReloadView>,
    /// Reloads that were completed, and that were undone.
    pub reloads: [u64; 2],
    /// Where it stands.
    pub state: PoolState,
    /// Milliseconds until a replica that is down is tried again, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try_ms: Option<u64>,
    /// Waiting tasks: interactive, batch.
    pub queue_depth: [u32; 2],
    /// Most waiting tasks.
    pub queue_capacity: u32,
    /// Slots that are taken, of all replicas.
    pub slots_used: u32,
    /// Slots of all replicas.
    pub slots_total: u32,
    /// Tasks that its queue took in: interactive, batch.
    pub enqueued: [u64; 2],
    /// Tasks that ended as they should.
    pub completed: u64,
    /// Tasks that their clients ended.
    pub canceled: u64,
    /// Accepted tasks that failed, by code.
    pub failed: BTreeMap<ErrorCode, u64>,
    /// New tasks that the full policy refused.
    pub refused_full: u64,
    /// Waiting tasks that made room for others.
    pub evicted: u64,
    /// Tasks that the accounts hold as out: charged, and not ended yet. 0 when nothing runs.
    pub unsettled: usize,
    /// Tasks of peers' queues that ran here because this pool was idle.
    pub taken_over: u64,
    /// Tasks that were cancelled because their readers were gone; also counted in `canceled`.
    pub deserted: u64,
    /// Times that tasks waited beside free slots for a second. More than 0 is a bug of ours.
    pub stalls: u64,
    /// Attempts that were lost here and whose tasks ran again.
    pub resumed: u64,
    /// Tasks that ended because an attempt gave other tokens than the one before it. More than 0 says that the engine
    /// does not repeat itself as it is configured.
    pub diverged: u64,
    /// The full policy.
    pub full_policy: String,
    /// Its workers.
    pub replicas: Vec<ReplicaView>,
    /// Tasks whose durations were not counted. Must stay 0.
    pub samples_lost: u64,
    /// Its percentiles.
    #[serde(skip)]
    pub latency: Arc<LatencyView>,
}

/// One worker's place.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReplicaView {
    /// Its name.
    pub replica_id: ReplicaId,
    /// Where it stands.
    #[serde(flatten)]
    pub state: ReplicaState,
    /// The devices that it uses.
    pub devices: DeviceMask,
    /// Places for running tasks.
    pub slots_total: u32,
    /// Places that are taken.
    pub slots_used: u32,
    /// Places that may be taken at once: fewer when its device ran out of memory.
    pub slots_usable: u32,
    /// Tokens that its KV cache holds, when that is known, and those that are set aside for running tasks.
    pub kv_tokens: Option<u64>,
    /// See there.
    pub kv_reserved: u64,
    /// Resident memory of its engine's processes, in bytes, when the worker started them.
    pub ram_used_bytes: Option<u64>,
    /// Version that its engine reports, when it is loaded.
    pub engine_version: Option<Name>,
    /// Digest of its model, when it is loaded.
    pub model_digest: Option<Name>,
    /// Process of its engine, when the worker started one.
    pub engine_process_id: Option<u32>,
    /// Share of the KV cache that is used, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Slots that compute, by the engine's own view.
    pub engine_slots_busy: Option<u32>,
    /// Attempts that were begun: interactive, batch.
    pub started: [u64; 2],
    /// Prompt tokens of tasks that ended here.
    pub tokens_in: u64,
    /// Tokens of tasks that ended here.
    pub tokens_out: u64,
    /// Loads that succeeded.
    pub preload_successes: u64,
    /// What the engine showed when it was loaded last; `None` before that, and without a self-test.
    pub self_test: Option<SelfTest>,
    /// Loads that failed.
    pub preload_failures: u64,
    /// Times that its worker died.
    pub restarts: u64,
    /// What its workers died of.
    pub deaths: BTreeMap<Cause, u64>,
    /// What attempts on it failed of, those among them that ran again included. `client` is a request that the engine
    /// refused.
    pub attempts_failed: BTreeMap<Cause, u64>,
    /// What its engine was last heard to say, while it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Line>,
    /// How long it gets no task, in milliseconds: attempts failed on it, or its engine said that it is busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_ms: Option<u64>,
    /// Attempts that failed on it one after another.
    pub consecutive_failures: u32,
    /// Times that it was left out.
    pub ejections: u64,
    /// What its last worker died of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_death: Option<DeathView>,
    /// Runs whose engine did not confirm in time that it had stopped.
    pub stop_timeouts: u64,
    /// Slots whose engine has still not confirmed that. They come back when it does, or with its restart.
    pub slots_quarantined: u32,
    /// Slots that the engine said were busy while no task of ours had them. Must stay 0.
    pub slot_leaks: u64,
}

/// What a worker died of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeathView {
    /// The cause.
    pub cause: Cause,
    /// In words, with the engine's own last ones.
    pub message: Message,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

/// The pools whose identity is the same (ORCH-3007).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReplicaSetView {
    /// Engine of all of them.
    pub engine: String,
    /// Model of all of them.
    pub model: String,
    /// Quantisation of all of them.
    pub quant: String,
    /// Context of one task, in tokens.
    pub ctx: u32,
    /// Version of the engine; `None` until one is loaded.
    pub engine_version: Option<Name>,
    /// Sampler profile of all of them.
    pub sampler_profile_version: String,
    /// Replicas that are Ready.
    pub replicas_ready: u32,
    /// Free slots of those.
    pub slots_free: u32,
    /// The pools.
    pub pools: Vec<PoolId>,
}

/// The runtime as a whole.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RuntimeView {
    /// Tasks between submission and their end.
    pub tasks_open: usize,
    /// Most of them that are let in.
    pub tasks_open_max: usize,
    /// Tasks that are known, ended ones included.
    pub tasks_known: usize,
    /// Submissions that were refused, by code.
    pub rejected: BTreeMap<ErrorCode, u64>,
    /// Those among them that a limit refused before any queue was asked, by its policy.
    pub limited: BTreeMap<&'static str, u64>,
}

impl PoolView {
    fn of(pool: &PoolShared) -> Self {
        let counters = &pool.figures.counters;
        let now = pool.env.now();
        let deserted = counters.abandoned.load(Relaxed);
        let replicas: Vec<ReplicaView> = pool.replicas.iter().map(|replica| ReplicaView::of(replica, now)).collect();
        PoolView {
            pool_id: pool.id.clone(),
            node: pool.node().cloned(),
            engine: pool.config.engine.clone(),
            model: pool.revision().spec.model.clone(),
            reload: pool.reload_view(),
            reloads: counters.reloads.each_ref().map(|count| count.load(Relaxed)),
            state: pool.state(),
            next_try_ms: pool.next_try().map(crate::core::units::millis_ceil),
            queue_depth: pool.waiting.depth.each_ref().map(|depth| depth.load(Relaxed)),
            queue_capacity: pool.config.queue.capacity,
            slots_used: replicas.iter().map(|replica| replica.slots_used).sum(),
            slots_total: replicas.iter().map(|replica| replica.slots_total).sum(),
            enqueued: counters.enqueued.each_ref().map(|count| count.load(Relaxed)),
            completed: counters.completed.load(Relaxed),
            canceled: counters.canceled.load(Relaxed) + deserted,
            failed: ErrorCode::ALL.map(|code| (code, counters.failed(code).load(Relaxed))).into_iter().collect(),
            refused_full: counters.refused_full.load(Relaxed),
            unsettled: pool.unsettled(),
            evicted: counters.evicted.load(Relaxed),
            taken_over: counters.taken_over.load(Relaxed),
            deserted,
            stalls: counters.stalls.load(Relaxed),
            resumed: counters.resumed.load(Relaxed),
            diverged: counters.diverged.load(Relaxed),
            full_policy: pool.config.queue.full_policy.as_str().to_owned(),
            replicas,
            samples_lost: pool.figures.samples.lost.load(Relaxed),
            latency: pool.figures.latency_view.lock().clone(),
        }
    }
}

/// What stands for words of engines that are for operators alone.
#[cfg(feature = "service")]
const FOR_ADMIN: &str = "what it says is for 'admin'";

impl PoolView {
    /// The same without what engines said, which may be a part of anybody's request: for whoever may not see that.
    #[cfg(feature = "service")]
    pub(crate) fn hide_words(&mut self) {
        for replica in &mut self.replicas {
            replica.last_error = replica.last_error.as_ref().map(|_| FOR_ADMIN.into());
            if let Some(death) = &mut replica.last_death {
                death.message = format!("{}; {FOR_ADMIN}", death.cause.as_str()).into();
            }
        }
        if let Some(reason) = self.reload.as_mut().and_then(|reload| reload.reason.as_mut()) {
            *reason = FOR_ADMIN.into();
        }
    }
}

/// The causes that have struck.
fn by_cause(counts: &[AtomicU64; Cause::ALL.len()]) -> BTreeMap<Cause, u64> {
    let counts = Cause::ALL.into_iter().zip(counts.each_ref().map(|count| count.load(Relaxed)));
    counts.filter(|(_, count)| *count > 0).collect()
}

impl ReplicaView {
    fn of(replica: &ReplicaShared, now: Timestamp) -> Self {
        let identity = replica.loaded.identity.lock().clone();
        let telemetry = *replica.measured.telemetry.lock();
        let conduct = replica.outlier.view(now);
        ReplicaView {
            replica_id: replica.id.clone(),
            state: replica.state(),
            devices: replica.placement.mask.clone(),
            slots_total: replica.capacity.slots.total(),
            slots_used: replica.capacity.slots.used(),
            slots_usable: replica.capacity.slots.usable(),
            kv_tokens: replica.capacity.kv.capacity(),
            kv_reserved: replica.capacity.kv.reserved(),
            engine_version: identity.as_ref().map(|identity| identity.engine_version.clone()),
            engine_process_id: identity.as_ref().and_then(|identity| identity.process_id),
            model_digest: identity.map(|identity| identity.model_digest.clone()),
            ram_used_bytes: Some(replica.measured.ram_used.load(Relaxed)).filter(|bytes| *bytes > 0),
            kv_usage: telemetry.kv_usage,
            engine_slots_busy: telemetry.slots_busy,
            started: replica.counters.started.each_ref().map(|count| count.load(Relaxed)),
            tokens_in: replica.counters.tokens_in.load(Relaxed),
            tokens_out: replica.counters.tokens_out.load(Relaxed),
            preload_successes: replica.counters.preload_successes.load(Relaxed),
            self_test: *replica.loaded.self_test.lock(),
            preload_failures: replica.counters.preload_failures.load(Relaxed),
            restarts: replica.counters.restarts.load(Relaxed),
            deaths: by_cause(&replica.counters.deaths),
            attempts_failed: by_cause(&replica.counters.attempts_failed),
            last_error: replica.loaded.site.heard(),
            ejected_ms: conduct.0.map(|until| millis_ceil(until.since(now))),
            consecutive_failures: conduct.1,
            ejections: replica.outlier.ejections.load(Relaxed),
            last_death: replica.life.last_death.lock().as_ref().map(|(at, cause, message)| DeathView {
                cause: *cause,
                message: message.clone(),
                ago_ms: millis_ceil(now.since(*at)),
            }),
            stop_timeouts: replica.counters.stop_timeouts.load(Relaxed),
            slots_quarantined: replica.counters.quarantined.load(Relaxed),
            slot_leaks: replica.counters.slot_leaks.load(Relaxed),
        }
    }
}

impl Orchestrator {
    /// Every pool, in the order of the configuration.
    pub fn pools(&self) -> Vec<PoolView> {
        self.shared().pools.table().serving.iter().map(|pool| PoolView::of(pool)).collect()
    }

    /// One pool; `None` when there is none of this name.
    pub fn pool(&self, id: &PoolId) -> Option<PoolView> {
        self.pool_shared(id).map(|pool| PoolView::of(&pool))
    }

    /// The runtime as a whole.
    pub fn view(&self) -> RuntimeView {
        let shared = self.shared();
        let counts = shared.refused.rejected.each_ref().map(|count| count.load(Relaxed));
        RuntimeView {
            tasks_open: shared.gate.used(),
            tasks_open_max: shared.gate.limit(),
            tasks_known: shared.ledger.len(),
            rejected: ErrorCode::ALL.into_iter().zip(counts).collect(),
            limited: LIMITS
                .into_iter()
                .zip(shared.refused.limited.each_ref().map(|count| count.load(Relaxed)))
                .collect(),
        }
    }

    /// Pools grouped by identity, in the order of their first pool.
    pub fn replica_sets(&self) -> Vec<ReplicaSetView> {
        let table = self.shared().pools.table();
        let mut sets: Vec<(&PoolShared, ReplicaSetView)> = Vec::new();
        for pool in &table.serving {
            let ready: Vec<&ReplicaShared> =
                pool.replicas.iter().filter(|replica| replica.state().is_ready()).collect();
            let identity = ready.iter().find_map(|replica| replica.loaded.identity.lock().clone());
            let revision = pool.revision();
            let set = ReplicaSetView {
                engine: pool.config.engine.clone(),
                model: revision.spec.model.clone(),
                quant: revision.spec.quant.clone(),
                ctx: pool.model.ctx.load(Relaxed),
                engine_version: identity.map(|identity| identity.engine_version.clone()),
                sampler_profile_version: revision.spec.sampler_profile_version.clone(),
                replicas_ready: ready.len() as u32,
                slots_free: ready.iter().map(|replica| replica.capacity.slots.free()).sum(),
                pools: vec![pool.id.clone()],
            };
            match sets.iter_mut().find(|(first, _)| first.is_in_set_with(pool)) {
                None => sets.push((pool, set)),
                Some((_, known)) => {
                    known.replicas_ready += set.replicas_ready;
                    known.slots_free += set.slots_free;
                    known.pools.extend(set.pools);
                }
            }
        }
        sets.into_iter().map(|(_, set)| set).collect()
    }
}
