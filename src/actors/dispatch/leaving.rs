//! A pool that leaves: its waiting tasks go to the pool that takes its place, as far as that can serve them; the others
//! it finishes.
//!
//! Spec: ORCH-3031.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::actors::dispatch::state::QueueState;
use crate::actors::pool::messages::{PoolSupervisorMsg, QueueMsg};
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::record::TaskRecord;
use crate::core::fairness::{Accounts, Served};
use crate::core::pool::lifecycle::Intent;
use crate::core::task::error::ErrorCode;
use crate::core::task::{Phase, Terminal};

impl PoolShared {
    /// Begins to leave, for good. What waits goes to `successor`, if there is one that can serve it.
    ///
    /// `before` is the number of the first pool that is younger than this: those wait for its devices.
    pub(crate) fn leave(&self, successor: Option<Arc<PoolShared>>, before: u32) {
        if let Some(successor) = successor {
            let _ = self.life.successor.set(successor); // Set already: it leaves for the second time, which changes nothing.
        }
        self.life.retired_before.store(before, SeqCst);
        self.life.is_leaving.store(true, SeqCst);
        self.advance_intent(Intent::Drain);
        self.actors.queue.cast(QueueMsg::Settle); // Nobody there: a new queue looks by itself.
        self.actors.supervisor.cast(PoolSupervisorMsg::Drain); // Nobody there: the next one finds the intent.
    }

    /// Whether it has left the configuration.
    pub(crate) fn is_leaving(&self) -> bool {
        self.life.is_leaving.load(SeqCst)
    }

    /// Whether it could serve this task, for which the pool that it replaces was chosen.
    fn can_take_over(&self, record: &TaskRecord) -> bool {
        let request = &record.request;
        let fits = self.revision().spec.fits(request, &self.config.aliases).is_ok()
            && self.config.workloads.contains(&request.workload);
        let engine = request.engine.as_ref().is_none_or(|engine| *engine == self.config.engine);
        fits && engine && record.kv_tokens() <= u64::from(self.model.ctx.load(Relaxed)) && record.may_use(self)
    }

    /// The pool that takes this task instead, if this one leaves.
    pub(in crate::actors) fn successor_for(&self, record: &TaskRecord) -> Option<&Arc<PoolShared>> {
        let mut successor = self.life.successor.get()?;
        // A successor that was replaced too has nobody left to run anything.
        while successor.is_leaving() {
            successor = successor.life.successor.get()?;
        }
        Some(successor).filter(|successor| successor.can_take_over(record))
    }
}

/// Hands the waiting tasks over to the pool that takes this one's place. A conversation whose task is out here goes on
/// here, as long as this pool runs anything.
pub(in crate::actors) fn migrate_queue(state: &mut QueueState, accounts: &mut Accounts) {
    let pool = state.pool.clone();
    if pool.life.successor.get().is_none() {
        return;
    }
    if !std::mem::replace(&mut state.handed_over, true) || pool.is_unavailable() {
        let busy: Vec<_> = accounts.busy_sessions().map(|(_, session)| session.clone()).collect();
        for seq in state.queue.numbers() {
            let Some(record) = state.queue.get(seq).cloned() else { continue };
            let stays = record.session().is_some_and(|session| busy.contains(session)) && !pool.is_unavailable();
            let Some(successor) = pool.successor_for(&record).filter(|_| !stays) else { continue };
            state.queue.cancel(accounts, seq);
            state.forget_deadline(&record);
            send_on(&record, successor);
        }
    }
}

/// A task that came back to a pool that leaves goes on in its successor's queue. Returns whether it does.
pub(in crate::actors) fn migrate_one(
    state: &mut QueueState,
    accounts: &mut Accounts,
    record: &Arc<TaskRecord>,
) -> bool {
    let pool = state.pool.clone();
    let Some(successor) = pool.successor_for(record) else { return false };
    state.queue.settle(accounts, record.seq, Served::Nothing);
    send_on(record, successor);
    true
}

fn send_on(record: &Arc<TaskRecord>, successor: &Arc<PoolShared>) {
    record.reroute(successor.clone());
    successor.actors.queue.cast(QueueMsg::Return { record: record.clone() }); // Nobody there: its queue finds it in the ledger.
}

/// A pool has left. What came to it in its last moment goes on elsewhere, or ends.
pub(in crate::actors) fn sweep(runtime: &RuntimeShared, pool: &PoolShared) {
    for record in runtime.ledger.unfinished_in(pool.position) {
        match pool.successor_for(&record) {
            _ if record.phase() == Phase::Submitted => {} // Its message is lost, and its caller sends it again.
            Some(successor) if record.phase() == Phase::Queued => send_on(&record, successor),
            _ => {
                let text = format!("pool {} has left before the task could end", pool.id);
                let terminal = Terminal::error(ErrorCode::PoolUnavailable, text);
                let _ = runtime.ledger.seal(&record, None, terminal); // It has just ended by itself.
            }
        }
    }
}

/// Waits until no engine of a pool that leaves is on devices that this pool is about to use.
pub(in crate::actors) async fn until_devices_are_left(runtime: &RuntimeShared, pool: &PoolShared) {
    loop {
        let table = runtime.pools.table();
        let shares = |other: &&Arc<PoolShared>| {
            other.position != pool.position
                && other.life.retired_before.load(SeqCst) <= u32::from(pool.position)
                && other.mask.devices().iter().any(|device| pool.mask.devices().contains(device))
        };
        let Some(other) = table.leaving.iter().find(shares) else { break };
        let changed = other.life.state_changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable(); // Before the look, so that the change is not missed.
        if runtime.pools.table().get(other.position).is_some() {
            changed.await;
        }
    }
}
