//! What outlives the actors of one pool: its parts, and each worker's place.
//!
//! Each field has one owner that writes it; the others read it as of now. A restarted actor reads the truth from here
//! and from the ledger instead of being told what it missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::time::Duration;

use parking_lot::Mutex;
use ractor::ActorCell;

use crate::actors::metrics::counters::Counters;
use crate::actors::metrics::samples::Samples;
use crate::actors::pool::devices::Devices;
use crate::actors::pool::messages::PoolManagerMsg;
use crate::actors::pool::parts::{Capacity, Figures, PoolActors, PoolLife, PoolModel, ReplicaSet, Waiting};
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::replica::parts::Placement;
use crate::actors::pool::revision::{Reloads, Revision};
use crate::config::{CTX_DEFAULT, ConfigError, PoolConfig, Resolved};
use crate::core::fairness::Accounts;
use crate::core::id::{ClientId, DeviceMask, PoolId, ReplicaId, TaskSeq};
use crate::core::pool::lifecycle::{Intent, PoolState, ReplicaState, next_try};
use crate::core::queue::overflow::FullPolicy;
use crate::core::queue::predict::ServiceRate;
use crate::core::task::resume::{DeterminismClass, LossRule};
use crate::core::task::{Priority, TaskRequest};
use crate::env::Env;
use crate::gpu::dyn_engine::EngineFactory;
use crate::planted::seeded_bug;

/// One pool.
pub(crate) struct PoolShared {
    /// Its number. Of those that a runtime starts with, the place in the configuration.
    pub(crate) position: u16,
    pub(crate) id: PoolId,
    /// As it was configured. What a reload may change is in its revision.
    pub(crate) config: Arc<PoolConfig>,
    /// What it serves, and whether its engines have said that they are the same.
    pub(crate) model: PoolModel,
    /// The devices that it may use (ORCH-3011).
    pub(crate) mask: DeviceMask,
    pub(crate) env: Env,
    /// The devices of this host.
    pub(crate) devices: Arc<Devices>,
    pub(crate) factory: EngineFactory,
    pub(crate) replicas: Vec<ReplicaShared>,
    /// Where its actors can be reached.
    pub(crate) actors: PoolActors,
    /// Whether it serves, drains, leaves or has stopped.
    pub(crate) life: PoolLife,
    /// What waits, and who has been served how much. Written by the queue.
    pub(crate) waiting: Waiting,
    /// What its slots deliver, and how many are on offer. Written by the pool manager.
    pub(crate) capacity: Capacity,
    /// What has been measured.
    pub(crate) figures: Figures,
    /// The other pools with its engine, here and at other nodes.
    pub(crate) set: ReplicaSet,
}

impl PoolShared {
    pub(crate) fn new(
        (position, row): (u16, usize),
        resolved: &Resolved,
        (env, devices): (Env, Arc<Devices>),
        factory: EngineFactory,
    ) -> Result<Arc<Self>, ConfigError> {
        let config = resolved.config.pools[row].clone();
        let id = PoolId::parse(&config.id)
            .map_err(|error| ConfigError { path: format!("pools[{row}].id"), message: error.to_string() })?;
        let config = Arc::new(config);
        let revision = Revision::first(&config);
        let replicas = replicas(&id, &config, (resolved, row), &devices, &revision)?;
        let ctx = AtomicU32::new(config.ctx.unwrap_or(CTX_DEFAULT));
        let hold_mean = Duration::from_millis(config.timeouts.run_guess_ms);
        let slots = config.slots.saturating_mul(config.replicas.len() as u32);
        let accounts = Mutex::new(Accounts::new(config.cost.weights(), config.queue.class_weights()));
        Ok(Arc::new(PoolShared {
            position,
            mask: config.mask()?,
            id,
            config,
            env,
            devices,
            factory,
            replicas,
            actors: PoolActors::default(),
            model: PoolModel {
                family: AtomicU64::new(revision.family()),
                reloads: Mutex::new(Reloads::new(revision)),
                ctx,
                pinned: Mutex::default(),
            },
            waiting: Waiting {
                depth: Default::default(),
                wanted: AtomicU32::new(0),
                backlog: Mutex::default(),
                accounts,
                settlements: Mutex::default(),
            },
            capacity: Capacity {
                rate: Mutex::new(ServiceRate { slots_ready: 0, slots, hold_mean, measured: false }),
                held: Mutex::default(),
                offered: AtomicU32::new(0),
                nudged: AtomicBool::new(false),
            },
            figures: Figures {
                samples: Samples::default(),
                objectives: Mutex::new(resolved.config.objectives.wanted()),
                latency_view: Mutex::default(),
                counters: Counters::default(),
            },
            life: PoolLife { retired_before: AtomicU32::new(u32::MAX), ..PoolLife::default() },
            set: ReplicaSet::default(),
        }))
    }

    /// What the operator wants.
    pub(crate) fn intent(&self) -> Intent {
        match self.life.intent.load(SeqCst) {
            0 => Intent::Serve,
            1 => Intent::Drain,
            _ => Intent::Stop,
        }
    }

    /// Advances to what the operator wants, never back. Returns whether that was a step.
    pub(crate) fn advance_intent(&self, intent: Intent) -> bool {
        let is_step = self.life.intent.fetch_max(intent as u8, SeqCst) < intent as u8;
        self.life.state_changed.notify_waiters();
        is_step
    }

    /// Where the pool stands now.
    pub(crate) fn state(&self) -> PoolState {
        PoolState::of(self.intent(), self.replicas.iter().map(ReplicaShared::state))
    }

    /// Whether nothing that waits here can be expected to run: the pool has stopped, or every breaker is open. What
    /// waits for a node that is gone may run in a pool of the same set.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self.state() {
            PoolState::Stopped => true,
            PoolState::Broken => !(self.is_remote() && self.peers().any(|other| other.replicas_ready() > 0)),
            _ => false,
        }
    }

    /// How long until the first replica that is down is tried again.
    pub(crate) fn next_try(&self) -> Option<Duration> {
        next_try(self.env.now(), self.replicas.iter().map(ReplicaShared::state))
    }

    /// How long a new task of this class would wait, of this client and weight, as of now, and when it should come back
    /// if it is refused; `None` is a client of whom nothing waits.
    pub(crate) fn expected_wait(&self, class: Priority, client: Option<(&ClientId, u32)>) -> (Duration, Duration) {
        let backlog = *self.waiting.backlog.lock();
        // The accounts are locked only when somebody waits.
        let own = client
            .filter(|_| backlog.count != [0; 2])
            .map_or(0, |(client, _)| self.waiting.accounts.lock().waiting(client, class));
        let ahead = backlog.ahead(own, own, client.map_or(1, |(_, weight)| weight), class);
        let rate = *self.capacity.rate.lock();
        let is_free = ahead == 0 && self.slots_free() > 0;
        if is_free { Default::default() } else { (rate.wait(ahead), rate.advice(ahead)) }
    }

    /// When one who is refused a task of this class should come back.
    pub(crate) fn advice(&self, class: Priority) -> Duration {
        self.expected_wait(class, None).1
    }

    /// The rule for this task when its attempt is lost: by the pool's stated class, else by what its engines showed.
    pub(crate) fn loss_rule(&self, request: &TaskRequest) -> LossRule {
        self.config.resume.rule(request, self.told_class())
    }

    /// The determinism class of its engines: what is stated, `none` where one does not even repeat itself alone, else
    /// what all have shown, if they have shown any.
    pub(crate) fn told_class(&self) -> Option<DeterminismClass> {
        let served = self.revision().generation;
        let serve = self.replicas.iter().filter(|replica| replica.revision().generation == served);
        let shown = || serve.filter_map(|replica| *replica.loaded.self_test.lock());
        self.config.determinism_class.or_else(|| {
            let worst = shown().map(|shown| (shown.repeats_alone, shown.determinism_class)).min()?;
            match worst {
                (false, _) => Some(DeterminismClass::None),
                // Nothing is known: the best is hoped, since each token is compared.
                (true, DeterminismClass::None) => None,
                (true, class) => Some(class),
            }
        })
    }

    /// Tells the pool which others there are.
    pub(crate) fn meet<'a>(self: &Arc<Self>, all: impl Iterator<Item = &'a Arc<PoolShared>>) {
        let alike = |other: &&Arc<PoolShared>| !Arc::ptr_eq(self, other) && self.config.engine == other.config.engine;
        *self.set.others.write() = all.filter(alike).map(Arc::downgrade).collect();
    }

    /// The other pools of its replica set whose engines have said that they are the same (ORCH-3007, ORCH-3046).
    pub(crate) fn peers(&self) -> impl Iterator<Item = Arc<PoolShared>> + '_ {
        self.same_spec().filter(|other| self.is_same_set(other))
    }

    /// Every other pool with its engine, whatever it serves now.
    pub(crate) fn others(&self) -> impl Iterator<Item = Arc<PoolShared>> + use<> {
        let others = self.set.others.read().clone();
        (0..others.len()).filter_map(move |index| others[index].upgrade())
    }

    /// Every pool that is one set with this one as far as what they are to serve goes.
    pub(crate) fn same_spec(&self) -> impl Iterator<Item = Arc<PoolShared>> + '_ {
        let family = self.model.family.load(Relaxed);
        self.others().filter(move |other| other.model.family.load(Relaxed) == family)
    }

    /// Whether tasks wait in a peer's queue that could use a slot.
    pub(crate) fn is_wanted_by_peers(&self) -> bool {
        self.same_spec().any(|other| other.waiting.wanted.load(Relaxed) > 0)
    }

    /// Whether the two pools are one replica set (ORCH-3007), by all that is known of them so far.
    pub(crate) fn is_in_set_with(&self, other: &PoolShared) -> bool {
        let ours = self.model.pinned.lock().clone(); // Never two pins locked at once.
        let same_ctx = self.model.ctx.load(Relaxed) == other.model.ctx.load(Relaxed);
        let same_family = self.model.family.load(Relaxed) == other.model.family.load(Relaxed);
        same_ctx && same_family && ours == *other.model.pinned.lock()
    }

    /// Whether the other pool gives the same tokens: one set, and their engines have said so.
    pub(crate) fn is_same_set(&self, other: &PoolShared) -> bool {
        self.model.pinned.lock().is_some() && self.is_in_set_with(other)
    }

    /// Whether it has free slots and nothing of its own to run in them.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.wanted.load(Relaxed) == 0 && self.intent() == Intent::Serve && self.slots_free() > 0
    }

    /// Whether its queue could take a task of this class in, or would make room for it, as of now.
    pub(crate) fn has_room(&self, class: Priority) -> bool {
        let bounds = self.config.queue.bounds();
        let depth = self.waiting.depth[class.index()].load(Relaxed);
        let has_slot = self.capacity.offered.load(Relaxed) > 0 && self.depth_total() == 0;
        has_slot
            || bounds.policy != FullPolicy::Reject
            || depth < bounds.class[class.index()] && self.depth_total() < bounds.pool
    }

    /// Tasks that are charged and have not ended.
    pub(crate) fn unsettled(&self) -> usize {
        let accounts = self.waiting.accounts.lock(); // Held over both: the queue takes a settlement and its charge away under it.
        let ended = self.waiting.settlements.lock().iter().filter(|(seq, _)| accounts.is_charged(*seq)).count();
        accounts.charged() - ended
    }

    /// Clients with tasks that wait or run: name, weight, tasks that wait in each class, tasks that run.
    pub(crate) fn busy_clients(&self) -> Vec<(ClientId, u32, [u32; 2], u32)> {
        let accounts = self.waiting.accounts.lock(); // Held over both, as above.
        let ended: Vec<TaskSeq> = self.waiting.settlements.lock().iter().map(|(seq, _)| *seq).collect();
        accounts.busy(&ended)
    }

    /// Free slots of the replicas that are Ready.
    pub(crate) fn slots_free(&self) -> u32 {
        let ready = self.replicas.iter().filter(|replica| replica.state().is_ready() && !replica.capacity.kv.is_full());
        ready.map(|replica| replica.capacity.slots.free()).sum()
    }

    /// Replicas that are Ready.
    pub(crate) fn replicas_ready(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.state().is_ready()).count()
    }

    /// Whether any of its replicas has a KV cache whose size is known.
    pub(crate) fn knows_kv(&self) -> bool {
        self.replicas.iter().any(|replica| replica.capacity.kv.capacity().is_some())
    }

    /// Slots that are taken, of all replicas.
    pub(crate) fn slots_used(&self) -> u32 {
        self.replicas.iter().map(|replica| replica.capacity.slots.used()).sum()
    }

    /// Waiting tasks of all classes.
    pub(crate) fn depth_total(&self) -> u32 {
        self.waiting.depth.iter().map(|depth| depth.load(Relaxed)).sum()
    }

    /// Tells the pool manager that slots, replicas or the queue have changed, unless it is about to look anyway.
    pub(crate) fn nudge_manager(&self) {
        if !self.capacity.nudged.swap(true, SeqCst) && !self.actors.manager.cast(PoolManagerMsg::Reconcile) {
            self.capacity.nudged.store(false, SeqCst); // Nobody there: the next pool manager looks when it has its address.
        }
    }

    /// Shows how many slots are on offer to the queue; returns whether any are.
    ///
    /// The fence pairs with the one in `nudge_manager_if_starving`: either the pool manager, which looks at the slots
    /// behind this, sees one that was freed, or whoever freed it sees that none is on offer and nudges.
    pub(crate) fn publish_offered(&self, offered: u32) -> bool {
        self.capacity.offered.store(offered, SeqCst);
        fence(SeqCst);
        offered > 0
    }

    /// Nudges the pool manager about a slot that was freed, when the queue has none on offer. With some on offer it
    /// hears from the next task anyway.
    pub(crate) fn nudge_manager_if_starving(&self) {
        if seeded_bug!(LostNudge) {
            return;
        }
        fence(SeqCst);
        if self.capacity.offered.load(SeqCst) == 0 || self.intent() != Intent::Serve || self.is_wanted_by_peers() {
            self.nudge_manager();
        }
    }

    /// The pool manager looks now: what changes from here on needs a nudge again.
    pub(crate) fn accept_nudges(&self) {
        self.capacity.nudged.store(false, SeqCst);
    }

    /// The pool's actors in the order in which they are killed when a supervisor above them dies.
    pub(crate) fn actors(&self) -> Vec<ActorCell> {
        let workers = self.replicas.iter().filter_map(|replica| replica.life.worker.cell());
        workers
            .chain(self.actors.manager.cell())
            .chain(self.actors.queue.cell())
            .chain(self.actors.latency.cell())
            .collect()
    }

    /// Moves a worker's place to another state, and tells who waits for it.
    pub(crate) fn set_replica_state(&self, index: u16, state: ReplicaState) {
        *self.replicas[index as usize].life.state.lock() = state;
        self.nudge_manager();
        self.life.state_changed.notify_waiters();
    }
}

/// The replicas of a pool as they are configured, none of which has a worker yet.
fn replicas(
    id: &PoolId,
    config: &PoolConfig,
    (resolved, row): (&Resolved, usize),
    devices: &Devices,
    revision: &Arc<Revision>,
) -> Result<Vec<ReplicaShared>, ConfigError> {
    let replica = |(index, replica): (usize, &crate::config::ReplicaConfig)| {
        let replica_id = ReplicaId { pool: id.clone(), index: index as u16 };
        let fault = resolved.fault_of(row, index).map(ToString::to_string);
        let mask = replica.mask()?;
        let cpus = if config.process.numa_affinity { devices.cpus_near(&mask) } else { Vec::new() };
        let place = ReplicaShared::new(replica_id, mask, config.slots, revision.clone());
        if let Some(tokens) = config.memory.kv_tokens {
            place.capacity.kv.set_capacity(tokens);
        }
        let placement = Placement { fault, cpus: cpus.into(), ..place.placement };
        Ok(ReplicaShared { placement, ..place })
    };
    config.replicas.iter().enumerate().map(replica).collect()
}
