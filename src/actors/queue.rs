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

use crate::actors::lease::Assignment;
use crate::actors::pool_manager::PoolManagerMsg;
use crate::actors::record::TaskRecord;
use crate::actors::shared::{PoolShared, RuntimeShared};
use crate::actors::submission::{Accepted, Submission, Verdict};
use crate::core::error::{ErrorCode, TaskError};
use crate::core::id::TaskSeq;
use crate::core::lifecycle::Intent;
use crate::core::queue::{Enqueued, FullPolicy, Queue};
use crate::core::task::{Phase, Priority, Terminal};
use crate::core::trace::TraceKind;
use crate::core::units::Timestamp;

/// All that the actor needs.
pub(crate) struct QueueArgs {
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) pool: Arc<PoolShared>,
}

/// What the actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum QueueMsg {
    /// Take a new task in, or refuse it.
    Enqueue(Submission),
    /// Forget a task whose log has been sealed.
    Withdraw { seq: TaskSeq },
    // ---- the pool's own actors
    /// A task comes back without a token, for its old place.
    Return { record: Arc<TaskRecord> },
    /// So many more slots are free.
    Offer { slots: u32 },
    /// A new pool manager: earlier offers are void.
    ManagerReplaced,
    /// It can be reached: look at the ledger once more.
    Refill,
    /// The pool has stopped, or every breaker is open.
    PoolOut,
    // ---- from itself
    /// A waiting task's deadline may have passed.
    DeadlineDue,
}

/// The actor.
pub(crate) struct QueueActor;

/// Its state.
pub(crate) struct QueueState {
    runtime: Arc<RuntimeShared>,
    pool: Arc<PoolShared>,
    queue: Queue<Arc<TaskRecord>>,
    /// Slots that the pool manager has offered and that no task was sent for.
    credit: u32,
    /// The generation of this life; an older one takes nothing in any more.
    generation: u64,
    /// Deadlines of waiting tasks. Invariant: only tasks in `queue`.
    deadlines: BTreeSet<(Timestamp, TaskSeq)>,
    /// The moment of the `DeadlineDue` that is under way.
    armed: Option<Timestamp>,
}

impl Actor for QueueActor {
    type Msg = QueueMsg;
    type State = QueueState;
    type Arguments = QueueArgs;

    async fn pre_start(&self, _: ActorRef<QueueMsg>, args: QueueArgs) -> Result<QueueState, ActorProcessingErr> {
        let QueueArgs { runtime, pool } = args;
        let generation = pool.queue_generation.load(SeqCst);
        let queue = Queue::new(pool.config.queue.bounds());
        let (deadlines, armed) = (BTreeSet::new(), None);
        let mut state = QueueState { runtime, pool, queue, credit: 0, generation, deadlines, armed };
        on_refill(&mut state);
        state.publish();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<QueueMsg>,
        message: QueueMsg,
        state: &mut QueueState,
    ) -> Result<(), ActorProcessingErr> {
        state.pool.env.fault_point("queue");
        match message {
            QueueMsg::Enqueue(submission) => on_enqueue(state, submission),
            QueueMsg::Withdraw { seq } => on_withdraw(state, seq),
            QueueMsg::Return { record } => on_return(state, record),
            QueueMsg::Offer { slots } => state.credit += slots,
            QueueMsg::ManagerReplaced => state.credit = 0,
            QueueMsg::Refill => on_refill(state),
            QueueMsg::PoolOut => {}
            QueueMsg::DeadlineDue => on_deadline_due(state),
        }
        if state.pool.is_out() {
            turn_everybody_out(state);
        }
        dispatch(state);
        arm(state, &myself);
        state.publish();
        if cfg!(debug_assertions) && state.queue.len() < 64 {
            state.queue.invariants();
        }
        Ok(())
    }
}

fn on_enqueue(state: &mut QueueState, Submission { record, reply }: Submission) {
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
    if state.pool.is_out() {
        let _ = reply.send(Err(out(state)));
        return;
    }
    let class = record.priority();
    let ahead = state.queue.ahead(class);
    let idle = ahead == 0 && state.credit > 0;
    let predicted_start = if idle { Duration::ZERO } else { state.pool.rate.lock().wait(ahead) };
    match state.queue.enqueue(record.seq, class, record.clone()) {
        Enqueued::Refused { item } => refuse(state, &item, reply),
        outcome => {
            if let Enqueued::Evicted { item, .. } = outcome {
                state.forget_deadline(&item);
                evict(state, &item);
            }
            accept(state, &record, reply, Accepted { queue_position: ahead, predicted_start });
        }
    }
}

fn accept(state: &mut QueueState, record: &Arc<TaskRecord>, reply: RpcReplyPort<Verdict>, accepted: Accepted) {
    if record.admit(accepted.queue_position, accepted.predicted_start).is_err() {
        // Its caller gave up in between; the log is sealed.
        state.queue.cancel(record.seq);
        return;
    }
    state.pool.env.trace(|| TraceKind::Queued { seq: record.seq });
    state.note_deadline(record);
    if state.generation != state.pool.queue_generation.load(SeqCst) {
        // Killed while it decided: the newer queue may have looked at the ledger a moment too early.
        state.pool.queue.cast(QueueMsg::Return { record: record.clone() });
    }
    state.pool.counters.enqueued[record.priority().index()].fetch_add(1, Relaxed);
    state.pool.env.fault_point("queue");
    let _ = reply.send(Ok(accepted)); // A caller that is gone has cancelled by its guard.
}

fn refuse(state: &QueueState, record: &TaskRecord, reply: RpcReplyPort<Verdict>) {
    let pool = &state.pool;
    pool.counters.queue_full.fetch_add(1, Relaxed);
    let text = format!("the queue of pool {} is full with {} tasks", pool.id, state.queue.len());
    let _ = reply.send(Err(full(state, record.priority(), ErrorCode::AdmissionReject, text)));
}

fn evict(state: &QueueState, victim: &TaskRecord) {
    state.pool.counters.queue_full.fetch_add(1, Relaxed);
    let code = match state.pool.config.queue.full_policy {
        FullPolicy::DropLru => ErrorCode::QueueFullDropLru,
        FullPolicy::Reject | FullPolicy::ShedLowPriority => ErrorCode::AdmissionReject,
    };
    let text = format!("the task made room for another in the full queue of pool {}", state.pool.id);
    let error = full(state, victim.priority(), code, text);
    let _ = state.runtime.ledger.seal(victim, None, Terminal::Error(error)); // Already sealed: cancelled just now.
}

/// The error of a full queue. One comes back when the queue has moved on by the tasks that are ahead.
fn full(state: &QueueState, class: Priority, code: ErrorCode, text: String) -> TaskError {
    let ahead = state.queue.ahead(class);
    let wait = state.pool.rate.lock().wait(ahead);
    let policy = state.pool.config.queue.full_policy.as_str();
    let error = TaskError::new(code, text).engine(&state.pool.config.engine).policy(policy).retry_after(wait);
    TaskError { queue_position: Some(ahead), ..error }
}

fn on_withdraw(state: &mut QueueState, seq: TaskSeq) {
    // Not here: it was dispatched just now, and whoever has it finds the seal.
    if let Some(record) = state.queue.cancel(seq) {
        state.forget_deadline(&record);
    }
    if state.queue.is_empty() && state.pool.intent() != Intent::Serve {
        state.pool.nudge_manager(); // The drain may be complete.
    }
}

fn on_return(state: &mut QueueState, record: Arc<TaskRecord>) {
    if record.phase() == Phase::Queued {
        state.note_deadline(&record);
        state.queue.put_back(record.seq, record.priority(), record);
    }
}

/// Takes what waits from the ledger, which knows it all; what is here already is there too.
fn on_refill(state: &mut QueueState) {
    state.queue = Queue::new(state.pool.config.queue.bounds());
    state.deadlines.clear();
    for record in state.runtime.ledger.queued_in(state.pool.position) {
        on_return(state, record);
    }
}

/// Ends every waiting task: the pool will not run it (ORCH-3018).
fn turn_everybody_out(state: &mut QueueState) {
    while let Some((_, record)) = state.queue.dispatch() {
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

/// Ends the waiting tasks whose deadlines have passed.
fn on_deadline_due(state: &mut QueueState) {
    state.armed = None;
    let now = state.pool.env.now();
    while let Some((_, seq)) = state.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
        state.deadlines.pop_first();
        let Some(record) = state.queue.cancel(seq) else { continue };
        let _ = state.runtime.ledger.seal(&record, None, Terminal::missed_deadline()); // Cancelled just now.
    }
}

/// One timer, for the earliest deadline.
fn arm(state: &mut QueueState, myself: &ActorRef<QueueMsg>) {
    let Some((earliest, _)) = state.deadlines.first().copied() else { return };
    if state.armed.is_none_or(|armed| earliest < armed) {
        state.armed = Some(earliest);
        myself.send_after(earliest.since(state.pool.env.now()), || QueueMsg::DeadlineDue);
    }
}

/// Sends tasks for the slots that were offered.
fn dispatch(state: &mut QueueState) {
    let mut batch = Vec::new();
    while (batch.len() as u32) < state.credit {
        let Some((_, record)) = state.queue.dispatch() else { break };
        state.forget_deadline(&record);
        // Refused: sealed a moment ago, and its withdrawal is on its way.
        if let Ok(epoch) = record.assign() {
            state.pool.env.trace(|| TraceKind::Assigned { seq: record.seq, epoch });
            batch.push(Assignment::new(record, epoch, state.pool.clone()));
        }
    }
    if batch.is_empty() {
        return;
    }
    state.pool.env.fault_point("queue");
    let sent = batch.len() as u32;
    state.credit -= sent;
    if !state.pool.manager.cast(PoolManagerMsg::Assign { batch }) {
        state.credit = 0; // Nobody there: the tasks are coming back by themselves, the next manager offers anew.
    }
}

impl QueueState {
    fn note_deadline(&mut self, record: &TaskRecord) {
        if let Some(deadline) = record.deadline() {
            self.deadlines.insert((deadline, record.seq));
        }
    }

    fn forget_deadline(&mut self, record: &TaskRecord) {
        if let Some(deadline) = record.deadline() {
            self.deadlines.remove(&(deadline, record.seq));
        }
    }

    /// Shows the depth to admission and to metrics, as of now.
    fn publish(&self) {
        for class in Priority::ALL {
            self.pool.depth[class.index()].store(self.queue.len_of(class), Relaxed);
            self.pool.ahead[class.index()].store(self.queue.ahead(class), Relaxed);
        }
    }
}
