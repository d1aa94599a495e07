//! The end of a pool that has left the configuration.

use std::time::Duration;

use crate::actors::kit::children::STOPPED;
use crate::actors::pool::messages::{PoolChild, PoolSupervisorMsg};
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::tree::pool_supervisor::PoolSupervisorState;
use crate::core::pool::lifecycle::Intent;

/// Time between two looks whether the last task of a pool that leaves has ended.
const LEAVE_PERIOD: Duration = Duration::from_millis(20);

/// Lets the supervisor of a pool that leaves end, when nothing of the pool is left; else looks again soon.
pub(in crate::actors) fn look_whether_left(state: &PoolSupervisorState) {
    let pool = &state.pool;
    if !pool.is_leaving() || pool.intent() != Intent::Stop {
        return;
    }
    let lives = !state.children.living(|child| matches!(child, PoolChild::Worker(_))).is_empty();
    let holds = |place: &ReplicaShared| place.loaded.engine.lock().is_some();
    let held = state.let_go.iter().any(|engine| engine.strong_count() > 0) || pool.replicas.iter().any(holds);
    if held && !lives {
        pool.replicas.iter().for_each(|place| place.discard_engine()); // One that a worker had just started.
    }
    let waits = !state.runtime.ledger.unfinished_in(pool.position).is_empty();
    let computes =
        pool.replicas.iter().any(|replica| replica.capacity.slots.used() > 0 || !replica.loaded.site.is_clear());
    if waits || computes || lives || held {
        state.myself.send_after(LEAVE_PERIOD, || PoolSupervisorMsg::LookWhetherLeft);
    } else {
        tracing::info!(pool_id = %pool.id, "the pool has left");
        state.myself.stop(Some(STOPPED.into()));
    }
}
