//! One attempt: one run of a task on one engine, from its begin to the moment its slot is free again.
//!
//! It owns the slot and answers for the task: however it ends, dropped in the middle included, the log gets its
//! terminal event and the slot comes back. Tokens go straight into the log; no mailbox sees them.
//!
//! Spec: ORCH-3016, ORCH-3017, ORCH-3026.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::ActorRef;

use crate::actors::metrics::events::RuntimeEvent;
use crate::actors::pool::lease::{Assignment, SlotLease, return_to_queue};
use crate::actors::pool::messages::WorkerMsg;
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::SessionsMsg;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::SealedTask;
use crate::actors::worker::output::LogOutput;
use crate::actors::worker::quarantine::confirm_stopped;
use crate::core::id::Epoch;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::failure::Cause;
use crate::core::task::trace::TraceKind;
use crate::core::task::{FinishReason, Phase, TaskRequest, Terminal, TransitionError};
use crate::core::text::line::Message;
use crate::core::units::{Timestamp, Tokens};
use crate::env::STOOD_STILL;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Finish, Job};
#[cfg(feature = "planted-bugs")]
use crate::planted::seeded_bug;

/// What an attempt has of its worker.
pub(crate) struct Attempt {
    pub(crate) runtime: Arc<RuntimeShared>,
    pub(crate) pool: Arc<PoolShared>,
    pub(crate) engine: Arc<dyn DynEngine>,
    pub(crate) identity: Arc<ReplicaIdentity>,
    pub(crate) worker: ActorRef<WorkerMsg>,
    /// What the worker's life ends of, once it does and knows.
    pub(crate) dying_of: Arc<OnceLock<EngineError>>,
    pub(crate) lease: SlotLease,
    /// When it began.
    pub(crate) begun: Timestamp,
}

/// How the run came to stand still.
enum Outcome {
    /// The engine returned.
    Returned(Result<Finish, EngineError>),
    /// Somebody else has sealed the log.
    SealedElsewhere,
    /// No token came for too long.
    Hung(String),
    /// The task has had its time.
    TimedOut(String),
    /// Another token came at this index than from an earlier attempt, or none any more.
    Diverged(u32),
}

/// Runs a task to its end.
///
/// # Cancel safety
/// Dropping it returns the task to its queue or seals the log with `WORKER_RESET`, by the task's rule, and frees the
/// slot.
pub(crate) async fn run(mut attempt: Attempt, assignment: Assignment) {
    if attempt.place().capacity.slots.usable() == 0 && !attempt.pool.is_remote() {
        return; // It was left out while the task was on its way; dropped, that goes back to its place in the queue.
    }
    let (record, epoch) = assignment.into_task();
    let now = attempt.pool.env.now();
    attempt.begun = now;
    if record.deadline().is_some_and(|deadline| now >= deadline) {
        let _ = attempt.runtime.ledger.seal(&record, Some(epoch), Terminal::missed_deadline());
        return;
    }
    let rest = match record.begin(epoch, now, &attempt.identity) {
        Ok(rest) => rest,
        Err(refusal) => return refuse(&attempt, record, epoch, refusal),
    };
    if rest.as_ref().is_some_and(|rest| rest.max_tokens == Tokens(0)) {
        // It was lost between its last token and its end.
        let terminal = Terminal::End { reason: FinishReason::Length, tokens_in: None };
        let _ = attempt.runtime.ledger.seal(&record, Some(epoch), terminal);
        return;
    }
    let index = attempt.lease.replica;
    let pool = attempt.pool.position;
    let generation = attempt.identity.generation;
    attempt.pool.env.trace(|| TraceKind::Begun { seq: record.seq, pool, replica: index, generation });
    attempt.pool.replicas[index as usize].counters.started[record.priority().index()].fetch_add(1, Relaxed);
    let mut guard = AttemptGuard { attempt: &attempt, record: &record, epoch, armed: true };
    let (outcome, left_running) = drive(&attempt, &record, rest, epoch).await;
    #[cfg(feature = "planted-bugs")]
    let leaks = seeded_bug!(LeakSlot) && matches!(&outcome, Outcome::SealedElsewhere);
    settle(&attempt, &record, epoch, outcome);
    guard.armed = false; // `settle` has ended the task or given it back, whatever the outcome.
    if left_running {
        confirm_stopped(&attempt).await;
    }
    #[cfg(feature = "planted-bugs")]
    if leaks {
        drop(guard);
        Box::leak(Box::new(attempt));
    }
}

/// Ends a task that cannot begin here, or gives it back to its own pool.
fn refuse(attempt: &Attempt, record: Arc<TaskRecord>, epoch: Epoch, refusal: TransitionError) {
    let error = match refusal {
        TransitionError::OtherModel => {
            return_to_queue(record, epoch);
            return;
        }
        // Accepted for what was served then, and sent here behind a reload.
        TransitionError::Misfit => {
            let why =
                attempt.identity.spec.fits(&record.request, &attempt.pool.config.aliases).err().unwrap_or_default();
            attempt.error(ErrorCode::PoolUnavailable, format!("pool {} was reloaded: {why}", attempt.pool.id))
        }
        TransitionError::OtherSource => attempt.error(ErrorCode::WorkerReset, refusal.to_string()),
        _ => return, // Cancelled on its way.
    };
    let _ = attempt.runtime.ledger.seal(&record, Some(epoch), Terminal::Error(error));
}

/// Lets the engine run until it returns, the log is sealed, or the watchdog fires. Returns whether the engine may
/// compute still, too.
async fn drive(attempt: &Attempt, record: &TaskRecord, rest: Option<TaskRequest>, epoch: Epoch) -> (Outcome, bool) {
    let request = rest.as_ref().unwrap_or(&record.request);
    let job = Job { task_id: &record.id, request, seed: record.seed, slot: attempt.lease.slot, is_self_test: false };
    let behind = rest.as_ref().map_or(0, |_| record.progress().1.max(record.counted()));
    let mut output = LogOutput::new(attempt, (record, epoch), behind);
    let span = record.host_span();
    let outcome = {
        let mut run = pin!(attempt.engine.generate(job, &mut output));
        let run = poll_fn(|context| {
            let _inside = span.as_ref().map(|span| span.enter());
            let polled = run.as_mut().poll(context);
            record.tell_readers();
            polled
        });
        tokio::select! {
            biased;
            // First, since it is the usual case; an engine that goes on after a seal is told so by its output.
            result = run => Outcome::Returned(result),
            () = record.until_sealed() => Outcome::SealedElsewhere,
            outcome = watchdog(attempt, record, epoch) => outcome,
        }
    };
    let left_running = !matches!(&outcome, Outcome::Returned(Ok(_)));
    let outcome = match outcome {
        Outcome::Returned(result) => output.judge(result).map_or_else(Outcome::Diverged, Outcome::Returned),
        // It was told to stop at its budget, and does not: the task has all that it may have.
        Outcome::Hung(_) | Outcome::TimedOut(_) if output.is_full() => {
            Outcome::Returned(Ok(Finish { reason: FinishReason::Length, tokens_in: None }))
        }
        other => other,
    };
    let outcome = match outcome {
        // Its prompt was not the task's.
        Outcome::Returned(Ok(finish)) if rest.is_some() => Outcome::Returned(Ok(Finish { tokens_in: None, ..finish })),
        Outcome::Returned(Ok(_)) => record.not_repeated().map_or(outcome, Outcome::Diverged),
        other => other,
    };
    (outcome, left_running)
}

/// Returns when the task has run for too long, earlier attempts included, or has not made progress for too long
/// (ORCH-3016).
async fn watchdog(attempt: &Attempt, record: &TaskRecord, epoch: Epoch) -> Outcome {
    let (env, timeouts) = (&attempt.pool.env, &attempt.pool.config.timeouts);
    let (wall, idle) = (Duration::from_millis(timeouts.wall_ms), Duration::from_millis(timeouts.idle_ms));
    let mut wall_end = record.first_begun_at().unwrap_or_else(|| env.now()).after(wall);
    let deadline = record.deadline().unwrap_or(Timestamp::from_micros(u64::MAX));
    loop {
        let now = env.now();
        // One timer, moved only when it fires: a token costs no timer work.
        let idle_end = record.progress_at().after(idle);
        if now >= idle_end {
            return Outcome::Hung(format!("idle timeout: no token for {idle:?}"));
        }
        if now >= wall_end {
            return Outcome::TimedOut(format!("wall timeout: the task ran for {wall:?}"));
        }
        if now >= deadline {
            return Outcome::TimedOut("the task's own deadline has passed".to_owned());
        }
        let planned = idle_end.min(wall_end).min(deadline);
        env.sleep_until(planned).await;
        let late = env.now().since(planned);
        if late >= STOOD_STILL {
            // Nobody could read what has come meanwhile: from here on is counted.
            record.note_alive(epoch, env.now());
            wall_end = wall_end.after(late);
        }
    }
}

/// Ends the task as the outcome says: first the log, then whoever wants to know.
fn settle(attempt: &Attempt, record: &Arc<TaskRecord>, epoch: Epoch, outcome: Outcome) {
    let diverges = matches!(&outcome, Outcome::Diverged(_));
    let terminal = match outcome {
        Outcome::SealedElsewhere => return,
        Outcome::TimedOut(text) => Terminal::Error(attempt.error(ErrorCode::DecodeTimeout, text)),
        Outcome::Hung(text) => {
            attempt.suspect(record, EngineError::Hung(text.clone().into()));
            if record.runs_again() {
                return attempt.give_back(record, epoch);
            }
            Terminal::Error(attempt.error(ErrorCode::DecodeTimeout, text))
        }
        Outcome::Diverged(index) => {
            let text =
                format!("token {index} is not the one that an earlier attempt gave; the engine does not repeat itself");
            Terminal::Error(attempt.error(ErrorCode::WorkerReset, text))
        }
        Outcome::Returned(Ok(Finish { reason, tokens_in })) => Terminal::End { reason, tokens_in },
        // The log took no more: it is sealed already, or the budget is used up.
        Outcome::Returned(Err(EngineError::Stopped(_))) => {
            Terminal::End { reason: FinishReason::Length, tokens_in: None }
        }
        Outcome::Returned(Err(EngineError::Refused(text))) => {
            attempt.note_failed(record, Cause::Client); // The engine is well: nothing is suspected, nothing restarts.
            let text = format!("the engine refuses the request: {text}");
            Terminal::Error(attempt.error(ErrorCode::InvalidParams, text).quoting(Cause::Client))
        }
        Outcome::Returned(Err(error)) => match attempt.lost(record, epoch, error) {
            Some(terminal) => terminal,
            None => return,
        },
    };
    let is_well = matches!(&terminal, Terminal::End { .. });
    if let Ok(sealed) = attempt.runtime.ledger.seal(record, Some(epoch), terminal) {
        if is_well && attempt.place().outlier.is_in_trouble() && attempt.place().note_well(attempt.pool.env.now(), true)
        {
            attempt.pool.nudge_manager();
        }
        if diverges {
            attempt.pool.figures.counters.diverged.fetch_add(1, Relaxed);
            attempt.place().lower_class();
        }
        report(attempt, record, &sealed);
    }
}

/// Tells the pool manager and the sessions actor about a task that ran to an end.
fn report(attempt: &Attempt, record: &TaskRecord, sealed: &SealedTask) {
    let timing = sealed.timing;
    {
        let mut sum = attempt.pool.capacity.held.lock();
        *sum = (sum.0.saturating_add((timing.total - timing.queue).as_micros() as u64), sum.1 + 1);
    }
    if let Some(session) = record.request.session_id.clone() {
        let (client, identity) = (record.request.client_id.clone(), attempt.identity.clone());
        attempt.runtime.actors.sessions.cast(SessionsMsg::Served { session, client, identity }); // Lost: it starts cold.
    }
}

impl Attempt {
    pub(in crate::actors) fn place(&self) -> &ReplicaShared {
        &self.pool.replicas[self.lease.replica as usize]
    }

    /// Sends the task back to its place in the queue.
    pub(in crate::actors) fn give_back(&self, record: &Arc<TaskRecord>, epoch: Epoch) {
        let returned = return_to_queue(record.clone(), epoch); // Not when somebody has ended it meanwhile.
        self.pool.figures.counters.resumed.fetch_add(u64::from(returned), Relaxed);
        if returned {
            self.runtime.ledger.events.tell(|| RuntimeEvent::TaskResumed {
                task_id: record.id.clone(),
                client_id: record.request.client_id.clone(),
                pool_id: self.pool.id.clone(),
            });
        }
    }

    pub(in crate::actors) fn error(&self, code: ErrorCode, text: impl Into<Message>) -> TaskError {
        TaskError::new(code, text).engine(&self.pool.config.engine)
    }
}

/// Answers for a task whose attempt is dropped: the worker died, or the engine's code panicked.
struct AttemptGuard<'a> {
    attempt: &'a Attempt,
    record: &'a Arc<TaskRecord>,
    epoch: Epoch,
    armed: bool,
}

impl Drop for AttemptGuard<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if self.record.phase() == Phase::Terminal {
            return; // Nobody lost anything.
        }
        let cause = self.attempt.dying_of.get().map_or(Cause::Bug, EngineError::cause);
        self.attempt.note_failed(self.record, cause);
        if self.record.runs_again() {
            return self.attempt.give_back(self.record, self.epoch);
        }
        let error = self.attempt.error(ErrorCode::WorkerReset, "the worker died while it ran the task");
        let wait = self.attempt.pool.advice(self.record.priority());
        let terminal = Terminal::Error(error.retry_after(wait));
        // Refused: the task has ended, or is in the queue again.
        let _ = self.attempt.runtime.ledger.seal(self.record, Some(self.epoch), terminal);
    }
}
