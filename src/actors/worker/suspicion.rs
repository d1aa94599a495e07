//! What a worker does about an engine that is suspected, stuck, or left out for a while: it looks, and says when tasks
//! may come again.
//!
//! Spec: ORCH-3016, ORCH-3040.

use ractor::{ActorProcessingErr, ActorRef};
use tokio::time::sleep;

use crate::actors::pool::messages::WorkerMsg;
use crate::actors::worker::engine_watch::probe;
use crate::actors::worker::{OWN_WORD_GRACE, WorkerState};
use crate::core::pool::lifecycle::ReplicaState;
use crate::core::units::Timestamp;
use crate::gpu::engine::EngineError;
use crate::planted::seeded_bug;

pub(in crate::actors) fn on_suspected(state: &mut WorkerState, myself: ActorRef<WorkerMsg>, cause: &EngineError) {
    if state.identity.is_none() || std::mem::replace(&mut state.suspected, true) {
        return; // It is not in service, or is being looked at already.
    }
    let Some(engine) = state.engine.clone() else { return };
    tracing::warn!(replica_id = %state.place().id, %cause, "an engine is suspected");
    state.set(ReplicaState::Suspect);
    let (pool, index, begun) = (state.pool.clone(), state.index, state.pool.env.now());
    state.beside(&myself.clone(), async move {
        let result = match probe(&*engine).await {
            // Whoever gives tokens lives, however late it answers questions.
            Err(error) if !matches!(error, EngineError::Replaced(_) | EngineError::Panicked { .. }) => {
                let is_alive = pool.replicas[index as usize].outlier.was_alive_since(begun);
                if is_alive && !seeded_bug!(LateProbeKills) { Ok(()) } else { Err(error) }
            }
            result => result.map(drop),
        };
        if result.is_err() {
            sleep(OWN_WORD_GRACE).await; // `EngineFailed` comes first, if the engine has a word of its own.
        }
        let _ = myself.cast(WorkerMsg::Probed(result));
    });
}

/// Looks again when the wait is over, in which the replica gets no task.
pub(in crate::actors) fn on_ejected(state: &mut WorkerState, myself: &ActorRef<WorkerMsg>, until: Timestamp) {
    let (pool, index) = (state.pool.clone(), state.index);
    state.beside(myself, async move {
        let mut next = Some(until);
        while let Some(until) = next {
            pool.env.sleep_until(until).await;
            next = pool.replicas[index as usize].look_at_conduct(pool.env.now());
        }
        pool.nudge_manager();
    });
}

/// Takes the replica out of service until it is restarted: what runs on it may end, nothing new begins.
pub(in crate::actors) fn on_stuck(state: &mut WorkerState, cause: &EngineError) {
    if state.identity.is_some() {
        tracing::warn!(replica_id = %state.place().id, %cause, "an engine is given no more tasks");
        state.stuck += 1;
        state.set(ReplicaState::Suspect);
    }
}

/// Puts the replica back into service when no slot of it is stuck any more.
pub(in crate::actors) fn on_unstuck(state: &mut WorkerState) {
    state.stuck = state.stuck.saturating_sub(1);
    if state.stuck == 0 && !state.suspected && state.identity.is_some() {
        state.set(ReplicaState::Ready);
    }
}

pub(in crate::actors) fn on_probed(
    state: &mut WorkerState,
    result: Result<(), EngineError>,
) -> Result<(), ActorProcessingErr> {
    if let Err(cause) = result {
        return state.fail(cause);
    }
    state.suspected = false;
    if state.stuck == 0 {
        state.set(ReplicaState::Ready);
    }
    Ok(())
}
