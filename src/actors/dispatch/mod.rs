//! How tasks leave the queue actor: for its own slots, for those that an idle peer lends, and to where their
//! conversations are warm.

pub(in crate::actors) mod deadlines;
pub(crate) mod latency;
pub(in crate::actors) mod leaving;
pub(crate) mod pool_manager;
pub(crate) mod queue;
pub(in crate::actors) mod queue_views;
pub(in crate::actors) mod state;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::actors::dispatch::state::QueueState;
use crate::actors::pool::lease::Assignment;
use crate::actors::pool::messages::{LoanReply, PoolManagerMsg};
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::record::TaskRecord;
use crate::core::fairness::{Accounts, Served};
use crate::core::task::trace::TraceKind;

/// Sends tasks for the slots that were offered.
pub(in crate::actors) fn dispatch(state: &mut QueueState, accounts: &mut Accounts) {
    let pool = state.pool.clone();
    let batch = take(state, accounts, &pool, state.credit);
    if batch.is_empty() {
        return;
    }
    state.pool.env.fault_point("queue");
    state.credit -= batch.len() as u32;
    if !state.pool.actors.manager.cast(PoolManagerMsg::Assign { batch, lent: None }) {
        state.credit = 0; // Nobody there: the tasks are coming back by themselves, the next manager offers anew.
    }
}

/// Sends tasks for slots of a peer, which hears in any case how many of them were of no use.
pub(in crate::actors) fn on_lend(
    state: &mut QueueState,
    accounts: &mut Accounts,
    lender: &Arc<PoolShared>,
    slots: u32,
) {
    dispatch(state, accounts); // Our own slots come first.
    // The lender's engine may have become another one since.
    let slots_of_use = if state.pool.is_same_set(lender) { slots } else { 0 };
    let batch = take(state, accounts, lender, slots_of_use);
    state.publish(accounts); // Before the answer: the lender looks at it when it hears.
    state.pool.env.fault_point("queue");
    let lent = Some(LoanReply { by: state.pool.position, slots });
    lender.actors.manager.cast(PoolManagerMsg::Assign { batch, lent }); // Nobody there: the tasks come back by themselves.
}

/// Takes up to `most` tasks, in order, to run in `runs_in`.
///
/// One whose conversation is warm in another pool of the set that has a free slot goes there instead, which costs none
/// of those at hand.
fn take(state: &mut QueueState, accounts: &mut Accounts, runs_in: &Arc<PoolShared>, most: u32) -> Vec<Assignment> {
    let (mut batch, mut barred, mut warm) = (Vec::new(), Vec::new(), CacheRedirect::default());
    let home = state.pool.clone();
    while (batch.len() as u32) < most {
        let may_run = |record: &Arc<TaskRecord>| {
            let allowed = Arc::ptr_eq(runs_in, &home) || record.may_use(&**runs_in);
            if !allowed {
                barred.push(record.request.client_id.clone());
            }
            allowed && record.may_run(&home)
        };
        let Some((seq, record)) = state.queue.dispatch(accounts, may_run) else { break };
        state.forget_deadline(&record);
        let warm_pool = warm.pool_for(&record, &home, runs_in);
        match record.assign(warm_pool.as_ref().unwrap_or(runs_in)) {
            Ok(epoch) => {
                state.pool.env.trace(|| TraceKind::Assigned { seq, epoch });
                let assignment = Assignment::new(record, epoch);
                match warm_pool {
                    Some(pool) => warm.add(pool, assignment),
                    None => batch.push(assignment),
                }
            }
            // Sealed a moment ago; it never was out.
            Err(_) => drop(state.queue.settle(accounts, seq, Served::Nothing)),
        }
    }
    for client in barred {
        state.queue.return_turn(accounts, &client);
    }
    warm.send(&home);
    batch
}

/// Tasks that go where their conversations are warm, by pool.
#[derive(Default)]
struct CacheRedirect(Vec<(Arc<PoolShared>, Vec<Assignment>)>);

impl CacheRedirect {
    /// The pool in which the task's conversation is warm, if that is neither its own nor the one at hand and has a slot
    /// that is free now. A task is sent there once: should the slot be taken when it comes, it goes back to its place,
    /// and then runs wherever it can.
    fn pool_for(
        &self,
        record: &TaskRecord,
        home: &Arc<PoolShared>,
        runs_in: &Arc<PoolShared>,
    ) -> Option<Arc<PoolShared>> {
        record.session()?; // Without a lock for all others.
        let name = record.warm_pool().filter(|name| *name != home.id && *name != runs_in.id)?;
        let pool = home.peers().find(|peer| peer.id == name)?;
        let sent = self.0.iter().find(|(other, _)| Arc::ptr_eq(other, &pool)).map_or(0, |(_, batch)| batch.len());
        let is_free = pool.is_idle() && pool.immediate_slots() as usize > sent;
        (is_free && record.may_use(&*pool) && record.send_to_warm()).then_some(pool)
    }

    fn add(&mut self, pool: Arc<PoolShared>, assignment: Assignment) {
        match self.0.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &pool)) {
            Some((_, batch)) => batch.push(assignment),
            None => self.0.push((pool, vec![assignment])),
        }
    }

    fn send(self, home: &PoolShared) {
        for (pool, batch) in self.0 {
            let lent = Some(LoanReply { by: home.position, slots: 0 }); // It was not asked.
            pool.actors.manager.cast(PoolManagerMsg::Assign { batch, lent }); // Nobody there: the tasks come back by themselves.
        }
    }
}

/// Tells idle peers that tasks wait here which they could run.
pub(in crate::actors) fn call_peers(state: &QueueState) {
    if state.credit == 0 && state.pool.waiting.wanted.load(Relaxed) > 0 {
        for peer in state.pool.peers().filter(|peer| peer.is_idle()) {
            peer.nudge_manager();
        }
    }
}
