//! A task from outside: as a client sees it, how long each part of its life took, and what its end amounts to.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::actors::task::event_log::{End, EventRef, ReplicaIdentity};
use crate::actors::task::home::Home;
use crate::actors::task::record::TaskRecord;
use crate::core::fairness::Served;
use crate::core::id::{ClientId, PoolId, ReplicaId, TaskId};
use crate::core::task::error::TaskError;
use crate::core::task::failure::Cause;
use crate::core::task::{Phase, Priority};
use crate::core::units::{Tokens, millis_ceil};

/// How long each part of a task's life took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Submission to the begin of the attempt that gave the first token, or to the end of a task that was never begun.
    pub(crate) queue: Duration,
    /// Submission to the first token.
    pub(crate) first_token: Option<Duration>,
    /// First token to the end.
    pub(crate) decode: Duration,
    /// Submission to the end.
    pub(crate) total: Duration,
}

/// A task as a client sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskView {
    /// Its id.
    pub task_id: TaskId,
    /// Where it stands.
    pub phase: Phase,
    /// Who pays for it.
    pub client_id: ClientId,
    /// Its class.
    pub priority: Priority,
    /// The pool that it was routed to.
    pub pool_id: Option<PoolId>,
    /// The replica that runs it, or ran it last.
    pub replica_id: Option<ReplicaId>,
    /// The seed that it runs with.
    pub seed: u64,
    /// Tasks that were ahead when it was accepted.
    pub queue_position: u64,
    /// Predicted time from acceptance to start, in milliseconds.
    pub predicted_start_ms: u64,
    /// Whether its newest attempt found its session's KV cache warm.
    pub kv_warmth: bool,
    /// Attempts that were begun.
    pub attempts: u32,
    /// Tokens so far.
    pub tokens_out: u32,
    /// How it ended well, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// How it failed, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
}

/// What a task's end amounts to, for whoever sealed it.
pub(crate) struct SealedTask {
    /// The phase it was in.
    pub(crate) was: Phase,
    /// What was computed for it.
    pub(crate) served: Served,
    /// The pool whose queue had it.
    pub(crate) pool: Option<Arc<dyn Home>>,
    /// The pool whose worker had its newest attempt.
    pub(crate) ran_in: Option<Arc<dyn Home>>,
    pub(crate) identity: Option<Arc<ReplicaIdentity>>,
    pub(crate) kv_warmth: bool,
    /// Attempts that were lost because an engine had no memory left, and because a device was lost.
    pub(crate) lost_to: [u32; 2],
    /// All its readers had left for good.
    pub(crate) abandoned: bool,
    pub(crate) timing: Timing,
    /// The longest silence between a lost attempt and the next token.
    pub(crate) resume_gap: Option<Duration>,
    pub(crate) tokens_in: Tokens,
    pub(crate) tokens_out: u32,
    /// Its client's weight.
    pub(crate) weight: u32,
    /// Memory that the record goes on holding.
    pub(crate) bytes: usize,
}

impl TaskView {
    /// The same without what an engine said: for whoever may see how the task stands, and nothing of its content.
    #[cfg(feature = "service")]
    pub(crate) fn hide_words(&mut self) {
        self.error.iter_mut().for_each(TaskError::hide_words);
    }
}

impl TaskRecord {
    /// Notes what an attempt was lost to, for the task's log line (ORCH-3027).
    pub(crate) fn note_lost_to(&self, cause: Cause) {
        let row = match cause {
            Cause::OutOfMemory | Cause::OutOfVram => 0,
            Cause::DeviceLost => 1,
            _ => return,
        };
        self.state.lock().lost_to[row] += 1;
    }

    /// The task as a client sees it, what its attempts were lost to, and how long it has waited or did wait.
    pub(in crate::actors) fn glance(&self) -> (TaskView, [u32; 2], Option<Duration>) {
        let (lost_to, waited) = {
            let state = self.state.lock();
            (state.lost_to, state.clock.begun_at.map(|begun| begun.since(self.submitted_at)))
        };
        (self.view(), lost_to, waited)
    }

    /// The task as a client sees it.
    pub(crate) fn view(&self) -> TaskView {
        let state = self.state.lock();
        let (end, error) = match state.output.log.terminal() {
            Some(EventRef::End(end)) => (Some(end.clone()), None),
            Some(EventRef::Error(error)) => (None, Some(error.clone())),
            _ => (None, None),
        };
        TaskView {
            task_id: self.id.clone(),
            phase: state.phase,
            client_id: self.request.client_id.clone(),
            priority: self.request.priority,
            pool_id: state
                .routing
                .runs_in
                .as_ref()
                .or(state.routing.route.as_ref().map(|route| &route.pool))
                .map(|pool| pool.id().clone()),
            replica_id: state.identity.as_ref().map(|identity| identity.replica.clone()),
            seed: self.seed,
            queue_position: state.promise.queue_position,
            predicted_start_ms: millis_ceil(state.promise.predicted_start),
            kv_warmth: state.kv_warmth,
            attempts: state.attempts,
            tokens_out: self.tokens_out(&state),
            end,
            error,
        }
    }
}
