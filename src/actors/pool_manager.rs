//! The pool manager: owns which replica runs which task, and how many slots are on offer to the queue.
//!
//! The queue sends it tasks for the slots it offered; leases and workers nudge it when something has changed. It promises
//! that a task goes only to a Ready replica inside the pool's mask, with a slot of its own. It counts nothing that it
//! could lose: which slots are taken is a fact of the slot tables, where replicas stand is a fact of their places.
//!
//! Spec: ORCH-3008, ORCH-3010, ORCH-3011, ORCH-3019.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::lease::{Assignment, SlotLease};
use crate::actors::pool_supervisor::PoolSupervisorMsg;
use crate::actors::queue::QueueMsg;
use crate::actors::shared::{PoolShared, ReplicaShared};
use crate::actors::worker::WorkerMsg;
use crate::core::lifecycle::Intent;
use crate::core::placement::{Candidate, Demand, place};
use crate::core::predict::{Mean, ServiceRate};
use crate::core::units::VramBytes;

/// What the actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum PoolManagerMsg {
    /// Tasks for slots that were offered.
    Assign { batch: Vec<Assignment> },
    /// It can be reached: offer everything anew.
    Begin,
    /// Slots, replicas or the operator's wish have changed.
    LookAround,
    /// A new queue: earlier offers are void.
    QueueReplaced,
}

/// The actor.
pub(crate) struct PoolManager;

/// Its state.
pub(crate) struct PoolManagerState {
    pool: Arc<PoolShared>,
    /// Slots on offer to the queue, for which no task has come yet.
    offered: u32,
    hold: Mean,
    /// Slots of the replicas that were Ready when it last looked: each change of a replica makes it look.
    slots_ready: u32,
    /// The drain's end has been reported.
    drained: bool,
}

impl Actor for PoolManager {
    type Msg = PoolManagerMsg;
    type State = PoolManagerState;
    type Arguments = Arc<PoolShared>;

    async fn pre_start(
        &self,
        _: ActorRef<PoolManagerMsg>,
        pool: Arc<PoolShared>,
    ) -> Result<PoolManagerState, ActorProcessingErr> {
        let hold = Mean::starting_at(pool.rate.lock().hold_mean);
        Ok(PoolManagerState { pool, offered: 0, hold, slots_ready: 0, drained: false })
    }

    async fn handle(
        &self,
        _: ActorRef<PoolManagerMsg>,
        message: PoolManagerMsg,
        state: &mut PoolManagerState,
    ) -> Result<(), ActorProcessingErr> {
        state.pool.env.fault_point("pool_manager");
        match message {
            PoolManagerMsg::Assign { batch } => on_assign(state, batch),
            PoolManagerMsg::Begin => on_begin(state),
            PoolManagerMsg::LookAround => on_look_around(state),
            PoolManagerMsg::QueueReplaced => state.offered = 0,
        }
        offer(state);
        report_drained(state);
        Ok(())
    }
}

fn on_assign(state: &mut PoolManagerState, batch: Vec<Assignment>) {
    state.offered = state.offered.saturating_sub(batch.len() as u32);
    for assignment in batch {
        state.pool.env.fault_point("pool_manager");
        let Some(index) = choose(&state.pool, assignment.record().affinity()) else {
            continue; // The replica was lost meanwhile; dropped, the task goes back to its place in the queue.
        };
        let Some(lease) = SlotLease::take(&state.pool, index) else { continue };
        // Undelivered: the lease and the task come back by themselves.
        state.pool.replicas[index as usize].worker.cast(WorkerMsg::Run { assignment, lease });
    }
}

fn choose(pool: &PoolShared, affinity: Option<u16>) -> Option<u16> {
    let demand = Demand { mask: &pool.mask, affinity };
    place(pool.replicas.iter().map(candidate), &demand)
}

/// What placement may know of a replica, as of now.
fn candidate(replica: &ReplicaShared) -> Candidate<'_> {
    Candidate {
        index: replica.id.index,
        ready: replica.state().is_ready(),
        mask: &replica.mask,
        slots: replica.slots.total(),
        slots_used: replica.slots.used(),
        // Devices are not measured yet: all replicas are equal in both, and the next criterion decides.
        vram_free: VramBytes(0),
        tokens_per_s: 0,
    }
}

fn on_begin(state: &mut PoolManagerState) {
    state.pool.queue.cast(QueueMsg::ManagerReplaced); // Undelivered: a new queue has no credit anyway.
    state.offered = 0;
    on_look_around(state);
}

fn on_look_around(state: &mut PoolManagerState) {
    state.pool.accept_nudges();
    let ready = state.pool.replicas.iter().filter(|replica| replica.state().is_ready());
    state.slots_ready = ready.map(|replica| replica.slots.total()).sum();
    publish_rate(state);
}

/// Offers the free slots of Ready replicas that are not on offer yet, unless the queue has enough for who comes next.
///
/// While a part of the slots is on offer and nobody waits, more can wait for the next task's arrival here: a task then
/// costs neither an offer nor a nudge of its own.
fn offer(state: &mut PoolManagerState) {
    measure(state);
    loop {
        let free = state.pool.slots_free();
        let slots = free.saturating_sub(state.offered);
        let wanted = state.pool.depth_total() > 0 || state.offered <= free / 2;
        // Undelivered: the next queue announces itself, and everything is offered to it.
        let sent = slots > 0 && wanted && state.pool.queue.cast(QueueMsg::Offer { slots });
        if sent {
            state.offered += slots;
        }
        if state.pool.publish_offered(state.offered) || !sent && slots > 0 {
            return;
        }
        if state.pool.slots_free() == 0 {
            return; // Nothing on offer is known now: the lease that frees the next slot nudges.
        }
    }
}

/// Takes up what attempts have lately measured, and shows it to the queue.
fn measure(state: &mut PoolManagerState) {
    let (micros, attempts) = std::mem::take(&mut *state.pool.held.lock());
    if attempts > 0 {
        state.hold.record(Duration::from_micros(micros / u64::from(attempts)));
        publish_rate(state);
    }
}

fn publish_rate(state: &PoolManagerState) {
    *state.pool.rate.lock() = ServiceRate { slots_ready: state.slots_ready, hold_mean: state.hold.get() };
}

/// Tells the supervisor once when a draining pool has nothing left to do.
fn report_drained(state: &mut PoolManagerState) {
    let pool = &state.pool;
    let idle = pool.intent() == Intent::Drain && pool.depth_total() == 0 && pool.slots_used() == 0;
    if idle && !state.drained {
        state.drained = pool.supervisor.cast(PoolSupervisorMsg::Drained);
    }
}
