//! One task from submission to its end: the record that every actor is lent and none owns.
//!
//! Phase, epoch and event log change under one lock, so "no token after cancel" and "exactly one terminal state" hold by
//! construction: appending and sealing cannot interleave, and an attempt of an older epoch is refused (fencing).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::actors::event_log::{End, EventLog, EventRef, ReplicaIdentity, Started};
use crate::actors::gate::Permit;
use crate::actors::shared::PoolShared;
use crate::actors::task_view::{SealedTask, TaskView, Timing};
use crate::core::id::{Epoch, TaskId, TaskSeq};
use crate::core::task::{Phase, Priority, Refusal, Step, TaskRequest, Terminal};
use crate::core::units::{Timestamp, Tokens, millis_ceil, millis_exact};

/// One task.
pub(crate) struct TaskRecord {
    pub(crate) id: TaskId,
    pub(crate) seq: TaskSeq,
    /// Behind a pointer: a record is built and moved once for each task.
    pub(crate) request: Arc<TaskRequest>,
    /// The seed that every attempt runs with.
    pub(crate) seed: u64,
    pub(crate) submitted_at: Timestamp,
    /// One lock for phase, epoch and log: each check and the change that rests on it are one step.
    state: Mutex<State>,
    /// Wakes the log's readers.
    changed: Notify,
    /// Wakes the attempt when the log is sealed by somebody else.
    stopped: Notify,
}

struct State {
    phase: Phase,
    epoch: Epoch,
    /// The queue has taken it in at some time: an end was promised.
    accepted: bool,
    attempts: u32,
    log: EventLog,
    /// The pool that the task was routed to; `None` before that.
    pool: Option<Arc<PoolShared>>,
    prompt_tokens: Tokens,
    /// The replica that served the task's session last.
    affinity: Option<u16>,
    queue_position: u64,
    predicted_start: Duration,
    /// Begin of the newest attempt.
    begun_at: Option<Timestamp>,
    first_token_at: Option<Timestamp>,
    /// Begin of the newest attempt, or its newest token.
    progress_at: Timestamp,
    ended_at: Option<Timestamp>,
    identity: Option<Arc<ReplicaIdentity>>,
    kv_warmth: bool,
    /// A reader has seen everything and waits on `changed`. Saves waking nobody, once a token.
    reader_waits: bool,
    /// The place at the intake gate; given back when the log is sealed.
    permit: Option<Permit>,
}

impl TaskRecord {
    pub(crate) fn new(
        id: TaskId,
        seq: TaskSeq,
        request: Arc<TaskRequest>,
        seed: u64,
        now: Timestamp,
        permit: Permit,
    ) -> Self {
        let state = State {
            phase: Phase::Submitted,
            epoch: Epoch(0),
            accepted: false,
            attempts: 0,
            log: EventLog::default(),
            pool: None,
            prompt_tokens: Tokens(0),
            affinity: None,
            queue_position: 0,
            predicted_start: Duration::ZERO,
            begun_at: None,
            first_token_at: None,
            progress_at: now,
            ended_at: None,
            identity: None,
            kv_warmth: false,
            reader_waits: false,
            permit: Some(permit),
        };
        let (changed, stopped) = (Notify::new(), Notify::new());
        TaskRecord { id, seq, request, seed, submitted_at: now, state: Mutex::new(state), changed, stopped }
    }

    /// The moment after which nobody wants the task any more.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.request.deadline.map(|deadline| self.submitted_at.after(deadline))
    }

    /// The class.
    pub(crate) fn priority(&self) -> Priority {
        self.request.priority
    }

    /// Notes where the task goes.
    pub(crate) fn set_route(&self, pool: Arc<PoolShared>, prompt_tokens: Tokens) {
        let mut state = self.state.lock();
        (state.pool, state.prompt_tokens) = (Some(pool), prompt_tokens);
    }

    /// Notes which replica served the task's session last.
    pub(crate) fn set_affinity(&self, replica: u16) {
        self.state.lock().affinity = Some(replica);
    }

    /// The replica that served the task's session last.
    pub(crate) fn affinity(&self) -> Option<u16> {
        self.state.lock().affinity
    }

    /// The pool that the task was routed to.
    pub(crate) fn pool(&self) -> Option<Arc<PoolShared>> {
        self.state.lock().pool.clone()
    }

    /// Where the task stands, and in which pool by position.
    pub(crate) fn place(&self) -> (Phase, Option<u16>) {
        let state = self.state.lock();
        (state.phase, state.pool.as_ref().map(|pool| pool.position))
    }

    /// Where the task stands.
    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// The queue takes the task in: from here on it is promised an end.
    pub(crate) fn admit(&self, position: u64, predicted: Duration) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        state.step(Step::Admit)?;
        (state.queue_position, state.predicted_start, state.accepted) = (position, predicted, true);
        self.wake_readers(state); // Somebody may wait for the decision.
        Ok(())
    }

    /// Whether the queue has taken the task in at some time.
    pub(crate) fn was_accepted(&self) -> bool {
        self.state.lock().accepted
    }

    /// Waits until the task has been accepted, or has ended without that. Returns whether it was accepted.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_decided(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            {
                let mut state = self.state.lock();
                if state.phase != Phase::Submitted {
                    return state.accepted;
                }
                state.reader_waits = true;
                changed.as_mut().enable(); // Under the lock, as for readers.
            }
            changed.await;
        }
    }

    /// What the task was promised when it was accepted: tasks ahead, and the time to its start.
    pub(crate) fn promise(&self) -> (u64, Duration) {
        let state = self.state.lock();
        (state.queue_position, state.predicted_start)
    }

    /// The queue hands the task towards a worker; a new epoch begins.
    pub(crate) fn assign(&self) -> Result<Epoch, Refusal> {
        let mut state = self.state.lock();
        state.step(Step::Assign)?;
        state.epoch.0 += 1;
        Ok(state.epoch)
    }

    /// The task comes back without a token of this epoch.
    pub(crate) fn give_back(&self, epoch: Epoch) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        state.fence(epoch)?;
        state.step(Step::Return)
    }

    /// A worker begins the task.
    pub(crate) fn begin(&self, epoch: Epoch, now: Timestamp, identity: &Arc<ReplicaIdentity>) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        state.fence(epoch)?;
        state.step(Step::Begin)?;
        state.attempts += 1;
        (state.begun_at, state.progress_at) = (Some(now), now);
        state.kv_warmth = state.affinity == Some(identity.replica.index);
        state.identity = Some(identity.clone());
        let started = Started {
            queue_position: state.queue_position,
            predicted_start_ms: millis_ceil(state.predicted_start),
            identity: identity.clone(),
            seed: self.seed,
            attempt: state.attempts,
            kv_warmth: state.kv_warmth,
        };
        let _ = state.log.append_started(started); // A sealed log is Terminal, which the step above refuses.
        self.wake_readers(state);
        Ok(())
    }

    /// Appends a token of this epoch and returns its index.
    pub(crate) fn append(&self, epoch: Epoch, now: Timestamp, text: &str) -> Result<u32, Refusal> {
        let mut state = self.state.lock();
        state.fence(epoch)?;
        if state.log.tokens() >= self.request.max_tokens.0 {
            return Err(Refusal::Budget(self.request.max_tokens));
        }
        let index = state.log.append_token(text).map_err(|_| Refusal::Sealed)?;
        state.progress_at = now;
        state.first_token_at.get_or_insert(now);
        self.wake_readers(state);
        Ok(index)
    }

    /// Ends the task: appends the terminal event, after which nothing is taken. With `by`, only for that epoch.
    ///
    /// Called by [`Ledger::seal`](super::ledger::Ledger::seal) alone, which does what has to follow.
    pub(super) fn seal(&self, by: Option<Epoch>, now: Timestamp, terminal: Terminal) -> Result<SealedTask, Refusal> {
        let mut state = self.state.lock();
        if let Some(epoch) = by {
            state.fence(epoch)?;
        }
        let was = state.phase;
        state.step(Step::Seal)?;
        state.ended_at = Some(now);
        let timing = state.timing(self.submitted_at, now);
        let mut tokens_in = state.prompt_tokens;
        let terminal = match terminal {
            Terminal::Error(error) => Err(error),
            Terminal::End { reason, tokens_in: counted } => {
                tokens_in = counted.unwrap_or(tokens_in);
                Ok(state.end(timing, tokens_in, reason))
            }
        };
        let _ = state.log.seal(terminal); // A sealed log is Terminal, which the step above refuses.
        drop(state.permit.take());
        let sealed = SealedTask {
            was,
            pool: state.pool.clone(),
            identity: state.identity.clone(),
            kv_warmth: state.kv_warmth,
            timing,
            tokens_in,
            tokens_out: state.log.tokens(),
            bytes: size_of::<TaskRecord>() + self.request.prompt.capacity() + state.log.bytes(),
        };
        self.wake_readers(state);
        self.stopped.notify_waiters();
        Ok(sealed)
    }

    fn wake_readers(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let waits = std::mem::take(&mut state.reader_waits);
        drop(state);
        if waits {
            self.changed.notify_waiters();
        }
    }

    /// Waits until the log is sealed.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_sealed(&self) {
        let stopped = self.stopped.notified();
        tokio::pin!(stopped);
        stopped.as_mut().enable(); // Before the check, so that a seal in between is not missed.
        if self.phase() != Phase::Terminal {
            stopped.await;
        }
    }

    /// Visits the events from index `from` on; returns the index behind the last, and whether the log is sealed.
    pub(crate) fn visit(&self, from: usize, visitor: impl FnMut(usize, EventRef<'_>)) -> (usize, bool) {
        let state = self.state.lock();
        (state.log.visit(from, visitor), state.log.is_sealed())
    }

    /// Waits until there is an event at index `from`, or the log is sealed without one.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_readable(&self, from: usize) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            {
                let mut state = self.state.lock();
                if state.log.len() > from || state.log.is_sealed() {
                    return;
                }
                state.reader_waits = true;
                changed.as_mut().enable(); // Under the lock: whoever appends next sees that somebody waits.
            }
            changed.await;
        }
    }

    /// When the newest attempt last made progress.
    pub(crate) fn progress_at(&self) -> Timestamp {
        self.state.lock().progress_at
    }

    /// Whether the newest attempt could still be given back: it has begun, and the log has no token.
    pub(crate) fn is_untouched(&self) -> bool {
        self.state.lock().log.tokens() == 0
    }

    /// Attempts that were begun.
    pub(crate) fn attempts(&self) -> u32 {
        self.state.lock().attempts
    }

    /// The task as a client sees it.
    pub(crate) fn view(&self) -> TaskView {
        let state = self.state.lock();
        let (end, error) = match state.log.terminal() {
            Some(EventRef::End(end)) => (Some(end.clone()), None),
            Some(EventRef::Error(error)) => (None, Some(error.clone())),
            _ => (None, None),
        };
        TaskView {
            task_id: self.id.clone(),
            phase: state.phase,
            client_id: self.request.client_id.clone(),
            priority: self.request.priority,
            pool_id: state.pool.as_ref().map(|pool| pool.id.clone()),
            replica_id: state.identity.as_ref().map(|identity| identity.replica.clone()),
            seed: self.seed,
            queue_position: state.queue_position,
            predicted_start_ms: millis_ceil(state.predicted_start),
            kv_warmth: state.kv_warmth,
            attempts: state.attempts,
            tokens_out: state.log.tokens(),
            end,
            error,
        }
    }
}

impl State {
    fn step(&mut self, step: Step) -> Result<(), Refusal> {
        if self.phase == Phase::Terminal {
            return Err(Refusal::Sealed);
        }
        self.phase = self.phase.next(step)?;
        Ok(())
    }

    /// Refuses what does not come from the newest epoch.
    fn fence(&self, theirs: Epoch) -> Result<(), Refusal> {
        if self.phase == Phase::Terminal {
            return Err(Refusal::Sealed);
        }
        let current = self.epoch;
        if theirs == current { Ok(()) } else { Err(Refusal::StaleEpoch { theirs, current }) }
    }

    fn timing(&self, submitted_at: Timestamp, now: Timestamp) -> Timing {
        Timing {
            queue: self.begun_at.unwrap_or(now).since(submitted_at),
            first_token: self.first_token_at.map(|first| first.since(submitted_at)),
            decode: self.first_token_at.map_or(Duration::ZERO, |first| now.since(first)),
            total: now.since(submitted_at),
        }
    }

    fn end(&self, timing: Timing, tokens_in: Tokens, reason: crate::core::task::FinishReason) -> End {
        End {
            tokens_in,
            tokens_out: self.log.tokens(),
            queue_ms: millis_exact(timing.queue),
            first_token_ms: timing.first_token.map(millis_exact),
            decode_ms: millis_exact(timing.decode),
            finish_reason: reason,
            attempts: self.attempts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::gate::IntakeGate;
    use crate::core::id::{PoolId, ReplicaId};
    use crate::core::task::FinishReason;

    fn record() -> TaskRecord {
        let permit = IntakeGate::new(1).try_enter().expect("a place");
        let request = Arc::new(TaskRequest::completion("x").max_tokens(2));
        let id = TaskId::parse("t").expect("valid");
        TaskRecord::new(id, TaskSeq(0), request, 7, Timestamp::from_micros(0), permit)
    }

    fn identity() -> Arc<ReplicaIdentity> {
        let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 };
        let (engine, engine_version, model_digest) = (String::new(), String::new(), String::new());
        Arc::new(ReplicaIdentity { replica, engine, engine_version, model_digest, process_id: None })
    }

    #[test]
    fn an_attempt_of_an_older_epoch_can_do_nothing() {
        let (record, now) = (record(), Timestamp::from_micros(1));
        record.admit(0, Duration::ZERO).expect("submitted");
        let old = record.assign().expect("queued");
        record.give_back(old).expect("assigned");
        let new = record.assign().expect("queued again");
        let stale = Refusal::StaleEpoch { theirs: old, current: new };
        assert_eq!(record.begin(old, now, &identity()), Err(stale));
        record.begin(new, now, &identity()).expect("assigned");
        assert_eq!(record.append(old, now, "late"), Err(stale));
        assert_eq!(record.give_back(old), Err(stale));
        let end = Terminal::End { reason: FinishReason::Stop, tokens_in: None };
        assert_eq!(record.seal(Some(old), now, end.clone()).err(), Some(stale));
        assert_eq!(record.append(new, now, "in time"), Ok(0));
        record.seal(Some(new), now, end).expect("running");
        assert_eq!(record.append(new, now, "after the end"), Err(Refusal::Sealed));
    }

    #[test]
    fn no_more_tokens_than_the_budget_and_one_place_at_the_gate() {
        let gate = IntakeGate::new(1);
        let permit = gate.try_enter().expect("a place");
        let record =
            TaskRecord { state: Mutex::new(State { permit: Some(permit), ..record().state.into_inner() }), ..record() };
        record.admit(0, Duration::ZERO).expect("submitted");
        let epoch = record.assign().expect("queued");
        record.begin(epoch, Timestamp::from_micros(1), &identity()).expect("assigned");
        for index in 0..2 {
            assert_eq!(record.append(epoch, Timestamp::from_micros(2), "a"), Ok(index));
        }
        assert_eq!(record.append(epoch, Timestamp::from_micros(2), "a"), Err(Refusal::Budget(Tokens(2))));
        assert!(gate.try_enter().is_none());
        record.seal(None, Timestamp::from_micros(3), Terminal::CANCELED).expect("running");
        assert!(gate.try_enter().is_some(), "the end gives the place back");
    }
}
