//! How a task gets in: the gate, the ledger, the question, and what becomes of a caller that goes away.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::timeout;

use crate::actors::kit::room::{Lane, Waiter};
use crate::actors::metrics::counters::code_index;
use crate::actors::pool::messages::{Accepted, Submission, Verdict};
use crate::actors::runtime::cancel::cancel;
use crate::actors::runtime::messages::AdmissionMsg;
use crate::actors::runtime::stream::TaskStream;
use crate::actors::runtime::{LIMITS, ROOM, RuntimeShared, TEXTS};
use crate::actors::task::record::TaskRecord;
use crate::core::admission::{DEADLINE, NOT_ALLOWED};
use crate::core::id::TaskId;
#[cfg(feature = "cluster")]
use crate::core::id::TaskSeq;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::{Phase, TaskRequest, Terminal};
use crate::core::units::millis_ceil;
use crate::orchestrator::handle::{ANSWER_TIMEOUT, Orchestrator};

/// How often a submission is sent again after the actor that had it died. Each death is a bug; five in a row within one
/// submission are an outage.
const SENDS_MAX: u32 = 5;

/// When one whose client has too many waiters may come back: as soon as any of them has got in.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// An accepted task.
#[non_exhaustive]
pub struct Submitted {
    /// Its id.
    pub task_id: TaskId,
    /// Tasks that will be started before it (ORCH-3029).
    pub queue_position: u64,
    /// Predicted time until it starts, in milliseconds.
    pub predicted_start_ms: u64,
    /// How long a well-behaved client waits before it sends the next task, in milliseconds; 0 while a slot is free.
    pub backoff_ms: u64,
    is_repeated: bool,
    record: Arc<TaskRecord>,
    runtime: Arc<RuntimeShared>,
}

impl std::fmt::Debug for Submitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Submitted");
        fields.field("task_id", &self.task_id).field("queue_position", &self.queue_position);
        fields.field("predicted_start_ms", &self.predicted_start_ms).finish_non_exhaustive()
    }
}

impl Submitted {
    /// Whether the task was known already: this is the first submission's state (ORCH-3024).
    pub fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn record(&self) -> &Arc<TaskRecord> {
        &self.record
    }

    /// The task's events, from the first on.
    pub fn stream(&self) -> TaskStream {
        TaskStream::new(self.record.clone(), 0, &self.runtime)
    }
}

/// A submission whose caller has no verdict yet. Dropped, it takes the task back.
struct PendingSubmission<'a> {
    runtime: &'a RuntimeShared,
    record: &'a Arc<TaskRecord>,
    decided: bool,
}

impl Drop for PendingSubmission<'_> {
    fn drop(&mut self) {
        // A task that was accepted meanwhile under an id that its caller chose is found under it when the caller comes
        // back.
        let can_be_found = self.record.request.task_id.is_some() && self.record.was_accepted();
        if !self.decided && !can_be_found {
            cancel(self.runtime, self.record);
        }
    }
}

impl Orchestrator {
    /// Hands in a task and waits for the verdict.
    ///
    /// A task id that is known already returns the first submission's state (ORCH-3024), if the request is the same.
    ///
    /// # Errors
    /// [`TaskError`] when the task was not accepted; nothing of it is left, and its id is free.
    ///
    /// # Cancel safety
    /// Dropping the future takes the task back. Only a task that was accepted meanwhile under an id of the caller's own
    /// goes on: submitting it again finds it.
    pub async fn submit(&self, request: TaskRequest) -> Result<Submitted, TaskError> {
        let request = self.screened(request)?;
        self.submit_as(&request, |_| {}).await.map_err(|error| self.refused(&request, error))
    }

    /// Hands in a task, and waits for room where [`Orchestrator::submit`] would refuse it for want of some: a full
    /// queue or runtime, a quota, a rate limit, an engine that is being started again. Every other refusal is returned
    /// at once.
    ///
    /// Those who want the same model, engine, class and pools are called one after another, tenant by tenant, and of
    /// each tenant the one who came first; who waits for a full pool holds up nobody who wants another. A plain
    /// `submit` does not wait behind them. Its task's deadline counts from its submission, not from here.
    ///
    /// # Errors
    /// [`TaskError`] as of `submit`; `ADMISSION_REJECT` with the policy `room` when this client has as many waiters as
    /// it may have: of 65,536 for all, as many as it leaves free.
    ///
    /// # Cancel safety
    /// Dropping the future gives its place up, and takes the task back as `submit` does; the next is called.
    pub async fn submit_when_room(&self, request: TaskRequest) -> Result<Submitted, TaskError> {
        let request = self.screened(request)?;
        self.wait_and_submit(&request).await.map_err(|error| self.refused(&request, error))
    }

    async fn wait_and_submit(&self, request: &Arc<TaskRequest>) -> Result<Submitted, TaskError> {
        let (room, lane) = (&self.runtime.gate.room, Lane::of(request));
        let mut waiter: Option<Waiter<'_>> = None;
        loop {
            let (seen, mut pause) = (room.freed(), None);
            if waiter.is_some() || !room.is_wanted(&lane) {
                match self.submit_as(request, |_| {}).await {
                    Err(error) if is_for_want_of_room(&error) => {
                        pause = error.retry_after_ms.map(Duration::from_millis)
                    }
                    outcome => return outcome,
                }
                waiter.iter().for_each(Waiter::refused);
            }
            if waiter.is_none() {
                waiter = room.enter(lane.clone(), &request.client_id, seen);
            }
            let Some(waiting) = &waiter else { return Err(too_many_wait(request)) };
            tokio::select! {
                biased;
                () = until_turn(waiting, pause) => {}
                () = self.life.ended.wait() => return Err(has_stopped()),
            }
        }
    }

    /// Submissions that wait for room just now.
    pub fn waiters(&self) -> usize {
        self.runtime.gate.room.waiters()
    }

    /// What the host program's hook makes of a request.
    fn screened(&self, mut request: TaskRequest) -> Result<Arc<TaskRequest>, TaskError> {
        let screened = self.runtime.hook.as_ref().map_or(Ok(()), |hook| hook(&mut request));
        let request = Arc::new(request);
        screened.map_err(|error| self.refused(&request, error))?;
        Ok(request)
    }

    /// The same for an attempt of another node's.
    #[cfg(feature = "cluster")]
    pub(crate) async fn submit_inbound(
        &self,
        request: TaskRequest,
        note: impl FnOnce(TaskSeq),
    ) -> Result<Submitted, TaskError> {
        let request = Arc::new(request);
        let mark = |record: &TaskRecord| {
            record.set_inbound();
            note(record.seq);
        };
        self.submit_as(&request, mark).await.map_err(|error| self.refused(&request, error))
    }

    /// One attempt, whose refusal is not counted yet.
    async fn submit_as(
        &self,
        request: &Arc<TaskRequest>,
        mark: impl FnOnce(&TaskRecord),
    ) -> Result<Submitted, TaskError> {
        let runtime = &self.runtime;
        if self.life.ended.is_set() {
            return Err(has_stopped());
        }
        while let Some(known) = request.task_id.as_ref().and_then(|id| runtime.ledger.get_of(&request.client_id, id)) {
            if let Some(outcome) = same_task(runtime, known, request).await {
                return outcome;
            }
        }
        let Some(mut permit) = runtime.gate.try_enter() else {
            return Err(gate_closed(runtime, request));
        };
        if !permit.hold_texts(&request.client_id, request.text_bytes() as u64) {
            return Err(texts_held(runtime, request));
        }
        let now = runtime.env.now();
        let id = request.task_id.clone().unwrap_or_else(|| runtime.env.new_task_id(now));
        let record = match runtime.ledger.open(id, request, permit, now) {
            Ok(record) => record,
            // Somebody submitted the same id just now.
            Err(known) => return same_task(runtime, known, request).await.unwrap_or_else(|| Err(undecided_twin())),
        };
        mark(&record);
        let mut undecided = PendingSubmission { runtime, record: &record, decided: false };
        let verdict = self.ask(&record).await;
        undecided.decided = true;
        drop(undecided);
        match verdict {
            Ok(accepted) => Ok(submitted(runtime, record, accepted)),
            Err(error) => {
                let _ = runtime.ledger.seal(&record, None, Terminal::Error(error.clone())); // Cancelled just now.
                Err(error)
            }
        }
    }

    /// Sends a task in until somebody answers: what dies in a mailbox is sent again.
    async fn ask(&self, record: &Arc<TaskRecord>) -> Verdict {
        for _ in 0..SENDS_MAX {
            let (sender, receiver) = ractor::concurrency::oneshot();
            let submission = Submission { record: record.clone(), reply: sender.into() };
            if self.runtime.actors.admission.cast(AdmissionMsg::Submit(submission)) {
                match receiver.await {
                    Ok(verdict) => return verdict,
                    Err(_) if record.was_accepted() => {
                        // The queue died between its decision and its answer; the decision stands.
                        let (queue_position, predicted_start) = record.promise();
                        return Ok(Accepted { queue_position, predicted_start });
                    }
                    Err(_) if record.phase() == Phase::Terminal => {
                        let text = "the task was cancelled before it was accepted";
                        return Err(TaskError::new(ErrorCode::AdmissionReject, text).retry_after(Duration::ZERO));
                    }
                    Err(_) => {}
                }
            }
            if self.life.ended.is_set() || timeout(ANSWER_TIMEOUT, self.until_way_in(record)).await.is_err() {
                break;
            }
        }
        if self.life.ended.is_set() {
            return Err(has_stopped());
        }
        let text = "admission did not answer; the task was not accepted";
        Err(TaskError::new(ErrorCode::Internal, text).retry_after(ANSWER_TIMEOUT))
    }

    /// Waits until everybody lives whom this task has to pass: its message may have died with any of them.
    async fn until_way_in(&self, record: &TaskRecord) {
        self.runtime.actors.admission.until_alive().await;
        if let Some(pool) = record.pool().filter(|pool| !pool.is_leaving()) {
            pool.actors.queue.until_alive().await;
        }
    }

    /// Counts a refusal, and remembers it for a client that can name it.
    fn refused(&self, request: &TaskRequest, error: TaskError) -> TaskError {
        if let Some(id) = &request.task_id {
            self.runtime.refused.refusals.note(&request.client_id, id.clone(), error.clone());
        }
        let counter = &self.runtime.refused.rejected[code_index(error.code)];
        counter.fetch_add(1, Relaxed);
        let limit = error.policy.as_deref().and_then(|policy| LIMITS.iter().position(|known| *known == policy));
        if let Some(limit) = limit {
            self.runtime.refused.limited[limit].fetch_add(1, Relaxed);
        }
        error
    }
}

/// The first submission's state, for one that repeats it (ORCH-3024), as soon as the first has been decided. `None`
/// when it was not accepted: its id is free.
async fn same_task(
    runtime: &Arc<RuntimeShared>,
    known: Arc<TaskRecord>,
    request: &TaskRequest,
) -> Option<Result<Submitted, TaskError>> {
    if !known.request.is_same(request) {
        let text = format!("field 'task_id': {} is the id of another task; take a new one", known.id);
        return Some(Err(TaskError::new(ErrorCode::InvalidParams, text)));
    }
    if !known.until_decided().await {
        tokio::task::yield_now().await; // Whoever sealed it is about to forget it.
        return None;
    }
    let (queue_position, predicted_start) = known.promise();
    let accepted = Accepted { queue_position, predicted_start };
    Some(Ok(Submitted { is_repeated: true, ..submitted(runtime, known, accepted) }))
}

/// Waits until it is this waiter's turn. Room that nobody tells of, such as that of a rate limit, may be there
/// when `pause` is over.
async fn until_turn(waiter: &Waiter<'_>, pause: Option<Duration>) {
    let Some(pause) = pause else { return waiter.until_called().await };
    while timeout(pause, waiter.until_called()).await.is_err() {
        waiter.try_again();
    }
}

/// Whether the same task may be accepted as soon as there is room, of whatever bounds it.
fn is_for_want_of_room(error: &TaskError) -> bool {
    let by_policy = || error.policy.as_deref().is_some_and(|policy| ![DEADLINE, NOT_ALLOWED].contains(&policy));
    match error.code {
        ErrorCode::ReplicaExhausted | ErrorCode::PoolUnready => true,
        ErrorCode::AdmissionReject => by_policy(),
        _ => false,
    }
}

/// The refusal of a submission whose client has as many waiters as it may have.
fn too_many_wait(request: &TaskRequest) -> TaskError {
    let text = format!("client {} has as many submissions waiting for room as it may have", request.client_id);
    TaskError::new(ErrorCode::AdmissionReject, text).policy(ROOM).retry_after(ROOM_WAIT)
}

/// The runtime has ended: no repetition helps.
fn has_stopped() -> TaskError {
    let error = TaskError::new(ErrorCode::PoolUnavailable, "the runtime has stopped; nothing is taken any more");
    TaskError { retriable: false, ..error }
}

/// Two submissions of one id met, and the first was not accepted.
fn undecided_twin() -> TaskError {
    let text = "another submission of this task id was refused just now";
    TaskError::new(ErrorCode::AdmissionReject, text).retry_after(Duration::ZERO)
}

fn submitted(runtime: &Arc<RuntimeShared>, record: Arc<TaskRecord>, accepted: Accepted) -> Submitted {
    let predicted_start_ms = millis_ceil(accepted.predicted_start);
    Submitted {
        task_id: record.id.clone(),
        queue_position: accepted.queue_position,
        predicted_start_ms,
        backoff_ms: predicted_start_ms,
        is_repeated: false,
        record,
        runtime: runtime.clone(),
    }
}

/// The refusal of a task whose client's texts have their part already.
fn texts_held(runtime: &RuntimeShared, request: &TaskRequest) -> TaskError {
    let most = runtime.config().texts_bytes_max;
    let text = format!(
        "the texts of tasks that have not ended take their part of texts_bytes_max, {most} bytes; client {} has none left",
        request.client_id
    );
    TaskError::new(ErrorCode::AdmissionReject, text).policy(TEXTS).retry_after(advice(runtime, request))
}

/// When to come back for a place where one is free first.
fn advice(runtime: &RuntimeShared, request: &TaskRequest) -> Duration {
    runtime.pools.table().serving.iter().map(|pool| pool.advice(request.priority)).min().unwrap_or_default()
}

/// The refusal of a runtime that has as many tasks as it may have anywhere.
fn gate_closed(runtime: &RuntimeShared, request: &TaskRequest) -> TaskError {
    let text = format!("the runtime holds {} tasks, which is all it may hold", runtime.gate.limit());
    TaskError::new(ErrorCode::AdmissionReject, text).policy("gate").retry_after(advice(runtime, request))
}
