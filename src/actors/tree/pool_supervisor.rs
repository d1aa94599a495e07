//! The pool supervisor: owns the lives of one pool's actors, the pool's drain, and the steps of its reload.
//!
//! The root starts it; the public handle asks it to drain; the pool manager reports the drain's end. A crash of a
//! bookkeeper never restarts a worker. A worker that dies is started again with backoff, behind a breaker.
//!
//! Spec: ORCH-3002, ORCH-3003, ORCH-3031, ORCH-3053.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use crate::actors::dispatch::latency::Latency;
use crate::actors::dispatch::pool_manager::PoolManager;
use crate::actors::dispatch::queue::{QueueActor, QueueArgs};
use crate::actors::kit::children::{Children, KillInOrder, Next, PERMANENT_CHILDREN, STOPPED, Supervisor, death};
use crate::actors::pool::messages::{PoolChild, PoolManagerMsg, PoolSupervisorMsg, QueueMsg};
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::record::TaskRecord;
use crate::actors::tree::reload_walk::{Ending, after_end, walk};
use crate::actors::tree::retirement::look_whether_left;
use crate::actors::worker::{Worker, WorkerArgs};
use crate::core::pool::lifecycle::{Intent, PoolState, ReplicaState};
use crate::core::pool::restart::Breaker;
use crate::core::task::Terminal;
use crate::core::task::error::ErrorCode;
use crate::gpu::dyn_engine::DynEngine;

/// All that the actor needs.
pub(crate) struct PoolSupervisorArgs {
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) pool: Arc<PoolShared>,
}

/// The actor.
pub(crate) struct PoolSupervisor;

/// Its state.
pub(crate) struct PoolSupervisorState {
    pub(in crate::actors) myself: ActorRef<PoolSupervisorMsg>,
    pub(in crate::actors) runtime: Arc<RuntimeShared>,
    pub(in crate::actors) pool: Arc<PoolShared>,
    pub(in crate::actors) children: Children<PoolChild>,
    /// Workers that a reload has told to end.
    pub(in crate::actors) ending: BTreeMap<u16, Ending>,
    /// A look at the reload is due.
    pub(in crate::actors) looks_again: bool,
    /// Engines that were let go when the pool stopped; others may still hold them for a moment.
    pub(in crate::actors) let_go: Vec<Weak<dyn DynEngine>>,
}

impl Actor for PoolSupervisor {
    type Msg = PoolSupervisorMsg;
    type State = PoolSupervisorState;
    type Arguments = PoolSupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<PoolSupervisorMsg>,
        args: PoolSupervisorArgs,
    ) -> Result<PoolSupervisorState, ActorProcessingErr> {
        let PoolSupervisorArgs { runtime, pool } = args;
        let mut children = Children::new(pool.env.clone(), PERMANENT_CHILDREN);
        let name = |role: &str| format!("{role}/{}", pool.position);
        children.declare(PoolChild::Latency, name("latency"));
        children.declare(PoolChild::Queue, name("queue"));
        children.declare(PoolChild::PoolManager, name("pool_manager"));
        for index in 0..pool.replicas.len() as u16 {
            let name = format!("worker/{}/{index}", pool.position);
            children.declare_with_breaker(PoolChild::Worker(index), name, pool.config.restart.policy());
        }
        let ending = BTreeMap::new();
        let mut state =
            PoolSupervisorState { myself, runtime, pool, children, ending, looks_again: false, let_go: Vec::new() };
        let intent = state.pool.intent();
        if intent != Intent::Stop {
            // An earlier life may have left them Ready, and their workers are gone.
            (0..state.pool.replicas.len() as u16).for_each(|index| state.down(index));
        } else {
            state.let_engines_go(); // An earlier life may have died in the middle of that.
        }
        state.start_all(|child| is_wanted(intent, child)).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<PoolSupervisorMsg>,
        message: PoolSupervisorMsg,
        state: &mut PoolSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let _children = KillInOrder(state.pool.actors());
        state.pool.env.fault_point("pool_supervisor");
        match message {
            PoolSupervisorMsg::Drain => {
                on_drain(state);
                look_whether_left(state); // It may have stopped before it left.
            }
            PoolSupervisorMsg::Ping => {}
            PoolSupervisorMsg::Reload => walk(state).await?,
            PoolSupervisorMsg::Reconcile => {
                if state.pool.intent() == Intent::Drain {
                    on_drain(state);
                }
                walk(state).await?;
                look_whether_left(state);
            }
            PoolSupervisorMsg::LookAtReload => {
                state.looks_again = false;
                walk(state).await?;
            }
            PoolSupervisorMsg::Drained => stop_workers(state),
            PoolSupervisorMsg::DrainExpired => on_drain_expired(state),
            PoolSupervisorMsg::LookWhetherLeft => look_whether_left(state),
            PoolSupervisorMsg::StartChild { child, generation } => {
                if state.children.is_due(child, generation) && is_wanted(state.pool.intent(), child) {
                    state.restart_child(Next::Start(child)).await?;
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<PoolSupervisorMsg>,
        event: SupervisionEvent,
        state: &mut PoolSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = state.children.dead(&event) else { return Ok(()) };
        if let PoolChild::Worker(index) = child {
            let place = &state.pool.replicas[index as usize];
            place.discard_engine();
            let ready_since = place.life.ready_since.lock().take();
            state.children.was_healthy(child, ready_since);
            state.down(index);
        }
        if !is_wanted(state.pool.intent(), child) {
            return Ok(());
        }
        let outcome = match child {
            PoolChild::Worker(index) if state.ending.contains_key(&index) => {
                after_end(state, index);
                Ok(())
            }
            PoolChild::Worker(index) => on_worker_died(state, index, death(&event).map(|(_, cause)| cause)).await,
            _ => {
                let next = state.children.after_death(child);
                state.restart_child(next).await
            }
        };
        if outcome.is_err() {
            KillInOrder(state.pool.actors()).kill();
        }
        outcome
    }
}

impl Supervisor for PoolSupervisorState {
    type Key = PoolChild;

    fn children(&mut self) -> &mut Children<PoolChild> {
        &mut self.children
    }

    async fn start(&mut self, child: PoolChild) -> Result<ActorCell, SpawnErr> {
        let (pool, parent) = (self.pool.clone(), self.myself.get_cell());
        match child {
            PoolChild::Latency => {
                let (actor, _) = Actor::spawn_linked(None, Latency, pool.clone(), parent).await?;
                pool.actors.latency.publish(actor.clone());
                Ok(actor.get_cell())
            }
            PoolChild::Queue => {
                pool.actors.queue_generation.fetch_add(1, SeqCst);
                let args = QueueArgs { runtime: self.runtime.clone(), pool: pool.clone() };
                let (actor, _) = Actor::spawn_linked(None, QueueActor, args, parent).await?;
                pool.actors.queue.publish(actor.clone());
                // What came back between its look at the ledger and its address is found by a second look.
                actor.cast(QueueMsg::Refill).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
                pool.actors.manager.cast(PoolManagerMsg::QueueReplaced); // Nobody there: the next manager offers anew.
                // Those that were peers when they lent something, too.
                for other in pool.others() {
                    other.actors.manager.cast(PoolManagerMsg::PeerReplaced { pool: pool.position }); // A new one has lent nothing.
                }
                Ok(actor.get_cell())
            }
            PoolChild::PoolManager => {
                let (actor, _) = Actor::spawn_linked(None, PoolManager, pool.clone(), parent).await?;
                pool.actors.manager.publish(actor.clone());
                // Only now: what it offers before it can be reached would be answered to nobody.
                actor.cast(PoolManagerMsg::Begin).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
                Ok(actor.get_cell())
            }
            PoolChild::Worker(index) => {
                let args = WorkerArgs { runtime: self.runtime.clone(), pool: pool.clone(), index };
                let (actor, _) = Actor::spawn_linked(None, Worker, args, parent).await?;
                pool.replicas[index as usize].life.worker.publish(actor.clone());
                Ok(actor.get_cell())
            }
        }
    }

    fn start_later(&mut self, child: PoolChild, generation: u64, after: Duration, breaker: Breaker) {
        if let PoolChild::Worker(index) = child {
            let until = self.pool.env.now().after(after);
            let state = match breaker {
                Breaker::Open => ReplicaState::Broken { until },
                Breaker::Closed | Breaker::HalfOpen => ReplicaState::Backoff { until },
            };
            self.pool.set_replica_state(index, state);
            if self.pool.state() == PoolState::Broken {
                self.pool.actors.queue.cast(QueueMsg::PoolUnavailable); // Lost: a new queue looks by itself.
            }
        }
        self.myself.send_after(after, move || PoolSupervisorMsg::StartChild { child, generation });
    }
}

async fn on_worker_died(
    state: &mut PoolSupervisorState,
    index: u16,
    cause: Option<String>,
) -> Result<(), ActorProcessingErr> {
    let place = &state.pool.replicas[index as usize];
    place.counters.restarts.fetch_add(1, Relaxed);
    let cause = cause.unwrap_or_default();
    place.note_death(state.pool.env.now(), cause.clone());
    state.runtime.ledger.events.tell(|| place.death_event());
    let generation = place.revision().generation;
    if state.pool.intent() == Intent::Serve && state.pool.is_being_tried(generation) {
        let said =
            place.life.last_death.lock().as_ref().map(|(_, _, message)| format!("replica {}: {message}", place.id));
        let reason = format!("replica {}: {cause}", place.id);
        let whole = said.as_ref().unwrap_or(&reason).into();
        state.pool.fail_reload_with(generation, &reason, whole);
        return walk(state).await;
    }
    let next = state.children.after_death(PoolChild::Worker(index));
    state.restart_child(next).await
}

fn on_drain(state: &PoolSupervisorState) {
    state.pool.advance_intent(Intent::Drain);
    if state.pool.intent() == Intent::Drain {
        let limit = Duration::from_millis(state.pool.config.timeouts.drain_ms);
        state.myself.send_after(limit, || PoolSupervisorMsg::DrainExpired);
        state.pool.nudge_manager();
    }
}

fn on_drain_expired(state: &mut PoolSupervisorState) {
    if state.pool.intent() != Intent::Drain {
        return;
    }
    // What runs and can go on elsewhere does so when its worker stops.
    let accepted =
        |record: &Arc<TaskRecord>| record.phase().is_accepted() && state.pool.successor_for(record).is_none();
    for record in state.runtime.ledger.unfinished_in(state.pool.position).into_iter().filter(accepted) {
        let text = format!("pool {} was drained before the task could end", state.pool.id);
        let terminal = Terminal::error(ErrorCode::PoolUnavailable, text);
        let _ = state.runtime.ledger.seal(&record, None, terminal); // It has just ended by itself.
        state.pool.actors.queue.cast(QueueMsg::Withdraw { seq: record.seq }); // Lost: a new queue takes nothing sealed.
    }
    stop_workers(state);
}

fn stop_workers(state: &mut PoolSupervisorState) {
    state.pool.advance_intent(Intent::Stop);
    state.pool.abandon_reload();
    state.ending.clear();
    for worker in state.children.living(|child| matches!(child, PoolChild::Worker(_))) {
        worker.stop(Some(STOPPED.into()));
    }
    state.pool.actors.queue.cast(QueueMsg::PoolUnavailable); // Lost: a new queue looks by itself.
    state.let_engines_go();
    look_whether_left(state);
}

/// Whether this child should live: a stopped pool has no workers.
fn is_wanted(intent: Intent, child: PoolChild) -> bool {
    !matches!(child, PoolChild::Worker(_)) || intent != Intent::Stop
}

impl PoolSupervisorState {
    /// The pool has stopped: its engines end as soon as nobody else holds them.
    pub(in crate::actors) fn let_engines_go(&mut self) {
        for index in 0..self.pool.replicas.len() as u16 {
            self.pool.set_replica_state(index, ReplicaState::Stopped);
            let place = &self.pool.replicas[index as usize];
            self.let_go.extend(place.loaded.engine.lock().as_ref().map(Arc::downgrade));
            place.discard_engine();
        }
    }

    /// Takes a worker's place out of service until its next worker says otherwise.
    fn down(&self, index: u16) {
        let place = &self.pool.replicas[index as usize];
        if place.state() != ReplicaState::Stopped {
            self.pool.set_replica_state(index, ReplicaState::Preloading);
        }
    }
}
