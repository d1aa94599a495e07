//! How a pool's supervisor carries out a reload: it looks which step is next, takes it, and looks again a moment later.
//!
//! Nothing of a reload lives here but which workers have been told to end: a supervisor that dies is followed by one
//! that sees the same facts and goes on.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ractor::ActorProcessingErr;

use crate::actors::kit::children::{Next, STOPPED, Supervisor};
use crate::actors::pool::messages::{PoolChild, PoolSupervisorMsg, QueueMsg};
use crate::actors::pool::reload::Plan;
use crate::actors::pool::revision::Revision;
use crate::actors::task::record::TaskRecord;
use crate::actors::tree::pool_supervisor::PoolSupervisorState;
use crate::core::pool::lifecycle::{Intent, ReplicaState};
use crate::core::pool::reload::Step;
use crate::core::task::error::ErrorCode;
use crate::core::task::{Phase, Terminal};
use crate::core::units::Timestamp;
use crate::gpu::dyn_engine::DynEngine;
use crate::planted::seeded_bug;

/// Time between two looks at a reload that waits for something.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Takes every step of the reload under way, if there is one, that can be taken now.
///
/// # Errors
/// When a worker cannot be started and the restart rule says to escalate.
pub(in crate::actors) async fn walk(state: &mut PoolSupervisorState) -> Result<(), ActorProcessingErr> {
    start_after_ends(state).await?;
    loop {
        let Some(plan) = state.pool.reload_plan(|index| state.ending.contains_key(&index)) else { return Ok(()) };
        if state.pool.intent() != Intent::Serve && !plan.is_way_back {
            let model = &plan.goal.spec.model;
            let reason = format!("the pool was drained before it had {model:?} on all replicas");
            state.pool.fail_reload(plan.of, reason);
            if plan.is_served {
                state.pool.end_reload(plan.of); // It serves the new model: those that have it finish what there is.
                return Ok(());
            }
            continue; // It serves the old one: who has lost it gets it back, and finishes what there is.
        }
        match plan.step {
            // Whoever is giving it a task at this moment is seen at the next look.
            Step::TakeOut(index) => {
                state.pool.set_in_service(index, false);
                break;
            }
            Step::PutBack(index) => state.pool.set_in_service(index, true),
            Step::Replace(index) => replace(state, index, &plan).await?,
            Step::ChangeOver => {
                state.pool.change_over(&plan.goal);
                turn_out_misfits(state, &plan.goal);
                break;
            }
            Step::WaitForTasks(index) if !plan.is_way_back && is_late(state) => {
                let (replica, limit) = (&state.pool.replicas[index as usize], state.pool.config.timeouts.drain_ms);
                let (id, used) = (&replica.id, replica.capacity.slots.used());
                state.pool.fail_reload(plan.of, format!("{used} tasks still ran on replica {id} after {limit} ms"));
            }
            Step::WaitForTasks(_) | Step::WaitForLoad(_) => {
                look_again(state);
                return Ok(());
            }
            Step::Done => {
                state.pool.end_reload(plan.of);
                return Ok(());
            }
        }
        state.pool.note_reload_step();
    }
    state.pool.note_reload_step();
    look_again(state);
    Ok(())
}

/// Whether the tasks that the reload waits for have had their time.
fn is_late(state: &PoolSupervisorState) -> bool {
    let limit = Duration::from_millis(state.pool.config.timeouts.drain_ms);
    state.pool.env.now() >= state.pool.reload_progress_at().after(limit)
}

fn look_again(state: &mut PoolSupervisorState) {
    if !std::mem::replace(&mut state.looks_again, true) {
        state.myself.send_after(LOOK_PERIOD, || PoolSupervisorMsg::LookAtReload);
    }
}

/// Ends a worker that has no task, so that its next life loads the goal's model. One that is down is started at once.
async fn replace(state: &mut PoolSupervisorState, index: u16, plan: &Plan) -> Result<(), ActorProcessingErr> {
    let (place, child) = (&state.pool.replicas[index as usize], PoolChild::Worker(index));
    *place.part.revision.lock() = plan.goal.clone();
    *place.loaded.self_test.lock() = None; // It was of the model before.
    if state.ending.contains_key(&index) {
        return Ok(()); // Its next life loads the goal's model, whatever it was told to end for.
    }
    let living = state.children.living(|other| other == child).pop();
    place.part.in_service.store(living.is_none() && plan.is_served, SeqCst);
    state.pool.set_replica_state(index, ReplicaState::Preloading);
    state.children.renew(child);
    match living {
        Some(worker) => {
            let engine = place.loaded.engine.lock().as_ref().map(Arc::downgrade);
            state.ending.insert(index, Ending { engine, ended_at: None });
            worker.stop(Some(STOPPED.into()));
            Ok(())
        }
        None => {
            place.discard_engine();
            state.restart_child(Next::Start(child)).await
        }
    }
}

/// A worker that a reload has told to end.
pub(in crate::actors) struct Ending {
    /// Its engine, which others may still hold for a moment.
    engine: Option<Weak<dyn DynEngine>>,
    /// When the worker had ended.
    ended_at: Option<Timestamp>,
}

/// Longest wait for an engine to be let go by all who had it; then the next one is started beside it.
const ENGINE_END_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker that a reload told to end has done so: the next one follows when its engine is gone too, since a device may
/// have no room for both.
pub(in crate::actors) fn after_end(state: &mut PoolSupervisorState, index: u16) {
    let now = state.pool.env.now();
    if let Some(ending) = state.ending.get_mut(&index) {
        ending.ended_at = Some(now);
    }
    look_again(state);
}

/// Starts the next lives of those whose worker has ended and whose engine is gone.
async fn start_after_ends(state: &mut PoolSupervisorState) -> Result<(), ActorProcessingErr> {
    let now = state.pool.env.now();
    let is_over = |ending: &Ending| {
        let is_gone = ending.engine.as_ref().is_none_or(|engine| engine.strong_count() == 0);
        ending.ended_at.is_some_and(|ended_at| is_gone || now.since(ended_at) >= ENGINE_END_TIMEOUT)
    };
    let over: Vec<u16> = state.ending.iter().filter(|(_, ending)| is_over(ending)).map(|(index, _)| *index).collect();
    for index in over {
        state.ending.remove(&index);
        let place = &state.pool.replicas[index as usize];
        let is_served = place.revision().generation == state.pool.revision().generation;
        place.part.in_service.store(is_served, SeqCst);
        state.children.renew(PoolChild::Worker(index));
        if state.pool.intent() != Intent::Stop {
            state.restart_child(Next::Start(PoolChild::Worker(index))).await?;
        }
    }
    if !state.ending.is_empty() {
        look_again(state);
    }
    Ok(())
}

/// Ends the waiting tasks that name something which the pool does not serve any more. All others keep their places.
fn turn_out_misfits(state: &PoolSupervisorState, goal: &Revision) {
    let waits = |record: &Arc<TaskRecord>| record.phase() == Phase::Queued && !seeded_bug!(RunMisfits);
    for record in state.runtime.ledger.unfinished_in(state.pool.position).into_iter().filter(waits) {
        let Err(why) = goal.spec.fits(&record.request, &state.pool.config.aliases) else { continue };
        let text = format!("pool {} was reloaded: {why}", state.pool.id);
        let _ = state.runtime.ledger.seal(&record, None, Terminal::error(ErrorCode::PoolUnavailable, text));
        state.pool.actors.queue.cast(QueueMsg::Withdraw { seq: record.seq }); // Lost: a new queue takes nothing sealed.
    }
}
