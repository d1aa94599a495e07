//! What outlives the actors: the runtime's parts, each pool's parts, each worker's place.
//!
//! Each field has one owner that writes it; the others read it as of now. A restarted actor reads the truth from here
//! and from the ledger instead of being told what it missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::time::Duration;

use parking_lot::Mutex;
use ractor::ActorCell;
use tokio::sync::Notify;

use crate::actors::address::Address;
use crate::actors::admission::AdmissionMsg;
use crate::actors::event_log::ReplicaIdentity;
use crate::actors::gate::IntakeGate;
use crate::actors::latency::{LatencyMsg, LatencyView, Samples};
use crate::actors::lease::SlotTable;
use crate::actors::ledger::Ledger;
use crate::actors::pool_manager::PoolManagerMsg;
use crate::actors::pool_supervisor::PoolSupervisorMsg;
use crate::actors::queue::QueueMsg;
use crate::actors::sessions::SessionsMsg;
use crate::actors::worker::WorkerMsg;
use crate::config::{CTX_DEFAULT, Config, ConfigError, PoolConfig};
use crate::core::error::ErrorCode;
use crate::core::id::{DeviceMask, PoolId, ReplicaId};
use crate::core::lifecycle::{Intent, PoolState, ReplicaState, next_try};
use crate::core::predict::ServiceRate;
use crate::core::task::Priority;
use crate::core::units::Timestamp;
use crate::env::Env;
use crate::gpu::engine::{AnyEngine, EngineFactory, Telemetry};

/// One runtime.
pub(crate) struct RuntimeShared {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) gate: Arc<IntakeGate>,
    pub(crate) pools: Vec<Arc<PoolShared>>,
    pub(crate) admission: Address<AdmissionMsg>,
    pub(crate) sessions: Address<SessionsMsg>,
    /// Refusals before a task was accepted, by [`ErrorCode::ALL`].
    pub(crate) rejected: [AtomicU64; 9],
    /// Refusals by the intake gate.
    pub(crate) gate_closed: AtomicU64,
}

/// One pool.
pub(crate) struct PoolShared {
    /// Its place in the configuration.
    pub(crate) position: u16,
    pub(crate) id: PoolId,
    pub(crate) config: Arc<PoolConfig>,
    /// The devices that it may use (ORCH-3011).
    pub(crate) mask: DeviceMask,
    pub(crate) env: Env,
    pub(crate) factory: EngineFactory,
    pub(crate) replicas: Vec<ReplicaShared>,
    pub(crate) supervisor: Address<PoolSupervisorMsg>,
    pub(crate) queue: Address<QueueMsg>,
    pub(crate) manager: Address<PoolManagerMsg>,
    pub(crate) latency: Address<LatencyMsg>,
    /// Longest context of one task, in tokens. Written by a worker when its engine says more than the configuration.
    pub(crate) ctx: AtomicU32,
    /// Engine version and model digest of the replica set (ORCH-3046). Held while a worker compares and joins.
    pub(crate) pinned: Mutex<Option<(String, String)>>,
    /// Counts the queue's lives, so that one that is being killed knows that it is not the newest any more.
    pub(crate) queue_generation: AtomicU64,
    /// What the operator wants. It only ever goes on from serving to draining to stopped: the public handle begins a drain,
    /// the pool's supervisor ends it, and the guardian stops what is left when the tree is gone.
    intent: AtomicU8,
    /// Waiting tasks by class. Written by the queue.
    pub(crate) depth: [AtomicU32; 2],
    /// Tasks ahead of a new one, by class. Written by the queue.
    pub(crate) ahead: [AtomicU64; 2],
    /// What the pool lately delivered. Written by the pool manager.
    pub(crate) rate: Mutex<ServiceRate>,
    /// Time that attempts ran, in microseconds, and how many, since the pool manager last looked.
    pub(crate) held: Mutex<(u64, u32)>,
    /// Slots on offer to the queue. Written by the pool manager.
    offered: AtomicU32,
    /// A nudge to the pool manager is on its way: slots that are freed meanwhile need no other.
    nudged: AtomicBool,
    pub(crate) samples: Samples,
    /// Percentiles. Written by the latency actor.
    pub(crate) latency_view: Mutex<Arc<LatencyView>>,
    pub(crate) counters: Counters,
    /// Wakes whoever waits for a change of the pool's state.
    pub(crate) state_changed: Notify,
}

/// One worker's place. Its slots and its engine outlive the actors around them.
pub(crate) struct ReplicaShared {
    pub(crate) id: ReplicaId,
    /// The devices that it uses.
    pub(crate) mask: DeviceMask,
    pub(crate) slots: SlotTable,
    pub(crate) worker: Address<WorkerMsg>,
    /// Where it stands. Written by its worker while that lives, by the pool's supervisor when it has died.
    state: Mutex<ReplicaState>,
    /// The engine of the worker's current life. A supervisor that dies takes its workers along, but the engines stay,
    /// and the next workers adopt them; a worker that dies by itself has its engine discarded by its supervisor.
    pub(crate) engine: Mutex<Option<Arc<dyn AnyEngine>>>,
    /// Since when the worker has been Ready in its current life. Written by it, taken by its supervisor.
    pub(crate) ready_since: Mutex<Option<Timestamp>>,
    /// What the engine said of itself when it was loaded.
    pub(crate) identity: Mutex<Option<Arc<ReplicaIdentity>>>,
    pub(crate) telemetry: Mutex<Telemetry>,
    pub(crate) started: [AtomicU64; 2],
    pub(crate) tokens_in: AtomicU64,
    pub(crate) tokens_out: AtomicU64,
    pub(crate) preload_successes: AtomicU64,
    pub(crate) preload_failures: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Runs whose engine did not confirm in time that it had stopped.
    pub(crate) stop_timeouts: AtomicU64,
}

/// What has happened in a pool since the start.
#[derive(Default)]
pub(crate) struct Counters {
    /// Tasks that its queue took in, by class.
    pub(crate) enqueued: [AtomicU64; 2],
    pub(crate) completed: AtomicU64,
    pub(crate) canceled: AtomicU64,
    /// Accepted tasks that failed, by [`ErrorCode::ALL`].
    failed: [AtomicU64; 9],
    /// Times that the full policy was applied.
    pub(crate) queue_full: AtomicU64,
}

impl Counters {
    /// The counter of accepted tasks that failed with this code.
    pub(crate) fn failed(&self, code: ErrorCode) -> &AtomicU64 {
        &self.failed[code_index(code)]
    }
}

/// The code's place in a table with one row for each code.
pub(crate) fn code_index(code: ErrorCode) -> usize {
    ErrorCode::ALL.iter().position(|known| *known == code).expect("ALL has every code")
}

impl PoolShared {
    pub(crate) fn new(
        position: u16,
        config: PoolConfig,
        env: Env,
        factory: EngineFactory,
    ) -> Result<Arc<Self>, ConfigError> {
        let id = PoolId::parse(&config.id)
            .map_err(|error| ConfigError { path: format!("pools[{position}].id"), message: error.to_string() })?;
        let replica = |(index, replica): (usize, &crate::config::ReplicaConfig)| {
            let replica_id = ReplicaId { pool: id.clone(), index: index as u16 };
            replica.mask().map(|mask| ReplicaShared::new(replica_id, mask, config.slots))
        };
        let replicas = config.replicas.iter().enumerate().map(replica).collect::<Result<Vec<_>, _>>()?;
        let ctx = AtomicU32::new(config.ctx.unwrap_or(CTX_DEFAULT));
        let hold_mean = Duration::from_millis(config.timeouts.run_guess_ms);
        Ok(Arc::new(PoolShared {
            position,
            mask: config.mask()?,
            id,
            config: Arc::new(config),
            env,
            factory,
            replicas,
            supervisor: Address::default(),
            queue: Address::default(),
            manager: Address::default(),
            latency: Address::default(),
            ctx,
            pinned: Mutex::default(),
            queue_generation: AtomicU64::new(0),
            intent: AtomicU8::new(0),
            depth: Default::default(),
            ahead: Default::default(),
            rate: Mutex::new(ServiceRate { slots_ready: 0, hold_mean }),
            held: Mutex::default(),
            offered: AtomicU32::new(0),
            nudged: AtomicBool::new(false),
            samples: Samples::default(),
            latency_view: Mutex::default(),
            counters: Counters::default(),
            state_changed: Notify::new(),
        }))
    }

    /// What the operator wants.
    pub(crate) fn intent(&self) -> Intent {
        match self.intent.load(SeqCst) {
            0 => Intent::Serve,
            1 => Intent::Drain,
            _ => Intent::Stop,
        }
    }

    /// Notes what the operator wants.
    pub(crate) fn set_intent(&self, intent: Intent) {
        self.intent.store(intent as u8, SeqCst);
        self.state_changed.notify_waiters();
    }

    /// Where the pool stands now.
    pub(crate) fn state(&self) -> PoolState {
        PoolState::of(self.intent(), self.replicas.iter().map(ReplicaShared::state))
    }

    /// Whether nothing that waits here can be expected to run: the pool has stopped, or every breaker is open.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self.state(), PoolState::Stopped | PoolState::Broken)
    }

    /// How long until the first replica that is down is tried again.
    pub(crate) fn next_try(&self) -> Option<Duration> {
        next_try(self.env.now(), self.replicas.iter().map(ReplicaShared::state))
    }

    /// How long a new task of this class would wait, as of now.
    pub(crate) fn expected_wait(&self, class: Priority) -> Duration {
        let ahead = self.ahead[class.index()].load(Relaxed);
        let rate = *self.rate.lock();
        if ahead == 0 && self.slots_free() > 0 { Duration::ZERO } else { rate.wait(ahead) }
    }

    /// Free slots of the replicas that are Ready.
    pub(crate) fn slots_free(&self) -> u32 {
        let ready = self.replicas.iter().filter(|replica| replica.state().is_ready());
        ready.map(|replica| replica.slots.free()).sum()
    }

    /// Slots that are taken, of all replicas.
    pub(crate) fn slots_used(&self) -> u32 {
        self.replicas.iter().map(|replica| replica.slots.used()).sum()
    }

    /// Waiting tasks of all classes.
    pub(crate) fn depth_total(&self) -> u32 {
        self.depth.iter().map(|depth| depth.load(Relaxed)).sum()
    }

    /// Tells the pool manager that slots, replicas or the queue have changed, unless it is about to look anyway.
    pub(crate) fn nudge_manager(&self) {
        if !self.nudged.swap(true, SeqCst) && !self.manager.cast(PoolManagerMsg::LookAround) {
            self.nudged.store(false, SeqCst); // Nobody there: the next pool manager looks when it has its address.
        }
    }

    /// Shows how many slots are on offer to the queue; returns whether any are.
    ///
    /// The fence pairs with the one in `nudge_manager_if_starving`: either the pool manager, which looks at the slots
    /// behind this, sees one that was freed, or whoever freed it sees that none is on offer and nudges.
    pub(crate) fn publish_offered(&self, offered: u32) -> bool {
        self.offered.store(offered, SeqCst);
        fence(SeqCst);
        offered > 0
    }

    /// Nudges the pool manager about a slot that was freed, when the queue has none on offer. With some on offer it hears
    /// from the next task anyway.
    pub(crate) fn nudge_manager_if_starving(&self) {
        fence(SeqCst);
        if self.offered.load(SeqCst) == 0 || self.intent() != Intent::Serve {
            self.nudge_manager();
        }
    }

    /// The pool manager looks now: what changes from here on needs a nudge again.
    pub(crate) fn accept_nudges(&self) {
        self.nudged.store(false, SeqCst);
    }

    /// Takes a Ready replica out of service until its worker has looked at it. For attempts, which are part of the worker.
    pub(crate) fn suspect_replica(&self, index: u16) {
        let mut state = self.replicas[index as usize].state.lock();
        if state.is_ready() {
            *state = ReplicaState::Suspect;
        }
    }

    /// The pool's actors in the order in which they are killed when a supervisor above them dies.
    pub(crate) fn actors(&self) -> Vec<ActorCell> {
        let workers = self.replicas.iter().filter_map(|replica| replica.worker.cell());
        workers.chain(self.manager.cell()).chain(self.queue.cell()).chain(self.latency.cell()).collect()
    }

    /// Moves a worker's place to another state, and tells who waits for it.
    pub(crate) fn set_replica_state(&self, index: u16, state: ReplicaState) {
        *self.replicas[index as usize].state.lock() = state;
        self.nudge_manager();
        self.state_changed.notify_waiters();
    }
}

impl ReplicaShared {
    fn new(id: ReplicaId, mask: DeviceMask, slots: u32) -> Self {
        ReplicaShared {
            id,
            mask,
            slots: SlotTable::new(slots),
            worker: Address::default(),
            state: Mutex::new(ReplicaState::Preloading),
            engine: Mutex::new(None),
            ready_since: Mutex::new(None),
            identity: Mutex::new(None),
            telemetry: Mutex::default(),
            started: Default::default(),
            tokens_in: AtomicU64::new(0),
            tokens_out: AtomicU64::new(0),
            preload_successes: AtomicU64::new(0),
            preload_failures: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            stop_timeouts: AtomicU64::new(0),
        }
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> ReplicaState {
        *self.state.lock()
    }

    /// Lets the engine go: its process ends when the last run that uses it has.
    pub(crate) fn discard_engine(&self) {
        let engine = self.engine.lock().take();
        *self.identity.lock() = None;
        drop(engine); // Outside the lock: ending a process may take its time.
    }
}
