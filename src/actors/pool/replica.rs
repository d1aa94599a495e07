//! One worker's place: what of a replica outlives its worker.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::actors::kit::address::Address;
use crate::actors::ledger::events::RuntimeEvent;
use crate::actors::pool::lease::{KvReservations, SlotTable};
use crate::actors::pool::outlier::OutlierDetection;
use crate::actors::pool::reload::{Part, Revision};
use crate::actors::task::event_log::ReplicaIdentity;
use crate::actors::worker::messages::WorkerMsg;
use crate::actors::worker::self_test::SelfTest;
use crate::core::id::{DeviceMask, ReplicaId};
use crate::core::pool::lifecycle::ReplicaState;
use crate::core::pool::memory::SlotEstimate;
use crate::core::pool::placement::Candidate;
use crate::core::task::failure::Cause;
use crate::core::text::line::Message;
use crate::core::units::{Timestamp, VramBytes};
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Teardown, Telemetry};

/// One worker's place. Its slots and its engine outlive the actors around them.
pub(crate) struct ReplicaShared {
    pub(crate) id: ReplicaId,
    /// The devices that it uses.
    pub(crate) mask: DeviceMask,
    /// The CPUs that its devices are near to; empty for any.
    pub(crate) cpus: Arc<[u32]>,
    /// Why it cannot be served on these devices, if so.
    pub(crate) fault: Option<String>,
    pub(crate) slots: SlotTable,
    pub(crate) kv: KvReservations,
    /// Slots that it is good for. Written by whoever learns that its device ran out of memory, and by its worker as
    /// time goes by.
    pub(crate) estimate: Mutex<SlotEstimate>,
    /// Slots that its engine was started for.
    pub(crate) slots_started: AtomicU32,
    /// The processes of its last engine: their memory must be free before the next is loaded.
    pub(crate) last_processes: Mutex<Vec<u32>>,
    pub(crate) worker: Address<WorkerMsg>,
    /// Where it stands. Written by its worker while that lives, by the pool's supervisor when it has died.
    pub(in crate::actors) state: Mutex<ReplicaState>,
    /// Its part in a reload of the pool.
    pub(crate) part: Part,
    /// The engine of the worker's current life. A supervisor that dies takes its workers along, but the engines stay,
    /// and the next workers adopt them; a worker that dies by itself has its engine discarded by its supervisor.
    pub(crate) engine: Mutex<Option<Arc<dyn DynEngine>>>,
    /// What earlier engines have left that is still ending.
    pub(crate) site: Teardown,
    /// Since when the worker has been Ready in its current life. Written by it, taken by its supervisor.
    pub(crate) ready_since: Mutex<Option<Timestamp>>,
    /// What the engine said of itself when it was loaded.
    pub(crate) identity: Mutex<Option<Arc<ReplicaIdentity>>>,
    pub(crate) telemetry: Mutex<Telemetry>,
    /// Memory that is free on its fullest device, in bytes; 0 when unknown. Written by its worker.
    pub(crate) vram_free: AtomicU64,
    /// Resident memory of its engine's processes, in bytes; 0 when it has none. Written by its worker.
    pub(crate) ram_used: AtomicU64,
    pub(crate) started: [AtomicU64; 2],
    pub(crate) tokens_in: AtomicU64,
    pub(crate) tokens_out: AtomicU64,
    /// What the newest load has shown; `None` before the first, and without a self-test.
    pub(crate) self_test: Mutex<Option<SelfTest>>,
    pub(crate) preload_successes: AtomicU64,
    pub(crate) preload_failures: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Why the worker's current life is about to end, as far as it knows. Written by it; each life has its own, which
    /// its attempts hold too.
    pub(crate) failing: Mutex<Arc<OnceLock<EngineError>>>,
    /// What the last life died of. Written by the supervisor.
    pub(crate) last_death: Mutex<Option<(Timestamp, Cause, Message)>>,
    /// Deaths of its workers, and attempts that failed on it, by [`Cause::ALL`].
    pub(crate) deaths: [AtomicU64; Cause::ALL.len()],
    pub(crate) attempts_failed: [AtomicU64; Cause::ALL.len()],
    /// Runs whose engine did not confirm in time that it had stopped.
    pub(crate) stop_timeouts: AtomicU64,
    /// Slots whose engine has still not left them behind such a run. Written by their attempts.
    pub(crate) quarantined: AtomicU32,
    /// What its attempts say about it.
    pub(crate) outlier: OutlierDetection,
    /// Slots that the engine said were busy while no task of ours had them. Must stay 0.
    pub(crate) slot_leaks: AtomicU64,
}

impl ReplicaShared {
    pub(in crate::actors) fn new(id: ReplicaId, mask: DeviceMask, slots: u32, revision: Arc<Revision>) -> Self {
        let policy = revision.config.resume.outlier_policy();
        ReplicaShared {
            id,
            mask,
            cpus: Arc::default(),
            fault: None,
            slots: SlotTable::new(slots),
            kv: KvReservations::default(),
            estimate: Mutex::new(SlotEstimate::new(slots)),
            slots_started: AtomicU32::new(slots),
            last_processes: Mutex::default(),
            worker: Address::default(),
            state: Mutex::new(ReplicaState::Preloading),
            part: Part::new(revision),
            engine: Mutex::new(None),
            site: Teardown::default(),
            ready_since: Mutex::new(None),
            identity: Mutex::new(None),
            telemetry: Mutex::default(),
            vram_free: AtomicU64::new(0),
            ram_used: AtomicU64::new(0),
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
            outlier: OutlierDetection::new(policy),
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

    /// Takes it out of service until its worker has looked at this engine, which an attempt found wanting. Returns
    /// whether it has that engine. Not when the attempt is that late that the place has another one: nobody would ever
    /// look at it for that.
    pub(crate) fn suspect(&self, engine: &Arc<dyn DynEngine>) -> bool {
        let mut state = self.state.lock(); // Held over both: the next engine becomes Ready behind it.
        let has_it =
            self.engine.lock().as_ref().is_some_and(|own| std::ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(engine)));
        if has_it && state.is_ready() {
            *state = ReplicaState::Suspect;
        }
        has_it
    }

    /// Whether its engine is loaded and well, whether or not it is given tasks.
    pub(crate) fn is_loaded(&self) -> bool {
        self.state.lock().is_ready()
    }

    /// Its device ran out of memory while so many tasks ran; `None` while its engine was loaded.
    pub(crate) fn note_out_of_vram(&self, now: Timestamp, running: Option<u32>) {
        let mut estimate = self.estimate.lock();
        match running {
            Some(running) => estimate.on_out_of_vram(now, running),
            None => estimate.on_load_out_of_vram(now),
        }
        let (slots, limit) = (estimate.get(), estimate.get().min(self.slots_started.load(Relaxed)));
        drop(estimate);
        self.slots.set_limit(limit);
        tracing::warn!(replica_id = %self.id, slots, "its device ran out of memory: it is good for fewer slots");
    }

    /// Time has passed without its device running out of memory. Returns whether there are more slots now.
    pub(crate) fn relax(&self, now: Timestamp) -> bool {
        let mut estimate = self.estimate.lock();
        let is_more = estimate.on_time(now);
        if is_more {
            self.slots.set_limit(estimate.get().min(self.slots_started.load(Relaxed)));
        }
        is_more
    }

    /// What placement may know of it, as of now.
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            index: self.id.index,
            ready: self.state().is_ready(),
            mask: &self.mask,
            slots: self.slots.usable(),
            slots_used: self.slots.used(),
            vram_free: VramBytes(self.vram_free.load(Relaxed)),
            // Not measured: all replicas are equal in it, and the next criterion decides.
            tokens_per_s: 0,
            kv_tokens: self.kv.capacity(),
            kv_reserved: self.kv.reserved(),
        }
    }

    /// What the worker's life has just ended of: what it said itself, else a bug. `event` is how ractor puts it.
    pub(crate) fn note_death(&self, now: Timestamp, event: String) {
        let failing = self.failing.lock().clone();
        match failing.get() {
            Some(error) => self.note_death_of(now, error),
            None => self.note_cause(now, Cause::Bug, event.into()),
        }
    }

    /// What its last life died of, for subscribers.
    pub(crate) fn death_event(&self) -> RuntimeEvent {
        let last = self.last_death.lock().clone().map(|(_, cause, message)| (cause, message));
        let (cause, message) = last.unwrap_or_else(|| (Cause::Bug, Message::default()));
        RuntimeEvent::WorkerDied { replica_id: self.id.clone(), cause, message }
    }

    /// Its life, or the drop of an engine that it has let go, has ended in this.
    pub(crate) fn note_death_of(&self, now: Timestamp, error: &EngineError) {
        self.note_cause(now, error.cause(), error.whole());
    }

    fn note_cause(&self, now: Timestamp, cause: Cause, message: Message) {
        self.deaths[cause.index()].fetch_add(1, Relaxed);
        *self.last_death.lock() = Some((now, cause, message));
    }

    /// It gave other tokens than an earlier run did.
    pub(crate) fn lower_class(&self) {
        if let Some(shown) = &mut *self.self_test.lock() {
            shown.lower();
        }
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
