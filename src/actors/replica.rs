//! One worker's place: what of a replica outlives its worker.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::actors::address::Address;
use crate::actors::event_log::ReplicaIdentity;
use crate::actors::lease::SlotTable;
use crate::actors::reload::{Edition, Part};
use crate::actors::self_test::SelfTest;
use crate::actors::worker::WorkerMsg;
use crate::core::failure::Cause;
use crate::core::id::{DeviceMask, ReplicaId};
use crate::core::lifecycle::ReplicaState;
use crate::core::placement::Candidate;
use crate::core::units::{Timestamp, VramBytes};
use crate::gpu::engine::{AnyEngine, EngineError, EngineSite, Telemetry};

/// One worker's place. Its slots and its engine outlive the actors around them.
pub(crate) struct ReplicaShared {
    pub(crate) id: ReplicaId,
    /// The devices that it uses.
    pub(crate) mask: DeviceMask,
    pub(crate) slots: SlotTable,
    pub(crate) worker: Address<WorkerMsg>,
    /// Where it stands. Written by its worker while that lives, by the pool's supervisor when it has died.
    pub(super) state: Mutex<ReplicaState>,
    /// Its part in a reload of the pool.
    pub(crate) part: Part,
    /// The engine of the worker's current life. A supervisor that dies takes its workers along, but the engines stay,
    /// and the next workers adopt them; a worker that dies by itself has its engine discarded by its supervisor.
    pub(crate) engine: Mutex<Option<Arc<dyn AnyEngine>>>,
    /// What earlier engines have left that is still ending.
    pub(crate) site: EngineSite,
    /// Since when the worker has been Ready in its current life. Written by it, taken by its supervisor.
    pub(crate) ready_since: Mutex<Option<Timestamp>>,
    /// What the engine said of itself when it was loaded.
    pub(crate) identity: Mutex<Option<Arc<ReplicaIdentity>>>,
    pub(crate) telemetry: Mutex<Telemetry>,
    pub(crate) started: [AtomicU64; 2],
    pub(crate) tokens_in: AtomicU64,
    pub(crate) tokens_out: AtomicU64,
    /// What the newest load has shown; `None` before the first, and without a self-test.
    pub(crate) self_test: Mutex<Option<SelfTest>>,
    pub(crate) preload_successes: AtomicU64,
    pub(crate) preload_failures: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Why the worker's current life is about to end, as far as it knows. Written by it; each life has its own, which its attempts
    /// hold too.
    pub(crate) failing: Mutex<Arc<OnceLock<EngineError>>>,
    /// What the last life died of. Written by the supervisor.
    pub(crate) last_death: Mutex<Option<(Timestamp, Cause, String)>>,
    /// Deaths of its workers, and attempts that failed on it, by [`Cause::ALL`].
    pub(crate) deaths: [AtomicU64; Cause::ALL.len()],
    pub(crate) attempts_failed: [AtomicU64; Cause::ALL.len()],
    /// Runs whose engine did not confirm in time that it had stopped.
    pub(crate) stop_timeouts: AtomicU64,
    /// Slots whose engine has still not left them behind such a run. Written by their attempts.
    pub(crate) quarantined: AtomicU32,
    /// Slots that the engine said were busy while no task of ours had them. Must stay 0.
    pub(crate) slot_leaks: AtomicU64,
}

impl ReplicaShared {
    pub(super) fn new(id: ReplicaId, mask: DeviceMask, slots: u32, edition: Arc<Edition>) -> Self {
        ReplicaShared {
            id,
            mask,
            slots: SlotTable::new(slots),
            worker: Address::default(),
            state: Mutex::new(ReplicaState::Preloading),
            part: Part::new(edition),
            engine: Mutex::new(None),
            site: EngineSite::default(),
            ready_since: Mutex::new(None),
            identity: Mutex::new(None),
            telemetry: Mutex::default(),
            started: Default::default(),
            tokens_in: AtomicU64::new(0),
            tokens_out: AtomicU64::new(0),
            self_test: Mutex::default(),
            preload_successes: AtomicU64::new(0),
            preload_failures: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            failing: Mutex::default(),
            last_death: Mutex::default(),
            deaths: Default::default(),
            attempts_failed: Default::default(),
            stop_timeouts: AtomicU64::new(0),
            quarantined: AtomicU32::new(0),
            slot_leaks: AtomicU64::new(0),
        }
    }

    /// Where it stands: a worker that is Ready and has no part in the service yet, or any more, is Reloading.
    pub(crate) fn state(&self) -> ReplicaState {
        match *self.state.lock() {
            ReplicaState::Ready if !self.part.in_service.load(SeqCst) => ReplicaState::Reloading,
            state => state,
        }
    }

    /// Whether its engine is loaded and well, whether or not it is given tasks.
    pub(crate) fn is_loaded(&self) -> bool {
        self.state.lock().is_ready()
    }

    /// What placement may know of it, as of now.
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            index: self.id.index,
            ready: self.state().is_ready(),
            mask: &self.mask,
            slots: self.slots.total(),
            slots_used: self.slots.used(),
            // Devices are not measured yet: all replicas are equal in both, and the next criterion decides.
            vram_free: VramBytes(0),
            tokens_per_s: 0,
        }
    }

    /// What the worker's life has just ended of: what it said itself, else a bug. `event` is how ractor puts it.
    pub(crate) fn note_death(&self, now: Timestamp, event: String) {
        let failing = self.failing.lock().clone();
        let cause = failing.get().map_or(Cause::Bug, EngineError::cause);
        self.deaths[cause.index()].fetch_add(1, Relaxed);
        *self.last_death.lock() = Some((now, cause, failing.get().map_or(event, ToString::to_string)));
    }

    /// An attempt on it has failed.
    pub(crate) fn note_attempt_failed(&self, cause: Cause) {
        self.attempts_failed[cause.index()].fetch_add(1, Relaxed);
    }

    /// Lets the engine go: its process ends when the last run that uses it has.
    pub(crate) fn discard_engine(&self) {
        let engine = self.engine.lock().take();
        *self.identity.lock() = None;
        drop(engine); // Outside the lock: ending a process may take its time.
    }
}
