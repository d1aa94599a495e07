//! The worker: owns one engine on one device mask, and the attempts that run on it.
//!
//! The pool manager sends it tasks; its own background tasks tell it about its engine. It promises that no attempt
//! outlives it: dropping its state aborts them, their guards seal their logs and give their slots back. Its supervisor
//! discards the engine when the worker dies by itself; when the supervisor dies, the next worker adopts the engine.
//!
//! Spec: ORCH-3001, ORCH-3002, ORCH-3003, ORCH-3010, ORCH-3032, ORCH-3046.

pub(crate) mod attempt;
pub(crate) mod engine_life;
pub(in crate::actors) mod engine_watch;
pub(in crate::actors) mod load;
pub(in crate::actors) mod lost;
pub(in crate::actors) mod output;
pub(in crate::actors) mod quarantine;
pub mod self_test;
pub(in crate::actors) mod suspicion;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinSet;

use crate::actors::dispatch::leaving::until_devices_are_left;
use crate::actors::pool::lease::{Assignment, SlotLease};
use crate::actors::pool::messages::{QueueMsg, WorkerMsg};
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::revision::Revision;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::actors::worker::attempt::Attempt;
use crate::actors::worker::engine_watch::{Attempts, adopt, measure};
use crate::actors::worker::load::Load;
use crate::actors::worker::self_test::identity::check_identity;
use crate::actors::worker::self_test::study::Study;
use crate::actors::worker::suspicion::{on_ejected, on_probed, on_stuck, on_suspected, on_unstuck};
use crate::core::pool::lifecycle::{PoolState, ReplicaState};
use crate::core::task::failure::Cause;
use crate::core::task::trace::TraceKind;
use crate::core::units::Timestamp;
use crate::env::timeout_awake;
use crate::gpu::dyn_engine::{DynEngine, text_of};
use crate::gpu::engine::{EngineContext, EngineError, EngineInfo, Repeats};
use crate::planted::seeded_bug;

/// How long an engine that does not answer has to say what it ended of: how its process ended says more than a broken
/// connection. It gets no task meanwhile.
pub(in crate::actors) const OWN_WORD_GRACE: Duration = Duration::from_secs(1);

/// How long beyond its wait a failed device may stay out before those who wait for its pool are turned out.
const DEVICE_PATIENCE: Duration = Duration::from_secs(300);

/// All that the actor needs.
pub(crate) struct WorkerArgs {
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) pool: Arc<PoolShared>,
    pub(crate) index: u16,
}

/// The actor.
pub(crate) struct Worker;

/// Its state.
pub(crate) struct WorkerState {
    pub(in crate::actors) runtime: Arc<RuntimeShared>,
    pub(in crate::actors) pool: Arc<PoolShared>,
    pub(in crate::actors) index: u16,
    pub(in crate::actors) engine: Option<Arc<dyn DynEngine>>,
    /// What the engine was started with.
    pub(in crate::actors) revision: Option<Arc<Revision>>,
    /// Set while tasks may be run.
    pub(in crate::actors) identity: Option<Arc<ReplicaIdentity>>,
    /// What is known of its determinism; `None` when it was taken over from an earlier worker.
    pub(in crate::actors) repeats: Option<Repeats>,
    /// A look at the engine is under way.
    pub(in crate::actors) suspected: bool,
    /// Slots for which it gets no more tasks: it is restarted when its last task has ended.
    pub(in crate::actors) stuck: u32,
    pub(in crate::actors) attempts: Attempts,
    /// Background tasks; aborted with the worker.
    pub(in crate::actors) tasks: JoinSet<()>,
}

impl Actor for Worker {
    type Msg = WorkerMsg;
    type State = WorkerState;
    type Arguments = WorkerArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkerMsg>,
        args: WorkerArgs,
    ) -> Result<WorkerState, ActorProcessingErr> {
        let WorkerArgs { runtime, pool, index } = args;
        myself.cast(WorkerMsg::Prepare)?;
        let attempts = Attempts::new(pool.config.slots);
        Ok(WorkerState {
            runtime,
            pool,
            index,
            engine: None,
            revision: None,
            identity: None,
            repeats: None,
            suspected: false,
            stuck: 0,
            attempts,
            tasks: JoinSet::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkerMsg>,
        message: WorkerMsg,
        state: &mut WorkerState,
    ) -> Result<(), ActorProcessingErr> {
        state.pool.env.fault_point("worker");
        match message {
            WorkerMsg::Run { assignment, lease } => on_run(state, &myself, assignment, lease),
            WorkerMsg::Prepare => return on_prepare(state, myself),
            WorkerMsg::Made(result) => return on_made(state, myself, result),
            WorkerMsg::Preloaded(result) => return on_preloaded(state, myself, result),
            WorkerMsg::Adopted(result) => return on_adopted(state, myself, result),
            WorkerMsg::EngineSuspected(cause) => on_suspected(state, myself, &cause),
            WorkerMsg::Ejected { until } => on_ejected(state, &myself, until),
            WorkerMsg::EngineStuck(cause) => on_stuck(state, &cause),
            WorkerMsg::EngineUnstuck => on_unstuck(state),
            WorkerMsg::DeviceStaysDown => on_device_stays_down(state),
            WorkerMsg::Probed(result) => return on_probed(state, result),
            WorkerMsg::EngineFailed(cause) => return state.fail(cause),
            WorkerMsg::SidePanicked(text) => return Err(format!("a panic beside the mailbox: {text}").into()),
        }
        Ok(())
    }
}

fn on_run(state: &mut WorkerState, myself: &ActorRef<WorkerMsg>, assignment: Assignment, lease: SlotLease) {
    let (Some(engine), Some(identity)) = (&state.engine, &state.identity) else {
        return; // Not Ready any more; dropped, the task goes back to the queue and the slot is free.
    };
    let attempt = Attempt {
        runtime: state.runtime.clone(),
        pool: state.pool.clone(),
        engine: engine.clone(),
        identity: identity.clone(),
        worker: myself.clone(),
        dying_of: state.place().life.failing.lock().clone(),
        lease,
        begun: Timestamp::from_micros(0),
    };
    let slot = attempt.lease.slot;
    // In a box of its own: tokio moves what it is given from hand to hand, and an attempt is large.
    let run = Box::pin(attempt::run(attempt, assignment));
    state.attempts.own(slot, tokio::spawn(run).abort_handle());
}

fn on_prepare(state: &mut WorkerState, myself: ActorRef<WorkerMsg>) -> Result<(), ActorProcessingErr> {
    *state.place().life.failing.lock() = Arc::default();
    if let Some((device, failure, until)) = state.pool.devices.unusable(&state.place().placement.mask) {
        return wait_for_device(state, myself, format!("device {device}: {failure}"), until);
    }
    state.set(ReplicaState::Preloading);
    let left_over = state.place().loaded.engine.lock().clone();
    let generation = state.place().revision().generation;
    let was_loaded =
        state.place().loaded.identity.lock().as_ref().is_some_and(|identity| identity.generation == generation);
    if let (Some(engine), true) = (left_over, was_loaded) {
        state.engine = Some(engine.clone());
        let (slots, limit) =
            (state.place().capacity.slots.total(), Duration::from_millis(state.pool.config.timeouts.stop_ms));
        state.beside(&myself.clone(), async move {
            let result = timeout_awake(limit, adopt(&*engine, slots)).await;
            let result = result.unwrap_or_else(|| Err(EngineError::Lost("its slots were not left in time".into())));
            let _ = myself.cast(WorkerMsg::Adopted(result)); // Fails only when this worker is gone.
        });
        return Ok(());
    }
    start_engine(state, myself);
    Ok(())
}

/// Starts nothing on a device that has failed, and looks again when it is well. That is no failure of this worker's,
/// unless a reload waits for it.
fn wait_for_device(
    state: &mut WorkerState,
    myself: ActorRef<WorkerMsg>,
    why: String,
    until: Timestamp,
) -> Result<(), ActorProcessingErr> {
    state.place().discard_engine();
    if state.pool.is_being_tried(state.place().revision().generation) {
        return state.fail(EngineError::DeviceLost(why.into()));
    }
    tracing::warn!(replica_id = %state.place().id, %why, "a worker waits for its device");
    state.set(ReplicaState::DeviceDown { until });
    let (pool, index) = (state.pool.clone(), state.index);
    state.beside(&myself.clone(), async move {
        let usable = pool.devices.until_usable(&pool.replicas[index as usize].placement.mask);
        tokio::pin!(usable);
        tokio::select! {
            biased;
            () = &mut usable => {}
            () = pool.env.sleep_until(until.after(DEVICE_PATIENCE)) => {
                let _ = myself.cast(WorkerMsg::DeviceStaysDown); // Gone, as below.
                usable.await;
            }
        }
        let _ = myself.cast(WorkerMsg::Prepare); // Gone: the next worker looks for itself.
    });
    Ok(())
}

/// Nobody waits for a device that does not come back: for its pool it is as if its breaker were open.
fn on_device_stays_down(state: &WorkerState) {
    state.set(ReplicaState::Broken { until: state.pool.env.now().after(DEVICE_PATIENCE) });
    if state.pool.state() == PoolState::Broken {
        state.pool.actors.queue.cast(QueueMsg::PoolUnavailable); // Lost: a new queue looks by itself.
    }
}

fn start_engine(state: &mut WorkerState, myself: ActorRef<WorkerMsg>) {
    let revision = state.place().revision();
    let slots = state.place().capacity.estimate.lock().get();
    state.place().capacity.slots_started.store(slots, Relaxed);
    state.place().capacity.slots.set_limit(slots);
    *state.place().loaded.self_test.lock() = None;
    state.place().capacity.kv.set_capacity(revision.config.memory.kv_tokens.unwrap_or(0)); // What an earlier one said of itself is not its own.
    state.place().forget_conduct(revision.config.resume.outlier_policy());
    state.pool.env.trace(|| TraceKind::Renewed { pool: state.pool.position, replica: state.index });
    state.revision = Some(revision.clone());
    let context = EngineContext {
        replica: state.place().id.clone(),
        mask: state.place().placement.mask.clone(),
        pool: revision.config.clone(),
        env: state.pool.env.clone(),
        site: state.place().loaded.site.clone(),
        cpus: state.place().placement.cpus.clone(),
        slots,
    };
    let (pool, index) = (state.pool.clone(), state.index);
    state.beside(&myself.clone(), async move {
        let _ = myself.cast(WorkerMsg::Made(engine_life::make(&pool, index, context).await)); // Gone: so is the engine.
    });
}

fn on_made(
    state: &mut WorkerState,
    myself: ActorRef<WorkerMsg>,
    result: Result<Arc<dyn DynEngine>, EngineError>,
) -> Result<(), ActorProcessingErr> {
    state.place().discard_engine();
    let (engine, revision) = match (result, state.revision.clone()) {
        (Ok(engine), Some(revision)) => (engine, revision),
        (Ok(_), None) => return Ok(()),
        (Err(error), _) => {
            state.place().counters.preload_failures.fetch_add(1, Relaxed);
            return state.fail(error);
        }
    };
    *state.place().loaded.engine.lock() = Some(engine.clone());
    state.engine = Some(engine.clone());
    let (runtime, pool, index) = (state.runtime.clone(), state.pool.clone(), state.index);
    state.beside(&myself.clone(), async move {
        until_devices_are_left(&runtime, &pool).await;
        let result = Load { pool: &pool, index, revision: &revision, engine: &*engine }.run().await;
        let _ = myself.cast(WorkerMsg::Preloaded(result));
    });
    Ok(())
}

fn on_preloaded(
    state: &mut WorkerState,
    myself: ActorRef<WorkerMsg>,
    result: Result<EngineInfo, EngineError>,
) -> Result<(), ActorProcessingErr> {
    state.repeats = result.as_ref().ok().map(|info| info.repeats);
    let checked = result.and_then(|info| check_identity(&state.pool, state.place(), state.revision.as_ref(), info));
    let identity = match checked {
        Ok(identity) => identity,
        Err(error) => {
            state.place().counters.preload_failures.fetch_add(1, Relaxed);
            return state.fail(error);
        }
    };
    state.place().counters.preload_successes.fetch_add(1, Relaxed);
    tracing::info!(
        replica_id = %state.place().id,
        engine_version = %identity.engine_version,
        model_digest = %identity.model_digest,
        "a worker is ready"
    );
    become_ready(state, myself)
}

fn on_adopted(
    state: &mut WorkerState,
    myself: ActorRef<WorkerMsg>,
    result: Result<(), EngineError>,
) -> Result<(), ActorProcessingErr> {
    match result {
        Ok(()) => return become_ready(state, myself),
        Err(_) => start_engine(state, myself), // It died together with its last worker.
    }
    Ok(())
}

/// # Errors
/// When a device has failed meanwhile: whoever told its workers may not have reached this one.
fn become_ready(state: &mut WorkerState, myself: ActorRef<WorkerMsg>) -> Result<(), ActorProcessingErr> {
    if let Some((device, failure, _)) = state.pool.devices.unusable(&state.place().placement.mask) {
        return state.fail(EngineError::DeviceLost(format!("device {device}: {failure}").into()));
    }
    let Some(engine) = state.engine.clone() else { return Ok(()) };
    let identity = state.place().loaded.identity.lock().clone();
    state.identity = identity;
    *state.place().life.ready_since.lock() = Some(state.pool.env.now());
    state.set(ReplicaState::Ready);
    if let Some(until) = state.place().look_at_conduct(state.pool.env.now()) {
        on_ejected(state, &myself, until); // An earlier worker's engine, which it has taken over.
    }
    let watched = (engine.clone(), myself.clone());
    state.beside(&myself, async move {
        let (engine, worker) = watched;
        let cause = engine.failure().await;
        let _ = worker.cast(WorkerMsg::EngineFailed(cause));
    });
    let (pool, index) = (state.pool.clone(), state.index);
    if let Some(repeats) = state.repeats.take() {
        let (pool, engine, worker) = (pool.clone(), engine.clone(), myself.clone());
        state.beside(&myself, async move {
            if let Err(panicked) = (Study { pool: &pool, index, engine: &*engine, repeats }).run().await {
                let _ = worker.cast(WorkerMsg::EngineFailed(panicked)); // Gone: so is its engine.
            }
        });
    }
    state.beside(&myself.clone(), async move { measure(&pool, index, &*engine, myself).await });
    Ok(())
}

impl WorkerState {
    /// Runs something beside the mailbox, for as long as the worker lives. Its panic is the worker's.
    pub(in crate::actors) fn beside(
        &mut self,
        myself: &ActorRef<WorkerMsg>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        while self.tasks.try_join_next().is_some() {} // Those that have ended, such as earlier waits.
        let worker = myself.clone();
        self.tasks.spawn(async move {
            if let Err(payload) = AssertUnwindSafe(work).catch_unwind().await
                && !seeded_bug!(LosePanic)
            {
                let _ = worker.cast(WorkerMsg::SidePanicked(text_of(&*payload))); // Gone: nothing is left to fail.
            }
        });
    }

    /// Fails, and leaves word why: ractor passes nothing on but a text.
    pub(in crate::actors) fn fail(&self, cause: EngineError) -> Result<(), ActorProcessingErr> {
        if cause.cause() == Cause::OutOfVram {
            // Now, while the attempts still hold their slots.
            let running = self.identity.as_ref().map(|_| self.place().capacity.slots.used());
            self.place().note_out_of_vram(self.pool.env.now(), running);
        }
        let _ = self.place().life.failing.lock().set(cause.clone()); // Said already: the first word counts.
        Err(cause.into())
    }

    pub(in crate::actors) fn place(&self) -> &ReplicaShared {
        &self.pool.replicas[self.index as usize]
    }

    pub(in crate::actors) fn set(&self, to: ReplicaState) {
        self.pool.set_replica_state(self.index, to);
    }
}
