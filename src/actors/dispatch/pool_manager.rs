//! The pool manager: owns which replica runs which task, and how many slots are on offer to the queue.
//!
//! The queue sends it tasks for the slots it offered; leases and workers nudge it when something has changed. It
//! promises that a task goes only to a Ready replica inside the pool's mask, with a slot of its own. It counts nothing
//! that it could lose: which slots are taken is a fact of the slot tables, where replicas stand is a fact of their
//! places.
//!
//! Spec: ORCH-3008, ORCH-3010, ORCH-3011, ORCH-3019.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::pool::lease::{Assignment, SlotLease};
use crate::actors::pool::messages::{LoanReply, PoolManagerMsg, PoolSupervisorMsg, QueueMsg, WorkerMsg};
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::shared::PoolShared;
use crate::core::pool::lifecycle::Intent;
use crate::core::pool::placement::{Demand, Fit, fit, place};
use crate::core::queue::predict::Mean;
use crate::planted::seeded_bug;

/// The actor.
pub(crate) struct PoolManager;

/// Its state.
pub(crate) struct PoolManagerState {
    pool: Arc<PoolShared>,
    /// Slots on offer to the queue, for which no task has come yet.
    offered: u32,
    /// Slots that peers were lent and have not answered for, by their positions.
    lent: BTreeMap<u16, u32>,
    /// Siblings that had no use for what they were lent; they are not asked again before something changes.
    declined_by: BTreeSet<u16>,
    hold: Mean,
    /// Slots of the replicas that were Ready when it last looked: each change of a replica makes it look.
    slots_ready: u32,
    /// The drain's end has been reported.
    drained: bool,
    /// Tasks that came from the queue, in this life.
    assigned: u64,
    /// Tasks waited beside free slots at the last pulse, when so many had been assigned.
    stall_suspected: Option<u64>,
    /// Tasks that wait at other nodes have been recalled, for which its slots are free.
    has_recalled: bool,
    /// Pulses until it may recall again.
    recalls_in: u32,
}

/// Pulses without a recall behind one that was of no use.
const RECALL_CHECKS: u32 = 10;

/// How long tasks may wait beside free slots before that counts as a stall.
const STALL_CHECK_PERIOD: Duration = Duration::from_secs(1);

impl Actor for PoolManager {
    type Msg = PoolManagerMsg;
    type State = PoolManagerState;
    type Arguments = Arc<PoolShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<PoolManagerMsg>,
        pool: Arc<PoolShared>,
    ) -> Result<PoolManagerState, ActorProcessingErr> {
        let hold = Mean::starting_at(pool.capacity.rate.lock().hold_mean);
        let (lent, declined_by) = (BTreeMap::new(), BTreeSet::new());
        myself.send_after(STALL_CHECK_PERIOD, || PoolManagerMsg::StallCheck);
        Ok(PoolManagerState {
            pool,
            offered: 0,
            lent,
            declined_by,
            hold,
            slots_ready: 0,
            drained: false,
            assigned: 0,
            stall_suspected: None,
            has_recalled: false,
            recalls_in: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PoolManagerMsg>,
        message: PoolManagerMsg,
        state: &mut PoolManagerState,
    ) -> Result<(), ActorProcessingErr> {
        state.pool.env.fault_point("pool_manager");
        match message {
            PoolManagerMsg::Assign { batch, lent } => on_assign(state, batch, lent),
            PoolManagerMsg::Begin => on_begin(state),
            PoolManagerMsg::Reconcile => reconcile(state),
            PoolManagerMsg::QueueReplaced => state.offered = 0,
            PoolManagerMsg::Reconsider => {} // Nothing has changed for those that had no use for its own places.
            PoolManagerMsg::PeerReplaced { pool } => drop(state.lent.remove(&pool)),
            // No offer behind it unless it finds a stall: else it would heal one without a word.
            PoolManagerMsg::StallCheck if !on_stall_check(state, &myself) => {
                state.declined_by.clear();
                recall(state, state.usable());
                return Ok(());
            }
            PoolManagerMsg::StallCheck => {}
        }
        offer(state);
        lend(state);
        state.pool.release_withheld_slots(!state.declined_by.is_empty());
        report_drained(state);
        Ok(())
    }
}

fn on_assign(state: &mut PoolManagerState, batch: Vec<Assignment>, lent: Option<LoanReply>) {
    state.assigned += batch.len() as u64;
    match lent {
        None => state.offered = state.offered.saturating_sub(batch.len() as u32),
        Some(LoanReply { by, slots }) => {
            let left = state.lent.remove(&by).unwrap_or(0).saturating_sub(slots);
            if left > 0 {
                state.lent.insert(by, left);
            }
            if batch.is_empty() {
                state.declined_by.insert(by);
                state.recalls_in = if state.has_recalled { RECALL_CHECKS } else { state.recalls_in };
            }
            state.has_recalled = false;
            state.pool.figures.counters.taken_over.fetch_add(batch.len() as u64, Relaxed);
        }
    }
    for assignment in batch {
        state.pool.env.fault_point("pool_manager");
        let record = assignment.record();
        // A lock that most pools need not take.
        let kv_tokens = if state.pool.knows_kv() { record.kv_tokens() } else { 0 };
        let Some(index) = choose(&state.pool, record.inclinations(&state.pool.id), kv_tokens) else {
            continue; // The replica was lost meanwhile; dropped, the task goes back to its place in the queue.
        };
        let Some(lease) = SlotLease::take(&state.pool, index, kv_tokens) else { continue };
        // Undelivered, or out of service since it was chosen: the lease and the task come back by themselves.
        let place = &state.pool.replicas[index as usize];
        if !place.state().is_ready() && !seeded_bug!(PlaceUnready) {
            continue; // A reload that took it out before the lease was there may not have seen the lease.
        }
        place.life.worker.cast(WorkerMsg::Run { assignment, lease });
    }
}

fn choose(pool: &PoolShared, (affinity, avoid): (Option<u16>, Option<u16>), kv_tokens: u64) -> Option<u16> {
    let demand = Demand { mask: &pool.mask, affinity, avoid, kv_tokens };
    let candidates = pool.replicas.iter().map(ReplicaShared::candidate).map(|mut candidate| {
        candidate.ready |= seeded_bug!(PlaceUnready);
        candidate
    });
    let chosen = place(candidates, &demand);
    if chosen.is_none() && kv_tokens > 0 {
        wait_for_kv(pool, &demand);
    }
    chosen
}

/// Replicas whose KV cache has no room for the task that is first in line offer nothing before one of their tasks ends:
/// else it would be sent back and forth, or smaller ones would pass it by for ever.
fn wait_for_kv(pool: &PoolShared, demand: &Demand<'_>) {
    for replica in &pool.replicas {
        if fit(&replica.candidate(), demand) == Fit::NoKvRoom {
            replica.capacity.kv.set_full();
            replica.capacity.kv.look_again(fit(&replica.candidate(), demand) != Fit::NoKvRoom);
        }
    }
}

fn on_begin(state: &mut PoolManagerState) {
    state.pool.actors.queue.cast(QueueMsg::ManagerReplaced); // Undelivered: a new queue has no credit anyway.
    state.offered = 0;
    reconcile(state);
}

fn reconcile(state: &mut PoolManagerState) {
    state.pool.accept_nudges();
    state.declined_by.clear();
    state.lent.retain(|borrower, _| state.pool.others().any(|other| other.position == *borrower));
    let ready = state.pool.replicas.iter().filter(|replica| replica.state().is_ready());
    state.slots_ready = ready.map(|replica| replica.capacity.slots.usable()).sum();
    publish_rate(state);
}

/// Tasks that could run wait, slots are free, and for a whole second nothing was dispatched: that is a bug of ours. It
/// is counted, logged and healed: the queue looks at the ledger, and everything free is offered to it anew. Returns
/// whether.
fn on_stall_check(state: &mut PoolManagerState, myself: &ActorRef<PoolManagerMsg>) -> bool {
    myself.send_after(STALL_CHECK_PERIOD, || PoolManagerMsg::StallCheck);
    state.recalls_in = state.recalls_in.saturating_sub(1);
    state.has_recalled = false;
    let stall_suspected = state.pool.waiting.wanted.load(Relaxed) > 0 && state.usable() > 0;
    let before = std::mem::replace(&mut state.stall_suspected, stall_suspected.then_some(state.assigned));
    let stalls = stall_suspected && before == Some(state.assigned);
    if stalls {
        state.pool.figures.counters.stalls.fetch_add(1, Relaxed);
        let (wanted, free) = (state.pool.waiting.wanted.load(Relaxed), state.usable());
        tracing::error!(pool_id = %state.pool.id, wanted, free, "tasks wait beside free slots; all is offered anew");
        state.pool.actors.queue.cast(QueueMsg::Refill); // Nobody there: a new queue looks by itself.
        on_begin(state);
    }
    stalls
}

/// Offers the free slots of Ready replicas that are not on offer yet, unless the queue has enough for who comes next.
///
/// While a part of the slots is on offer and nobody waits, more can wait for the next task's arrival here: a task then
/// costs neither an offer nor a nudge of its own.
fn offer(state: &mut PoolManagerState) {
    measure(state);
    loop {
        let free = state.usable();
        if state.pool.is_remote() {
            revoke(state, state.offered.saturating_sub(free)); // They are kept back now.
        }
        let slots = free.saturating_sub(state.offered);
        let wanted = state.pool.depth_total() > 0 || state.offered <= free / 2;
        // Undelivered: the next queue announces itself, and everything is offered to it.
        let sent = slots > 0 && wanted && state.pool.actors.queue.cast(QueueMsg::Offer { slots });
        if sent {
            state.offered += slots;
        }
        if state.pool.publish_offered(state.offered) || !sent && slots > 0 {
            return;
        }
        if state.usable() == 0 {
            return; // Nothing on offer is known now: the lease that frees the next slot nudges.
        }
    }
}

/// Lends slots for which there is nothing to do here to peers whose tasks wait: no slot idles beside a backlog.
///
/// A peer answers at once, with tasks or without, so nothing stays lent. What is lent is taken off the own queue's
/// offer first; should a task come for it all the same, it finds no slot and goes back to its place.
fn lend(state: &mut PoolManagerState) {
    if state.pool.waiting.wanted.load(Relaxed) > 0 || state.pool.intent() != Intent::Serve {
        return;
    }
    let mut spare = state.usable();
    for peer in state.pool.clone().peers() {
        let slots = spare.min(peer.waiting.wanted.load(Relaxed));
        if slots == 0 || state.lent.contains_key(&peer.position) || state.declined_by.contains(&peer.position) {
            continue;
        }
        revoke(state, slots.min(state.offered));
        if peer.actors.queue.cast(QueueMsg::Lend { lender: state.pool.clone(), slots }) {
            state.lent.insert(peer.position, slots);
            spare -= slots;
        }
    }
    recall(state, spare);
}

/// Takes back so many slots that are on offer.
fn revoke(state: &mut PoolManagerState, slots: u32) {
    if slots > 0 {
        state.pool.actors.queue.cast(QueueMsg::Revoke { slots }); // Undelivered: a new queue has no credit anyway.
        state.offered -= slots;
        state.pool.publish_offered(state.offered);
    }
}

/// Recalls tasks of peers that wait at other nodes, when there are places here for them now. No more are recalled
/// before any of these has come here, or a second has passed; and for some time, when their queues then have no use for
/// the places.
fn recall(state: &mut PoolManagerState, spare: u32) {
    let mut places = spare.min(state.pool.immediate_slots());
    let is_of_use = state.pool.is_idle() && state.declined_by.is_empty(); // Else they are for its own tasks, or for nobody.
    if places == 0 || !is_of_use || state.has_recalled || state.recalls_in > 0 {
        return;
    }
    for peer in state.pool.clone().peers().filter(|peer| peer.is_remote()) {
        let recalled = peer.recall(places);
        state.has_recalled |= recalled > 0;
        places -= recalled;
    }
}

impl PoolManagerState {
    /// Free slots that no peer has been lent and that are not kept back.
    fn usable(&self) -> u32 {
        self.pool.usable(self.lent.values().sum())
    }
}

/// Takes up what attempts have lately measured, and shows it to the queue.
fn measure(state: &mut PoolManagerState) {
    let (micros, attempts) = std::mem::take(&mut *state.pool.capacity.held.lock());
    if attempts > 0 {
        state.hold.record(Duration::from_micros(micros / u64::from(attempts)));
        publish_rate(state);
    }
}

fn publish_rate(state: &PoolManagerState) {
    let mut rate = state.pool.capacity.rate.lock();
    (rate.slots_ready, rate.hold_mean, rate.measured) = (state.slots_ready, state.hold.get(), state.hold.is_measured());
}

/// Tells the supervisor once when a draining pool has nothing left to do.
fn report_drained(state: &mut PoolManagerState) {
    let pool = &state.pool;
    // What a peer runs for this pool's queue, or is on its way, is not settled yet.
    let empty = pool.depth_total() == 0 && pool.slots_used() == 0;
    let idle = pool.intent() == Intent::Drain && empty && pool.unsettled() == 0;
    if idle && !state.drained {
        state.drained = pool.actors.supervisor.cast(PoolSupervisorMsg::Drained);
    }
}
