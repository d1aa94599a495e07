//! One worker's place: what of a replica outlives its worker.

pub(crate) mod outlier;
pub(in crate::actors) mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;

use crate::actors::kit::address::Address;
use crate::actors::metrics::events::RuntimeEvent;
use crate::actors::pool::replica::outlier::OutlierDetection;
use crate::actors::pool::replica::parts::{
    LoadedEngine, Measured, Placement, ReplicaCapacity, ReplicaCounters, ReplicaLife,
};
use crate::actors::pool::revision::{Part, Revision};
use crate::actors::pool::slots::{KvReservations, SlotTable};
use crate::core::id::{DeviceMask, ReplicaId};
use crate::core::pool::lifecycle::ReplicaState;
use crate::core::pool::memory::SlotEstimate;
use crate::core::pool::placement::Candidate;
use crate::core::task::failure::Cause;
use crate::core::text::line::Message;
use crate::core::units::{Timestamp, VramBytes};
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Teardown};

/// One worker's place. Its slots and its engine outlive the actors around them.
pub(crate) struct ReplicaShared {
    pub(crate) id: ReplicaId,
    /// Where it may run.
    pub(crate) placement: Placement,
    /// What it can run at once.
    pub(crate) capacity: ReplicaCapacity,
    /// The engine that it has, and what that has shown.
    pub(crate) loaded: LoadedEngine,
    /// How its worker does.
    pub(crate) life: ReplicaLife,
    /// Its part in a reload of the pool.
    pub(crate) part: Part,
    /// What was measured of it last. Written by its worker.
    pub(crate) measured: Measured,
    /// What has happened on it since the start, in numbers.
    pub(crate) counters: ReplicaCounters,
    /// What its attempts say about it.
    pub(crate) outlier: OutlierDetection,
}

impl ReplicaShared {
    pub(in crate::actors) fn new(id: ReplicaId, mask: DeviceMask, slots: u32, revision: Arc<Revision>) -> Self {
        let policy = revision.config.resume.outlier_policy();
        ReplicaShared {
            id,
            part: Part::new(revision),
            outlier: OutlierDetection::new(policy),
            placement: Placement { mask, cpus: Arc::default(), fault: None },
            capacity: ReplicaCapacity {
                slots: SlotTable::new(slots),
                kv: KvReservations::default(),
                estimate: Mutex::new(SlotEstimate::new(slots)),
                slots_started: AtomicU32::new(slots),
            },
            life: ReplicaLife {
                worker: Address::default(),
                state: Mutex::new(ReplicaState::Preloading),
                ready_since: Mutex::new(None),
                failing: Mutex::default(),
                last_death: Mutex::default(),
            },
            loaded: LoadedEngine {
                last_processes: Mutex::default(),
                engine: Mutex::new(None),
                site: Teardown::default(),
                identity: Mutex::new(None),
                self_test: Mutex::default(),
            },
            measured: Measured {
                telemetry: Mutex::default(),
                vram_free: AtomicU64::new(0),
                ram_used: AtomicU64::new(0),
            },
            counters: ReplicaCounters {
                started: Default::default(),
                tokens_in: AtomicU64::new(0),
                tokens_out: AtomicU64::new(0),
                preload_successes: AtomicU64::new(0),
                preload_failures: AtomicU64::new(0),
                restarts: AtomicU64::new(0),
                deaths: Default::default(),
                attempts_failed: Default::default(),
                stop_timeouts: AtomicU64::new(0),
                quarantined: AtomicU32::new(0),
                slot_leaks: AtomicU64::new(0),
            },
        }
    }

    /// Where it stands: a worker that is Ready and has no part in the service yet, or any more, is Reloading.
    pub(crate) fn state(&self) -> ReplicaState {
        match *self.life.state.lock() {
            ReplicaState::Ready if !self.part.in_service.load(SeqCst) => ReplicaState::Reloading,
            state => state,
        }
    }

    /// Takes it out of service until its worker has looked at this engine, which an attempt found wanting. Returns
    /// whether it has that engine. Not when the attempt is that late that the place has another one: nobody would ever
    /// look at it for that.
    pub(crate) fn suspect(&self, engine: &Arc<dyn DynEngine>) -> bool {
        let mut state = self.life.state.lock(); // Held over both: the next engine becomes Ready behind it.
        let has_it = self
            .loaded
            .engine
            .lock()
            .as_ref()
            .is_some_and(|own| std::ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(engine)));
        if has_it && state.is_ready() {
            *state = ReplicaState::Suspect;
        }
        has_it
    }

    /// Whether its engine is loaded and well, whether or not it is given tasks.
    pub(crate) fn is_loaded(&self) -> bool {
        self.life.state.lock().is_ready()
    }

    /// Its device ran out of memory while so many tasks ran; `None` while its engine was loaded.
    pub(crate) fn note_out_of_vram(&self, now: Timestamp, running: Option<u32>) {
        let mut estimate = self.capacity.estimate.lock();
        match running {
            Some(running) => estimate.on_out_of_vram(now, running),
            None => estimate.on_load_out_of_vram(now),
        }
        let (slots, limit) = (estimate.get(), estimate.get().min(self.capacity.slots_started.load(Relaxed)));
        drop(estimate);
        self.capacity.slots.set_limit(limit);
        tracing::warn!(replica_id = %self.id, slots, "its device ran out of memory: it is good for fewer slots");
    }

    /// Time has passed without its device running out of memory. Returns whether there are more slots now.
    pub(crate) fn relax(&self, now: Timestamp) -> bool {
        let mut estimate = self.capacity.estimate.lock();
        let is_more = estimate.on_time(now);
        if is_more {
            self.capacity.slots.set_limit(estimate.get().min(self.capacity.slots_started.load(Relaxed)));
        }
        is_more
    }

    /// What placement may know of it, as of now.
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            index: self.id.index,
            ready: self.state().is_ready(),
            mask: &self.placement.mask,
            slots: self.capacity.slots.usable(),
            slots_used: self.capacity.slots.used(),
            vram_free: VramBytes(self.measured.vram_free.load(Relaxed)),
            // Not measured: all replicas are equal in it, and the next criterion decides.
            tokens_per_s: 0,
            kv_tokens: self.capacity.kv.capacity(),
            kv_reserved: self.capacity.kv.reserved(),
        }
    }

    /// What the worker's life has just ended of: what it said itself, else a bug. `event` is how ractor puts it.
    pub(crate) fn note_death(&self, now: Timestamp, event: String) {
        let failing = self.life.failing.lock().clone();
        match failing.get() {
            Some(error) => self.note_death_of(now, error),
            None => self.note_cause(now, Cause::Bug, event.into()),
        }
    }

    /// What its last life died of, for subscribers.
    pub(crate) fn death_event(&self) -> RuntimeEvent {
        let last = self.life.last_death.lock().clone().map(|(_, cause, message)| (cause, message));
        let (cause, message) = last.unwrap_or_else(|| (Cause::Bug, Message::default()));
        RuntimeEvent::WorkerDied { replica_id: self.id.clone(), cause, message }
    }

    /// Its life, or the drop of an engine that it has let go, has ended in this.
    pub(crate) fn note_death_of(&self, now: Timestamp, error: &EngineError) {
        self.note_cause(now, error.cause(), error.whole());
    }

    fn note_cause(&self, now: Timestamp, cause: Cause, message: Message) {
        self.counters.deaths[cause.index()].fetch_add(1, Relaxed);
        *self.life.last_death.lock() = Some((now, cause, message));
    }

    /// It gave other tokens than an earlier run did.
    pub(crate) fn lower_class(&self) {
        if let Some(shown) = &mut *self.loaded.self_test.lock() {
            shown.lower();
        }
    }

    /// An attempt on it has failed.
    pub(crate) fn note_attempt_failed(&self, cause: Cause) {
        self.counters.attempts_failed[cause.index()].fetch_add(1, Relaxed);
    }

    /// Lets the engine go: its process ends when the last run that uses it has.
    pub(crate) fn discard_engine(&self) {
        let engine = self.loaded.engine.lock().take();
        *self.loaded.identity.lock() = None;
        drop(engine); // Outside the lock: ending a process may take its time.
    }
}
