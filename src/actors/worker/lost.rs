//! What an attempt that was lost means: for its task, which runs again or ends, and for the replica, which gets no
//! tasks for a while.
//!
//! Spec: ORCH-3016, ORCH-3040, ORCH-3053.

use std::sync::Arc;
use std::time::Duration;

use crate::actors::pool::messages::WorkerMsg;
use crate::actors::task::record::TaskRecord;
use crate::actors::worker::attempt::Attempt;
use crate::core::id::Epoch;
use crate::core::task::Terminal;
use crate::core::task::error::ErrorCode;
use crate::core::task::failure::Cause;
use crate::core::task::trace::TraceKind;
use crate::core::units::Timestamp;
use crate::gpu::engine::EngineError;
use crate::planted::seeded_bug;

/// Failures in a row, the last of them a panic and not all of one task, behind which an engine is broken and started
/// anew.
const PANICS_MAX: u32 = 3;

impl Attempt {
    /// What becomes of a task whose engine has failed it: its end, or `None` when it has been given back.
    pub(in crate::actors) fn lost(
        &self,
        record: &Arc<TaskRecord>,
        epoch: Epoch,
        error: EngineError,
    ) -> Option<Terminal> {
        let is_none = match &error {
            EngineError::Busy { retry_after, said } => {
                if let Some(terminal) = self.turned_away(record, *retry_after, said) {
                    return Some(terminal);
                }
                !seeded_bug!(BusyCosts)
            }
            EngineError::ContextFull { tokens, .. } => self.crowded_out(record, *tokens),
            // Another node has not begun it: nothing of it has run.
            EngineError::Recalled => true,
            error => {
                let is_the_replicas = self.suspect(record, error.clone());
                // Another node did not take it; or it came to a replica that turns everybody down, while another works;
                // or to a server that has taken the place of its engine's.
                self.pool.is_remote() && matches!(error, EngineError::Unreachable(_))
                    || matches!(error, EngineError::Failed(_)) && is_the_replicas && self.has_another()
                    || matches!(error, EngineError::Replaced(_))
            }
        };
        // What has tokens was begun, whatever the engine says of it now: it runs again if its own rule says so.
        let is_none = is_none && record.may_begin_again() && !self.has_gone_round(record);
        if is_none && record.forget_attempt(epoch) {
            self.pool.env.trace(|| TraceKind::Forgiven { seq: record.seq });
            self.give_back(record, epoch);
            return None;
        }
        if record.runs_again() {
            self.give_back(record, epoch);
            return None;
        }
        let cause = error.cause();
        Some(Terminal::Error(self.error(ErrorCode::WorkerReset, error.to_string()).quoting(cause)))
    }

    /// Its engine has too much to do: it is left alone for a while. The task waits for it, or for another; at most as
    /// long as it may run.
    fn turned_away(&self, record: &TaskRecord, asked: Option<Duration>, said: &str) -> Option<Terminal> {
        let now = self.pool.env.now();
        let wall = Duration::from_millis(self.pool.config.timeouts.wall_ms);
        let asked = asked.map(|asked| asked.min(wall)); // Nobody waits longer for it.
        self.note_failed(record, Cause::Busy);
        let until = self.place().note_busy(now, asked);
        self.eject(until, asked.map_or(now, |asked| now.after(asked)));
        self.has_gone_round(record).then(|| {
            let text = format!("every engine was busy for {wall:?}; the last one said: {said}");
            let error = self.error(ErrorCode::ReplicaExhausted, text).quoting(Cause::Busy);
            Terminal::Error(error.retry_after(until.since(now)))
        })
    }

    /// The context that the engine's runs share is full: fewer run at once from now on. Returns whether that was no
    /// attempt of the task's: others took the room.
    fn crowded_out(&self, record: &TaskRecord, tokens: Option<u64>) -> bool {
        let (now, place) = (self.pool.env.now(), self.place());
        self.note_failed(record, Cause::ContextFull);
        let is_of_a_batch = place.note_context_full(now, record.seq);
        let others_took_it = is_of_a_batch || place.capacity.slots.used() > 1;
        match tokens {
            // How much there is in all was not known: from now on tasks are placed by it.
            Some(tokens) if place.capacity.kv.capacity().is_none() => place.capacity.kv.set_capacity(tokens),
            _ if !is_of_a_batch => place.note_out_of_vram(now, Some(place.capacity.slots.used())),
            _ => {} // What the first of them said is known already.
        }
        others_took_it
    }

    /// Whether another replica of its pool is in service and has failed nothing since it last worked.
    fn has_another(&self) -> bool {
        let now = self.pool.env.now();
        let others = self.pool.replicas.iter().filter(|other| other.id.index != self.lease.replica);
        others.into_iter().any(|other| other.state().is_ready() && other.outlier.view(now) == (None, 0))
    }

    /// Whether the task has gone from engine to engine for as long as it may run: nothing more is forgiven then.
    fn has_gone_round(&self, record: &TaskRecord) -> bool {
        let now = self.pool.env.now();
        now.since(record.note_turned_away(now)) >= Duration::from_millis(self.pool.config.timeouts.wall_ms)
    }

    /// The replica gets no task before `until`: its worker looks again then. `law` is the least that must hold.
    fn eject(&self, until: Timestamp, law: Timestamp) {
        let (pool, replica, allowed) =
            (self.pool.position, self.lease.replica, self.place().capacity.slots.used().max(1));
        self.pool.env.trace(|| TraceKind::Ejected { pool, replica, until: law, allowed });
        self.place().life.worker.cast(WorkerMsg::Ejected { until }); // Gone: the next worker looks by itself.
    }

    /// Takes the replica out of service until its engine has been looked at, and for a wait that grows. Before the task
    /// goes back to its queue: else it would be sent here again at once. Returns whether the failure is the replica's,
    /// as far as can be known.
    pub(in crate::actors) fn suspect(&self, record: &TaskRecord, cause: EngineError) -> bool {
        self.note_failed(record, cause.cause());
        if self.pool.is_remote() && !matches!(cause, EngineError::Unreachable(_)) {
            return false; // One attempt was lost at its owner, who looks after the engine; the link is well.
        }
        let (mut is_the_replicas, mut is_broken) = (false, false);
        if !self.pool.is_remote() {
            let now = self.pool.env.now();
            let panicked = matches!(cause, EngineError::Panicked { .. });
            let verdict = self.place().note_failure(now, self.begun, record.seq, panicked);
            let wait = Duration::from_millis(self.pool.config.resume.ejection_ms);
            if verdict.until > now {
                self.eject(verdict.until, now.after(wait).min(verdict.until));
            }
            is_the_replicas = verdict.is_the_replicas;
            // One run that panics says nothing of the others, and their clients are not to suffer; several tasks in a
            // row do.
            is_broken = panicked && is_the_replicas && self.place().outlier.view(now).1 >= PANICS_MAX;
        }
        if self.place().suspect(&self.engine) {
            let word = if is_broken { WorkerMsg::EngineFailed(cause) } else { WorkerMsg::EngineSuspected(cause) };
            self.place().life.worker.cast(word); // Gone: the next worker looks at the engine, or makes another.
        }
        is_the_replicas
    }

    pub(in crate::actors) fn note_failed(&self, record: &TaskRecord, cause: Cause) {
        record.note_lost_to(cause);
        if cause == Cause::OutOfVram {
            self.place().note_out_of_vram(self.pool.env.now(), Some(self.place().capacity.slots.used()));
        }
        self.place().note_attempt_failed(cause);
    }
}
