//! The queue actor: owns the order of a pool's waiting tasks, and their bound.
//!
//! Admission and the sessions actor hand tasks in, the pool manager offers free slots, leases bring tasks back. It
//! promises that a task it accepted is dispatched in order or ends, and never answers with a task where no slot was
//! offered. What it holds is rebuilt from the ledger when it dies; a task that is only in its mailbox was not accepted,
//! and its caller sends it again.
//!
//! Spec: ORCH-3004, ORCH-3005, ORCH-2007, ORCH-3029.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::actors::dispatch::deadlines::{arm, on_deadline_due};
use crate::actors::dispatch::leaving::{migrate_one, migrate_queue};
use crate::actors::dispatch::state::QueueState;
use crate::actors::dispatch::{call_peers, dispatch, on_lend};
use crate::actors::pool::messages::{Accepted, QueueMsg, Submission, Verdict};
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::record::TaskRecord;
use crate::core::admission::too_late;
use crate::core::check;
use crate::core::fairness::{Accounts, Served};
use crate::core::id::TaskSeq;
use crate::core::pool::lifecycle::Intent;
use crate::core::queue::overflow::FullPolicy;
use crate::core::queue::{Arrival, Enqueued, Queue};
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::trace::TraceKind;
use crate::core::task::{Phase, Terminal};
use crate::planted::seeded_bug;

/// All that the actor needs.
pub(crate) struct QueueArgs {
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) pool: Arc<PoolShared>,
}

/// The actor.
pub(crate) struct QueueActor;

impl Actor for QueueActor {
    type Msg = QueueMsg;
    type State = QueueState;
    type Arguments = QueueArgs;

    async fn pre_start(&self, _: ActorRef<QueueMsg>, args: QueueArgs) -> Result<QueueState, ActorProcessingErr> {
        let QueueArgs { runtime, pool } = args;
        let generation = pool.actors.queue_generation.load(SeqCst);
        let shared = pool.clone();
        let mut accounts = shared.waiting.accounts.lock();
        let queue = Queue::new(pool.config.queue.bounds(), &mut accounts);
        let (deadlines, armed) = (BTreeSet::new(), None);
        let mut state = QueueState {
            runtime,
            pool,
            queue,
            credit: 0,
            generation,
            deadlines,
            armed,
            handed_over: false,
            picture: None,
        };
        on_refill(&mut state, &mut accounts);
        state.publish(&accounts);
        drop(accounts);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<QueueMsg>,
        message: QueueMsg,
        state: &mut QueueState,
    ) -> Result<(), ActorProcessingErr> {
        state.pool.env.fault_point("queue");
        let pool = state.pool.clone();
        // Whoever lends has looked just now: to call it again would go on for ever, where its slots are of no use.
        let calls = !matches!(message, QueueMsg::Lend { .. });
        let mut accounts = pool.waiting.accounts.lock();
        if state.generation != pool.actors.queue_generation.load(SeqCst) {
            // Killed, and a newer queue has the accounts already. What this message says is found in the ledger, or
            // said again.
            return Ok(());
        }
        settle(state, &mut accounts);
        let (wanted_before, depth_before) = (pool.waiting.wanted.load(Relaxed), state.queue.len());
        take(state, &mut accounts, message);
        migrate_queue(state, &mut accounts);
        if state.pool.is_unavailable() {
            fail_all_queued(state, &mut accounts);
        }
        dispatch(state, &mut accounts);
        arm(state, &myself);
        state.publish(&accounts);
        check(state.queue.len() as usize, || state.queue.invariants(&accounts));
        drop(accounts);
        if state.queue.len() < depth_before {
            state.runtime.gate.room.free();
        }
        if calls {
            call_peers(state);
        }
        let idles = wanted_before > 0
            && pool.waiting.wanted.load(Relaxed) == 0
            && state.credit > 0
            && pool.is_wanted_by_peers();
        let drains = state.queue.is_empty() && pool.intent() != Intent::Serve;
        if idles || drains {
            pool.nudge_manager(); // It may lend what is of no use here; or the drain may be complete.
        }
        Ok(())
    }
}

/// Does what one message asks for. What follows from it for all that waits comes behind it.
fn take(state: &mut QueueState, accounts: &mut Accounts, message: QueueMsg) {
    match message {
        QueueMsg::Enqueue(submission) => on_enqueue(state, accounts, submission),
        QueueMsg::Withdraw { seq } => on_withdraw(state, accounts, seq),
        QueueMsg::Explain { seq, reply } => {
            let _ = reply.send(state.explain(accounts, seq));
        }
        QueueMsg::Return { record } => on_return(state, accounts, record),
        QueueMsg::Offer { slots } => state.credit += slots,
        QueueMsg::Revoke { slots } => state.credit = state.credit.saturating_sub(slots),
        QueueMsg::Lend { lender, slots } => {
            if let Some(lender) = PoolShared::of(lender) {
                on_lend(state, accounts, &lender, slots);
            }
        }
        QueueMsg::Settle => {}
        QueueMsg::Release { client } => state.queue.release(accounts, &client),
        #[cfg(feature = "cluster")]
        QueueMsg::ServedElsewhere(served) => {
            for (client, class, cost) in &*served {
                state.queue.serve_elsewhere(accounts, client, *class, *cost);
            }
        }
        QueueMsg::ManagerReplaced => state.credit = 0,
        QueueMsg::Refill => on_refill(state, accounts),
        QueueMsg::PoolUnavailable => {}
        QueueMsg::DeadlineDue { at } => on_deadline_due(state, accounts, at),
    }
}

/// Corrects what ended tasks were charged.
fn settle(state: &mut QueueState, accounts: &mut Accounts) {
    // One short lock for each message; each pass is one task, so that none is lost to a panic between two.
    loop {
        let Some((seq, served)) = state.pool.waiting.settlements.lock().pop_front() else { return };
        state.queue.settle(accounts, seq, served);
    }
}

fn on_enqueue(state: &mut QueueState, accounts: &mut Accounts, Submission { record, reply }: Submission) {
    match record.phase() {
        Phase::Submitted => {}
        Phase::Terminal => return, // Cancelled on its way; the reply drops, and the caller sees the log.
        Phase::Queued | Phase::Assigned | Phase::Running => {
            // Sent twice: the promise that was made stands.
            let (queue_position, predicted_start) = record.promise();
            let _ = reply.send(Ok(Accepted { queue_position, predicted_start }));
            return;
        }
    }
    if let Some(successor) = state.pool.successor_for(&record).cloned() {
        record.reroute(successor.clone());
        successor.actors.queue.cast(QueueMsg::Enqueue(Submission { record, reply })); // Undelivered: the caller sends it again.
        return;
    }
    if state.pool.is_unavailable() {
        let _ = reply.send(Err(out(state)));
        return;
    }
    let arrival = record.arrival();
    let ahead = ahead_of(state, accounts, &arrival);
    let idle = ahead == 0 && state.credit > 0;
    let rate = *state.pool.capacity.rate.lock();
    let predicted_start = if idle { Duration::ZERO } else { rate.predicted(ahead) };
    let hopeless = record.request.deadline.filter(|_| rate.measured).and_then(|limit| too_late(limit, predicted_start));
    if let Some(error) = hopeless {
        let error = TaskError { queue_position: Some(ahead), ..error.engine(&state.pool.config.engine) };
        let _ = reply.send(Err(error));
        return;
    }
    if idle && state.pool.config.queue.capacity == 0 && record.session().is_none() && record.may_run(&state.pool) {
        // Nobody may wait, and it need not: it has a slot as soon as this message has been handled.
        state.queue.pass_through(accounts, arrival, record.clone());
        accept(state, accounts, &record, reply, Accepted { queue_position: 0, predicted_start });
        return;
    }
    match state.queue.enqueue(accounts, arrival, record.clone()) {
        Enqueued::Refused { .. } => refuse(state, accounts, &record, ahead, reply),
        outcome => {
            if let Enqueued::Evicted { item, .. } = outcome {
                state.forget_deadline(&item);
                evict(state, accounts, &item);
            }
            accept(state, accounts, &record, reply, Accepted { queue_position: ahead, predicted_start });
        }
    }
}

fn accept(
    state: &mut QueueState,
    accounts: &mut Accounts,
    record: &Arc<TaskRecord>,
    reply: RpcReplyPort<Verdict>,
    accepted: Accepted,
) {
    if record.admit(accepted.queue_position, accepted.predicted_start).is_err() {
        // Its caller gave up in between; the log is sealed.
        state.queue.cancel(accounts, record.seq);
        return;
    }
    state.trace_queued(record);
    state.note_deadline(record);
    if state.generation != state.pool.actors.queue_generation.load(SeqCst) {
        // Killed while it decided: the newer queue may have looked at the ledger a moment too early.
        state.pool.actors.queue.cast(QueueMsg::Return { record: record.clone() });
    }
    state.pool.figures.counters.enqueued[record.priority().index()].fetch_add(1, Relaxed);
    state.pool.env.fault_point("queue");
    let _ = reply.send(Ok(accepted)); // A caller that is gone has cancelled by its guard.
}

fn refuse(state: &QueueState, accounts: &Accounts, record: &TaskRecord, ahead: u64, reply: RpcReplyPort<Verdict>) {
    let pool = &state.pool;
    pool.figures.counters.refused_full.fetch_add(1, Relaxed);
    let text = state.no_room(accounts, record);
    let _ = reply.send(Err(full(state, ahead, ErrorCode::AdmissionReject, text)));
}

fn evict(state: &QueueState, accounts: &Accounts, victim: &TaskRecord) {
    state.pool.figures.counters.evicted.fetch_add(1, Relaxed);
    let code = match state.pool.config.queue.full_policy {
        FullPolicy::DropLru => ErrorCode::QueueFullDropLru,
        FullPolicy::Reject | FullPolicy::ShedLowPriority => ErrorCode::AdmissionReject,
    };
    let text = format!("the task made room for another in the full queue of pool {}", state.pool.id);
    let ahead = ahead_of(state, accounts, &victim.arrival());
    let error = full(state, ahead, code, text);
    let _ = state.runtime.ledger.seal(victim, None, Terminal::Error(error)); // Already sealed: cancelled just now.
}

/// Expected dispatches before a task that would come now.
fn ahead_of(state: &QueueState, accounts: &Accounts, arrival: &Arrival<'_>) -> u64 {
    let own = accounts.waiting(arrival.client, arrival.class);
    state.queue.backlog(accounts).ahead(own, own, arrival.weight, arrival.class)
}

/// The error of a full queue. One comes back when the queue has moved on by the tasks that are ahead.
fn full(state: &QueueState, ahead: u64, code: ErrorCode, text: String) -> TaskError {
    let rate = *state.pool.capacity.rate.lock();
    let wait = rate.advice(ahead);
    let policy = state.pool.config.queue.full_policy.as_str();
    let error = TaskError::new(code, text).engine(&state.pool.config.engine).policy(policy).retry_after(wait);
    TaskError { queue_position: Some(ahead), ..error }
}

fn on_withdraw(state: &mut QueueState, accounts: &mut Accounts, seq: TaskSeq) {
    // Not here: it was dispatched just now, and whoever has it finds the seal.
    if let Some(record) = state.queue.cancel(accounts, seq) {
        state.forget_deadline(&record);
    }
}

fn on_return(state: &mut QueueState, accounts: &mut Accounts, record: Arc<TaskRecord>) {
    match record.phase() {
        Phase::Queued if seeded_bug!(LoseReturned) => {}
        Phase::Queued if seeded_bug!(ReturnedGoLast) => {
            state.queue.settle(accounts, record.seq, Served::Nothing);
            state.note_deadline(&record);
            state.queue.enqueue(accounts, record.arrival(), record.clone());
            state.trace_queued(&record);
        }
        Phase::Queued if migrate_one(state, accounts, &record) => {}
        Phase::Queued => {
            state.note_deadline(&record);
            if state.queue.put_back(accounts, record.arrival(), record.clone()) {
                state.trace_queued(&record);
            }
        }
        // Sealed while it came back, when it was no longer out: nobody else tells the accounts.
        Phase::Terminal => drop(state.queue.settle(accounts, record.seq, Served::Nothing)),
        // Taken from the ledger meanwhile, and sent out again: what is charged is for that.
        Phase::Submitted | Phase::Assigned | Phase::Running => {}
    }
}

/// Takes what waits from the ledger, which knows it all; what is here already is there too.
fn on_refill(state: &mut QueueState, accounts: &mut Accounts) {
    if seeded_bug!(LoseQueue) {
        return;
    }
    for seq in state.queue.numbers() {
        state.queue.cancel(accounts, seq);
    }
    state.deadlines.clear();
    settle(state, accounts);
    let mut out = BTreeSet::new();
    for record in state.runtime.ledger.unfinished_in(state.pool.position) {
        match record.phase() {
            Phase::Queued => on_return(state, accounts, record),
            Phase::Assigned | Phase::Running => drop(out.insert(record.seq)),
            Phase::Submitted | Phase::Terminal => {}
        }
    }
    settle(state, accounts); // What ended during the scan.
    // What is charged and not out came back to nobody: the message died with the last queue.
    for seq in accounts.unsettled() {
        if !out.contains(&seq) {
            state.queue.settle(accounts, seq, Served::Nothing);
        }
    }
}

/// Ends every waiting task: the pool will not run it (ORCH-3018).
fn fail_all_queued(state: &mut QueueState, accounts: &mut Accounts) {
    for seq in state.queue.numbers() {
        let Some(record) = state.queue.cancel(accounts, seq) else { continue };
        let _ = state.runtime.ledger.seal(&record, None, Terminal::Error(out(state))); // Cancelled just now.
    }
    state.deadlines.clear();
}

fn out(state: &QueueState) -> TaskError {
    let pool = &state.pool;
    let text = format!("pool {} is {}", pool.id, pool.state().as_str());
    let error = TaskError::new(ErrorCode::PoolUnavailable, text).engine(&pool.config.engine);
    error.retry_after(pool.next_try().unwrap_or_default())
}

impl QueueState {
    fn trace_queued(&self, record: &TaskRecord) {
        self.pool.env.trace(|| TraceKind::Queued {
            seq: record.seq,
            pool: self.pool.position,
            class: record.priority(),
            client: record.request.client_id.clone(),
            in_session: record.session().is_some(),
        });
    }
}
