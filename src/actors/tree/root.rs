//! The root: owns the lives of admission, sessions, the GPU monitor and the pool supervisors.
//!
//! Above it stands only the runtime's guardian ([`Orchestrator`](crate::Orchestrator)), which starts it again when it
//! dies. One pool's failure never touches another's actors.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use crate::actors::admission::Admission;
use crate::actors::admission::rollouts::RolloutsWatch;
use crate::actors::admission::sessions::Sessions;
use crate::actors::dispatch::leaving::sweep;
use crate::actors::kit::children::{Children, KillInOrder, Next, STOPPED, SUPERVISORS, Supervisor, death};
use crate::actors::pool::messages::PoolSupervisorMsg;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::{RootChild, RootMsg};
use crate::actors::tree::gpu_monitor::GpuMonitor;
use crate::actors::tree::pool_supervisor::{PoolSupervisor, PoolSupervisorArgs};
use crate::core::pool::restart::Breaker;

/// The actor.
pub(crate) struct Root;

/// Its state.
pub(crate) struct RootState {
    myself: ActorRef<RootMsg>,
    runtime: Arc<RuntimeShared>,
    children: Children<RootChild>,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = Arc<RuntimeShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<RootMsg>,
        runtime: Arc<RuntimeShared>,
    ) -> Result<RootState, ActorProcessingErr> {
        let mut children = Children::new(runtime.env.clone(), SUPERVISORS);
        children.declare(RootChild::Sessions, "sessions");
        children.declare(RootChild::GpuMonitor, "gpu_monitor");
        children.declare(RootChild::Rollouts, "rollouts");
        for pool in runtime.pools.table().every() {
            children.declare(RootChild::Pool(pool.position), format!("pool_supervisor/{}", pool.position));
        }
        children.declare(RootChild::Admission, "admission");
        let mut state = RootState { myself, runtime, children };
        state.start_all(|_| true).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let _children = KillInOrder(state.descendants());
        state.runtime.env.fault_point("root");
        match message {
            RootMsg::StartChild { child, generation } if state.children.is_due(child, generation) => {
                state.restart_child(Next::Start(child)).await
            }
            RootMsg::StartChild { .. } | RootMsg::Ping => Ok(()),
            RootMsg::PoolsChanged => on_pools_changed(state).await,
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = state.children.dead(&event) else { return Ok(()) };
        if let RootChild::Pool(number) = child
            && state.runtime.pools.table().get(number).is_none_or(|pool| pool.is_leaving() && has_left(&event))
        {
            state.children.forget(child);
            let left = state.runtime.pools.table().get(number).cloned();
            state.runtime.pools.forget(number);
            left.iter().for_each(|pool| sweep(&state.runtime, pool));
            return Ok(());
        }
        let next = state.children.after_death(child);
        let outcome = state.restart_child(next).await;
        if outcome.is_err() {
            KillInOrder(state.descendants()).kill();
        }
        outcome
    }
}

/// Starts the supervisors of pools that have none yet.
async fn on_pools_changed(state: &mut RootState) -> Result<(), ActorProcessingErr> {
    let table = state.runtime.pools.table();
    for pool in table.every() {
        let child = RootChild::Pool(pool.position);
        if !state.children.knows(child) {
            state.children.declare(child, format!("pool_supervisor/{}", pool.position));
            state.restart_child(Next::Start(child)).await?;
        }
    }
    Ok(())
}

/// Whether a pool's supervisor ended because nothing of the pool is left, rather than died.
fn has_left(event: &SupervisionEvent) -> bool {
    death(event).is_some_and(|(_, cause)| cause == STOPPED)
}

impl RootState {
    /// Everything below, in the order in which it is killed when the root dies: leaves first.
    fn descendants(&self) -> Vec<ActorCell> {
        let table = self.runtime.pools.table();
        let pools = table.every().flat_map(|pool| pool.actors());
        pools.chain(self.children.living(|_| true)).collect()
    }
}

impl Supervisor for RootState {
    type Key = RootChild;

    fn children(&mut self) -> &mut Children<RootChild> {
        &mut self.children
    }

    async fn start(&mut self, child: RootChild) -> Result<ActorCell, SpawnErr> {
        let (runtime, parent) = (self.runtime.clone(), self.myself.get_cell());
        match child {
            RootChild::Sessions => {
                let (actor, _) = Actor::spawn_linked(None, Sessions, runtime.clone(), parent).await?;
                runtime.actors.sessions.publish(actor.clone());
                Ok(actor.get_cell())
            }
            RootChild::GpuMonitor => {
                let (actor, _) = Actor::spawn_linked(None, GpuMonitor, runtime.clone(), parent).await?;
                runtime.actors.gpu_monitor.publish(actor.clone());
                Ok(actor.get_cell())
            }
            RootChild::Rollouts => {
                let (actor, _) = Actor::spawn_linked(None, RolloutsWatch, runtime.clone(), parent).await?;
                runtime.actors.rollouts_watch.publish(actor.clone());
                Ok(actor.get_cell())
            }
            RootChild::Pool(position) => {
                let gone = || SpawnErr::StartupFailed(format!("pool {position} is gone").into());
                let pool = runtime.pools.table().get(position).cloned().ok_or_else(gone)?;
                let args = PoolSupervisorArgs { runtime, pool: pool.clone() };
                let (actor, _) = Actor::spawn_linked(None, PoolSupervisor, args, parent).await?;
                pool.actors.supervisor.publish(actor.clone());
                // What an earlier life left half done, and what was wished while nobody could be reached.
                actor.cast(PoolSupervisorMsg::Reconcile).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
                Ok(actor.get_cell())
            }
            RootChild::Admission => {
                let (actor, _) = Actor::spawn_linked(None, Admission, runtime.clone(), parent).await?;
                runtime.actors.admission.publish(actor.clone());
                Ok(actor.get_cell())
            }
        }
    }

    fn start_later(&mut self, child: RootChild, generation: u64, after: Duration, _: Breaker) {
        self.myself.send_after(after, move || RootMsg::StartChild { child, generation });
    }
}
