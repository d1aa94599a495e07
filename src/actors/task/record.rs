//! One task from submission to its end: the record that every actor is lent and none owns.
//!
//! Phase, epoch and event log change under one lock, so "no token after cancel" and "exactly one terminal state" hold
//! by construction: appending and sealing cannot interleave, and an attempt of an older epoch is refused (fencing).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::actors::kit::gate::Permit;
use crate::actors::task::event_log::replay::{Repeated, Replay};
use crate::actors::task::event_log::{ReplicaIdentity, Started};
use crate::actors::task::home::Home;
use crate::actors::task::lingering::Readership;
use crate::actors::task::log;
use crate::actors::task::state::State;
use crate::core::id::{Epoch, TaskId, TaskSeq};
use crate::core::task::{Phase, Priority, Step, TaskRequest, TransitionError};
use crate::core::units::{Timestamp, Tokens, millis_ceil};
use crate::planted::seeded_bug;

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
    pub(in crate::actors) state: Mutex<State>,
    /// Wakes the log's readers.
    pub(in crate::actors) changed: Notify,
    /// Wakes the attempt when the log is sealed by somebody else.
    pub(in crate::actors) stopped: Notify,
    /// Tokens have been appended that no reader was woken for.
    has_news: AtomicBool,
    /// Who reads its log.
    pub(in crate::actors) readership: Readership,
    /// The engines' highest count of its tokens; 0 while none has counted them. Written by its attempts.
    pub(in crate::actors) counted: AtomicU32,
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
        let state = State::new(now, permit);
        let (changed, stopped, readership) = (Notify::new(), Notify::new(), Readership::default());
        let (state, has_news, counted) = (Mutex::new(state), AtomicBool::new(false), AtomicU32::new(0));
        TaskRecord { id, seq, request, seed, submitted_at: now, state, changed, stopped, has_news, readership, counted }
    }

    /// The moment after which nobody wants the task any more.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.request.deadline.map(|deadline| self.submitted_at.after(deadline))
    }

    /// The class.
    pub(crate) fn priority(&self) -> Priority {
        self.request.priority
    }

    /// Where the task stands.
    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// The queue takes the task in: from here on it is promised an end.
    pub(crate) fn admit(&self, position: u64, predicted: Duration) -> Result<(), TransitionError> {
        let mut state = self.state.lock();
        state.step(Step::Admit)?;
        (state.promise.queue_position, state.promise.predicted_start, state.promise.accepted) =
            (position, predicted, true);
        state.holdings.permit.iter_mut().for_each(|permit| permit.is_accepted = true);
        self.wake_readers(state); // Somebody may wait for the decision.
        log::step(self, "accepted");
        Ok(())
    }

    /// The pool and the replica that have its newest attempt, or the pool whose queue has it.
    pub(in crate::actors) fn whereabouts(&self) -> (Option<Arc<dyn Home>>, Option<Arc<ReplicaIdentity>>) {
        let state = self.state.lock();
        let pool =
            state.routing.runs_in.clone().or_else(|| state.routing.route.as_ref().map(|route| route.pool.clone()));
        (pool, state.identity.clone())
    }

    /// Whether the queue has taken the task in at some time.
    pub(crate) fn was_accepted(&self) -> bool {
        self.state.lock().promise.accepted
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
                    return state.promise.accepted;
                }
                state.reading.reader_waits = true;
                changed.as_mut().enable(); // Under the lock, as for readers.
            }
            changed.await;
        }
    }

    /// What the task was promised when it was accepted: tasks ahead, and the time to its start.
    pub(crate) fn promise(&self) -> (u64, Duration) {
        let state = self.state.lock();
        (state.promise.queue_position, state.promise.predicted_start)
    }

    /// The queue hands the task towards a worker; a new epoch begins.
    pub(crate) fn assign<H: Home>(&self, runs_in: &Arc<H>) -> Result<Epoch, TransitionError> {
        let mut state = self.state.lock();
        state.step(Step::Assign)?;
        state.epoch.0 += 1;
        state.routing.runs_in = Some(runs_in.clone());
        Ok(state.epoch)
    }

    /// The task comes back to be run again; this epoch is over.
    pub(crate) fn give_back(&self, epoch: Epoch) -> Result<(), TransitionError> {
        let mut state = self.state.lock();
        state.fence(epoch)?;
        state.step(Step::Return)?;
        if state.output.log.tokens() > 0 {
            let last = state.clock.progress_at;
            state.clock.silent_since.get_or_insert(last);
        }
        if let Some(claim) = &mut state.holdings.claim {
            claim.give_back(&self.request.client_id);
        }
        self.wake_readers(state); // The attempt may have died between a token and its word.
        log::step(self, "returned");
        Ok(())
    }

    /// A worker begins the task. Returns what it is to be asked for, if that is not what the task asked for.
    pub(crate) fn begin(
        &self,
        epoch: Epoch,
        now: Timestamp,
        identity: &Arc<ReplicaIdentity>,
    ) -> Result<Option<TaskRequest>, TransitionError> {
        let mut state = self.state.lock();
        state.fence(epoch)?;
        let home = state.routing.route.as_ref().map(|route| &route.pool);
        let lent =
            home.filter(|home| state.routing.runs_in.as_ref().is_some_and(|runs_in| home.number() != runs_in.number()));
        if lent.is_some_and(|home| !home.serves_the_same_as(identity)) {
            return Err(TransitionError::OtherModel);
        }
        let aliases = state.routing.runs_in.as_ref().map_or(&[] as &[String], |pool| &pool.config().aliases);
        if identity.spec.fits(&self.request, aliases).is_err() && !seeded_bug!(RunMisfits) {
            return Err(TransitionError::Misfit);
        }
        let before = state.identity.as_ref().filter(|_| state.output.log.tokens() > 0);
        if before.is_some_and(|before| !before.is_same_source(identity)) && !seeded_bug!(ResumeAnywhere) {
            return Err(TransitionError::OtherSource);
        }
        state.step(Step::Begin)?;
        state.attempts += 1;
        let rest = state.rest(&self.request, self.counted.load(Relaxed));
        state.clock.progress_at = now;
        state.output.replay = if rest.is_some() { state.output.log.behind_all() } else { Replay::default() };
        state.clock.first_begun_at.get_or_insert(now);
        if state.output.log.tokens() == 0 {
            state.clock.begun_at = Some(now);
        }
        state.kv_warmth = state.routing.affinity.as_ref().is_some_and(|served| Arc::ptr_eq(served, identity));
        state.identity = Some(identity.clone());
        let started = Started {
            queue_position: state.promise.queue_position,
            predicted_start_ms: millis_ceil(state.promise.predicted_start),
            identity: identity.clone(),
            seed: self.seed,
            attempt: state.attempts,
            kv_warmth: state.kv_warmth,
            continues_behind: rest.is_some().then(|| state.output.log.tokens()),
        };
        let _ = state.output.log.append_started(started); // A sealed log is Terminal, which the step above refuses.
        self.wake_readers(state);
        log::step(self, "started");
        Ok(rest)
    }

    /// Takes a token of this epoch and returns its index. What an earlier attempt gave is compared; what is new is
    /// appended. Readers hear of it with [`TaskRecord::tell_readers`].
    pub(crate) fn append(&self, epoch: Epoch, now: Timestamp, text: &str) -> Result<u32, TransitionError> {
        let mut guard = self.state.lock();
        #[cfg(feature = "planted-bugs")]
        if seeded_bug!(AppendAfterSeal) && guard.phase == Phase::Terminal {
            return guard.output.log.append_behind_end(text).map_err(|_| TransitionError::Sealed);
        }
        guard.fence(epoch).or_else(|refusal| if seeded_bug!(StaleEpoch) { Ok(()) } else { Err(refusal) })?;
        let state = &mut *guard;
        let repeated = state.output.log.repeat(&mut state.output.replay, text);
        let known = match if seeded_bug!(SpliceReplay) { Repeated::New(0) } else { repeated } {
            Repeated::Same(index) => {
                state.clock.progress_at = now;
                return Ok(index);
            }
            Repeated::Differs(index) => return Err(TransitionError::Diverged(index)),
            Repeated::New(known) => known,
        };
        if known == 0 && state.pieces() >= self.request.max_tokens.0 {
            return Err(TransitionError::Budget(self.request.max_tokens));
        }
        state.output.rests += u32::from(known > 0);
        let index = state
            .output
            .log
            .append_new(&mut state.output.replay, &text[known..])
            .map_err(|_| TransitionError::Sealed)?;
        state.clock.progress_at = now;
        state.clock.first_token_at.get_or_insert(now);
        if let Some(since) = state.clock.silent_since.take() {
            state.clock.resume_gap = state.clock.resume_gap.max(Some(now.since(since)));
        }
        self.has_news.store(true, Relaxed); // Under the lock, as is the look that follows.
        Ok(index)
    }

    /// Wakes readers for what was appended since the last call. The attempt calls it whenever its engine has nothing
    /// more at hand: tokens that came together are read together, with one write to each connection.
    pub(crate) fn tell_readers(&self) {
        if self.has_news.swap(false, Relaxed) {
            self.wake_readers(self.state.lock());
        }
    }

    /// Index of the first token that the newest attempt has not repeated yet; `None` when it has come to the log's end.
    pub(crate) fn not_repeated(&self) -> Option<u32> {
        let state = self.state.lock();
        state.output.log.not_repeated(&state.output.replay)
    }

    /// Lets go of the state, and wakes readers that wait for more.
    pub(in crate::actors) fn wake_readers(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let waits = std::mem::take(&mut state.reading.reader_waits);
        drop(state);
        let waits = waits && !seeded_bug!(LostWake);
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
}

impl State {
    /// Tokens by the pieces in which they came.
    pub(in crate::actors) fn pieces(&self) -> u32 {
        self.output.log.tokens() - self.output.rests
    }

    /// What is left of a task that continues after its tokens: by its engine's count, where that is higher.
    fn rest(&self, request: &TaskRequest, counted: u32) -> Option<TaskRequest> {
        let tokens = self.output.log.tokens();
        let home = self.routing.route.as_ref().filter(|_| tokens > 0).map(|route| &route.pool)?;
        let continues = home.loss_rule(request).continues(tokens);
        continues.then(|| TaskRequest {
            prompt: request.prompt.clone() + self.output.log.text(),
            max_tokens: Tokens(request.max_tokens.0.saturating_sub(self.pieces().max(counted))),
            ..request.clone()
        })
    }

    pub(in crate::actors) fn step(&mut self, step: Step) -> Result<(), TransitionError> {
        if self.phase == Phase::Terminal {
            return Err(TransitionError::Sealed);
        }
        self.phase = self.phase.next(step)?;
        Ok(())
    }

    /// Refuses what does not come from the newest epoch.
    pub(in crate::actors) fn fence(&self, theirs: Epoch) -> Result<(), TransitionError> {
        if self.phase == Phase::Terminal {
            return Err(TransitionError::Sealed);
        }
        let current = self.epoch;
        if theirs == current { Ok(()) } else { Err(TransitionError::StaleEpoch { theirs, current }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::kit::gate::IntakeGate;
    use crate::actors::pool::shared::PoolShared;
    use crate::actors::task::lingering::LingeringRoom;
    use crate::core::id::{PoolId, ReplicaId};
    use crate::core::task::{FinishReason, Terminal};
    use crate::core::text::line::Name;

    fn pool() -> Arc<PoolShared> {
        let config = crate::config::PoolConfig::new("p", "sim", "m");
        let factory: crate::gpu::dyn_engine::EngineFactory =
            Arc::new(|context| Arc::new(crate::gpu::SimEngine::new(context)));
        PoolShared::alone(config, crate::env::Env::simulated(0), factory)
    }

    fn record() -> TaskRecord {
        let permit = IntakeGate::new(1, 0).try_enter().expect("a place");
        let request = Arc::new(TaskRequest::completion("x").max_tokens(2));
        let id = TaskId::parse("t").expect("valid");
        TaskRecord::new(id, TaskSeq(0), request, 7, Timestamp::from_micros(0), permit)
    }

    fn identity() -> Arc<ReplicaIdentity> {
        let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 };
        let (engine, engine_version, model_digest) = (String::new(), Name::default(), Name::default());
        let spec = Arc::new(pool().config.model_spec());
        let (process_id, ctx, generation) = (None, None, 0);
        Arc::new(ReplicaIdentity { replica, engine, engine_version, model_digest, process_id, spec, ctx, generation })
    }

    #[test]
    fn an_attempt_of_an_older_epoch_can_do_nothing() {
        let (record, now) = (record(), Timestamp::from_micros(1));
        record.admit(0, Duration::ZERO).expect("submitted");
        let old = record.assign(&pool()).expect("queued");
        record.give_back(old).expect("assigned");
        let new = record.assign(&pool()).expect("queued again");
        let stale = TransitionError::StaleEpoch { theirs: old, current: new };
        assert_eq!(record.begin(old, now, &identity()), Err(stale));
        record.begin(new, now, &identity()).expect("assigned");
        assert_eq!(record.append(old, now, "late"), Err(stale));
        assert_eq!(record.give_back(old), Err(stale));
        let end = Terminal::End { reason: FinishReason::Stop, tokens_in: None };
        assert_eq!(record.seal(Some(old), now, end.clone()).err(), Some(stale));
        assert_eq!(record.append(new, now, "in time"), Ok(0));
        record.seal(Some(new), now, end).expect("running");
        assert_eq!(record.append(new, now, "after the end"), Err(TransitionError::Sealed));
    }

    #[test]
    fn no_more_tokens_than_the_budget_and_one_place_at_the_gate() {
        let gate = IntakeGate::new(1, 0);
        let permit = gate.try_enter().expect("a place");
        let record = TaskRecord { state: Mutex::new(State::new(Timestamp::from_micros(0), permit)), ..record() };
        record.admit(0, Duration::ZERO).expect("submitted");
        let epoch = record.assign(&pool()).expect("queued");
        record.begin(epoch, Timestamp::from_micros(1), &identity()).expect("assigned");
        for index in 0..2 {
            assert_eq!(record.append(epoch, Timestamp::from_micros(2), "a"), Ok(index));
        }
        assert_eq!(record.append(epoch, Timestamp::from_micros(2), "a"), Err(TransitionError::Budget(Tokens(2))));
        assert!(gate.try_enter().is_none());
        record.seal(None, Timestamp::from_micros(3), Terminal::CANCELED).expect("running");
        assert!(gate.try_enter().is_some(), "the end gives the place back");
    }

    #[test]
    fn what_an_engine_counts_behind_the_end_changes_nothing_of_it() {
        let record = record();
        record.counted.store(1, Relaxed);
        let sealed = record.seal(None, Timestamp::from_micros(1), Terminal::CANCELED).expect("it had not ended");
        record.counted.store(2, Relaxed);
        let view = record.view();
        assert_eq!((sealed.tokens_out, view.tokens_out, view.end.map(|end| end.tokens_out)), (1, 1, Some(1)));
    }

    #[test]
    fn what_is_read_behind_its_being_forgotten_has_a_bound() {
        let room = LingeringRoom::new(100);
        let records: Vec<TaskRecord> = (0..5).map(|_| record()).collect();
        records[0].linger(&room, 40);
        assert!(!records[0].is_cut() && room.used() == 0, "nobody reads it");
        records.iter().for_each(|record| record.readership.streams.store(1, Relaxed));
        records[1..].iter().for_each(|record| record.linger(&room, 25));
        let cut: Vec<bool> = records.iter().map(TaskRecord::is_cut).collect();
        assert_eq!(cut, [false, false, false, true, true], "half of it for one client");
        drop(records);
        assert_eq!(room.used(), 0);
    }
}
