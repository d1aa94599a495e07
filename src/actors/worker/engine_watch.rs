//! What a worker does beside its mailbox: it owns attempts, measures its engine, and looks an adopted one over.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::ActorRef;
use tokio::task::AbortHandle;

use crate::actors::pool::messages::WorkerMsg;
use crate::actors::pool::shared::PoolShared;
use crate::env::timeout_awake;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Telemetry};
use crate::gpu::process::host::memory_of;
use crate::planted::seeded_bug;

/// How often a Ready engine is measured.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// Looks in a row at which an engine has more busy slots than we have runs, before that counts as a leak: a run may
/// just have ended on one side.
const LOOKS_BUSIER: u32 = 2;
/// How long an engine may take to answer a measurement.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Measurements without an answer, in a row, after which an engine counts as lost.
const PROBES_MISSED_MAX: u32 = 3;

/// The attempts, by slot: a slot has one at a time, so a new one takes the place of one that has ended. Aborted with
/// the worker. Lighter than a `JoinSet`, which is told of each end; nobody waits for an attempt here.
pub(crate) struct Attempts(Vec<Option<AbortHandle>>);

impl Attempts {
    pub(crate) fn new(slots: u32) -> Self {
        Attempts((0..slots).map(|_| None).collect())
    }

    pub(crate) fn own(&mut self, slot: u32, attempt: AbortHandle) {
        self.0[slot as usize] = Some(attempt);
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if !seeded_bug!(OrphanAttempts) {
            self.0.iter().flatten().for_each(AbortHandle::abort);
        }
    }
}

/// Measures the engine once a period, and reports it lost when it does not answer for long. Compares the engine's own
/// view of its slots with ours: what computes without a task of ours is a leak, of ours, of the engine's or of somebody
/// else.
pub(crate) async fn measure(pool: &PoolShared, index: u16, engine: &dyn DynEngine, worker: ActorRef<WorkerMsg>) {
    let place = &pool.replicas[index as usize];
    let (mut missed, mut looks_busier) = (0, 0);
    loop {
        tokio::time::sleep(PROBE_PERIOD).await;
        let begun = pool.env.now();
        match probe(engine).await {
            Ok(telemetry) => {
                missed = 0;
                *place.measured.telemetry.lock() = telemetry;
                if let (Some(tokens), None) = (telemetry.kv_tokens, pool.config.memory.kv_tokens) {
                    place.capacity.kv.set_capacity(tokens);
                }
                let process = place.loaded.identity.lock().as_ref().and_then(|identity| identity.process_id);
                place.measured.ram_used.store(process.map_or(0, memory_of), Relaxed);
                place.measured.vram_free.store(pool.devices.vram_free(&place.placement.mask).unwrap_or(0), Relaxed);
                if place.relax(pool.env.now()) {
                    pool.nudge_manager();
                }
                let stray = telemetry.slots_busy.unwrap_or(0).saturating_sub(place.capacity.slots.used());
                looks_busier = if stray > 0 { looks_busier + 1 } else { 0 };
                if looks_busier == LOOKS_BUSIER {
                    place.counters.slot_leaks.fetch_add(u64::from(stray), Relaxed);
                    tracing::error!(replica_id = %place.id, stray, "slots compute for no task of this worker");
                }
            }
            // Another engine is in its place, or its code is broken: nothing that it says is of use.
            Err(cause @ (EngineError::Replaced(_) | EngineError::Panicked { .. })) => {
                let _ = worker.cast(WorkerMsg::EngineFailed(cause));
                return;
            }
            Err(cause) if place.outlier.was_alive_since(begun) && !seeded_bug!(LateProbeKills) => {
                if missed == 0 {
                    tracing::warn!(replica_id = %place.id, %cause, "an engine gives tokens, and does not answer beside them");
                }
                missed = 1; // Noted; as long as tokens come it is the first.
            }
            Err(_) if missed + 1 < PROBES_MISSED_MAX => missed += 1,
            Err(cause) => {
                let _ = worker.cast(WorkerMsg::EngineFailed(cause));
                return;
            }
        }
    }
}

pub(crate) async fn probe(engine: &dyn DynEngine) -> Result<Telemetry, EngineError> {
    let late = || EngineError::Unreachable(format!("no answer within {PROBE_TIMEOUT:?}").into());
    timeout_awake(PROBE_TIMEOUT, engine.probe()).await.unwrap_or_else(|| Err(late()))
}

/// An engine that an earlier life left behind serves again when it answers and computes nothing of that life any more.
pub(crate) async fn adopt(engine: &dyn DynEngine, slots: u32) -> Result<(), EngineError> {
    probe(engine).await?;
    for slot in 0..slots {
        engine.released(slot).await?;
    }
    Ok(())
}
