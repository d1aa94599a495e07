//! Slots whose engine has been told to stop and has not left them in time.
//!
//! Spec: ORCH-3017.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::ActorRef;

use crate::actors::pool::messages::WorkerMsg;
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::worker::attempt::Attempt;
use crate::env::timeout_awake;
use crate::gpu::engine::EngineError;
use crate::planted::seeded_bug;

/// Holds the slot until the engine has really left it: a slot is never given to another task while it may still
/// compute.
///
/// A slot that is not left in time is quarantined. The engine's own view of it decides when it is free; should it never
/// be, the engine is restarted as soon as that costs no other task anything, and after a while gets no more tasks, so
/// that this moment comes.
pub(in crate::actors) async fn confirm_stopped(attempt: &Attempt) {
    if seeded_bug!(FreeUnconfirmed) {
        return;
    }
    let limit = Duration::from_millis(attempt.pool.config.timeouts.stop_ms);
    let released = attempt.engine.released(attempt.lease.slot);
    tokio::pin!(released);
    match timeout_awake(limit, &mut released).await {
        Some(Ok(())) => return,
        Some(Err(panicked)) => return until_aborted(attempt, panicked).await,
        None => {}
    }
    let place = &attempt.pool.replicas[attempt.lease.replica as usize];
    let mut quarantine = Quarantine::begin(attempt);
    let slot = attempt.lease.slot;
    tracing::warn!(replica_id = %place.id, slot, ?limit, "a slot was not left in time and is quarantined");
    for periods in 1_u32.. {
        let text = format!("slot {slot} was not left within {:?}", limit * periods);
        if periods == QUARANTINE_PERIODS_MAX {
            // Nothing new from here on; what runs may end.
            let _ = attempt.worker.cast(WorkerMsg::EngineStuck(EngineError::Hung(text.clone().into())));
            quarantine.is_stuck = true;
        }
        if quarantine.is_all_that_runs() {
            let _ = attempt.worker.cast(WorkerMsg::EngineFailed(EngineError::Hung(text.into()))); // Gone: so is its engine.
        }
        match timeout_awake(limit, &mut released).await {
            Some(Ok(())) => {
                tracing::info!(replica_id = %place.id, slot, "a quarantined slot is free after all");
                return;
            }
            Some(Err(panicked)) => return until_aborted(attempt, panicked).await,
            None => {}
        }
    }
}

/// Nobody can say any more whether the slot is free: its worker ends, and takes the attempt along.
async fn until_aborted(attempt: &Attempt, panicked: EngineError) {
    let _ = attempt.worker.cast(WorkerMsg::EngineFailed(panicked)); // Gone: so is its engine, and this attempt in a moment.
    std::future::pending().await
}

/// Times `stop_ms` that a slot may be quarantined before its replica gets no more tasks.
const QUARANTINE_PERIODS_MAX: u32 = 10;

/// A slot that its engine has not left in time, counted while it is held.
struct Quarantine<'a> {
    place: &'a ReplicaShared,
    worker: &'a ActorRef<WorkerMsg>,
    /// The worker has been told that it gets no more tasks because of this slot.
    is_stuck: bool,
}

impl<'a> Quarantine<'a> {
    fn begin(attempt: &'a Attempt) -> Self {
        let place = &attempt.pool.replicas[attempt.lease.replica as usize];
        place.counters.stop_timeouts.fetch_add(1, Relaxed);
        place.counters.quarantined.fetch_add(1, Relaxed);
        Quarantine { place, worker: &attempt.worker, is_stuck: false }
    }

    /// Whether a restart of the engine would cost no task anything.
    fn is_all_that_runs(&self) -> bool {
        self.place.capacity.slots.used() <= self.place.counters.quarantined.load(Relaxed)
    }
}

impl Drop for Quarantine<'_> {
    fn drop(&mut self) {
        self.place.counters.quarantined.fetch_sub(1, Relaxed);
        if self.is_stuck {
            let _ = self.worker.cast(WorkerMsg::EngineUnstuck); // Gone: the next worker knows of no stuck slot.
        }
    }
}
