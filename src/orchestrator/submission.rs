//! How a task gets in: the gate, the ledger, the question, and what becomes of a caller that goes away.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::timeout;

use crate::actors::admission::AdmissionMsg;
use crate::actors::cancel::cancel;
use crate::actors::counters::code_index;
use crate::actors::reader::TaskStream;
use crate::actors::record::TaskRecord;
use crate::actors::runtime::{LIMITS, RuntimeShared, TEXTS};
use crate::actors::submission::{Accepted, Submission, Verdict};
use crate::core::error::{ErrorCode, TaskError};
use crate::core::id::TaskId;
#[cfg(feature = "cluster")]
use crate::core::id::TaskSeq;
use crate::core::task::{Phase, TaskRequest, Terminal};
use crate::core::units::millis_ceil;
use crate::orchestrator::handle::{ANSWER_TIMEOUT, Orchestrator};

/// How often a submission is sent again after the actor that had it died. Each death is a bug; five in a row within one
/// submission are an outage.
const SENDS_MAX: u32 = 5;

/// An accepted task.
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
struct Undecided<'a> {
    runtime: &'a RuntimeShared,
    record: &'a Arc<TaskRecord>,
    decided: bool,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        // A task that was accepted meanwhile under an id that its caller chose is found under it when the caller comes back.
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
    /// Dropping the future takes the task back. Only a task that was accepted meanwhile under an id of the caller's own goes
    /// on: submitting it again finds it.
    pub async fn submit(&self, request: TaskRequest) -> Result<Submitted, TaskError> {
        self.submit_as(request, |_| {}).await
    }

    /// The same for an attempt of another node's.
    #[cfg(feature = "cluster")]
    pub(crate) async fn submit_guest(
        &self,
        request: TaskRequest,
        note: impl FnOnce(TaskSeq),
    ) -> Result<Submitted, TaskError> {
        self.submit_as(request, |record| {
            record.set_guest();
            note(record.seq);
        })
        .await
    }

    async fn submit_as(&self, request: TaskRequest, mark: impl FnOnce(&TaskRecord)) -> Result<Submitted, TaskError> {
        let runtime = &self.runtime;
        let request = Arc::new(request);
        while let Some(known) = request.task_id.as_ref().and_then(|id| runtime.ledger.get_of(&request.client_id, id)) {
            if let Some(outcome) = same_task(runtime, known, &request).await {
                return outcome;
            }
        }
        let Some(mut permit) = runtime.gate.try_enter() else {
            return Err(self.refused(&request, gate_closed(runtime, &request)));
        };
        if !permit.hold_texts(&request.client_id, request.text_bytes() as u64) {
            return Err(self.refused(&request, texts_held(runtime, &request)));
        }
        let now = runtime.env.now();
        let id = request.task_id.clone().unwrap_or_else(|| runtime.env.new_task_id(now));
        let record = match runtime.ledger.open(id, &request, permit, now) {
            Ok(record) => record,
            // Somebody submitted the same id just now.
            Err(known) => return same_task(runtime, known, &request).await.unwrap_or_else(|| Err(undecided_twin())),
        };
        mark(&record);
        let mut undecided = Undecided { runtime, record: &record, decided: false };
        let verdict = self.ask(&record).await;
        undecided.decided = true;
        drop(undecided);
        match verdict {
            Ok(accepted) => Ok(submitted(runtime, record, accepted)),
            Err(error) => {
                let _ = runtime.ledger.seal(&record, None, Terminal::Error(error.clone())); // Cancelled just now.
                Err(self.refused(&request, error))
            }
        }
    }

    /// Sends a task in until somebody answers: what dies in a mailbox is sent again.
    async fn ask(&self, record: &Arc<TaskRecord>) -> Verdict {
        for _ in 0..SENDS_MAX {
            let (sender, receiver) = ractor::concurrency::oneshot();
            let submission = Submission { record: record.clone(), reply: sender.into() };
            if self.runtime.admission.cast(AdmissionMsg::Submit(submission)) {
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
        let text = "admission did not answer; the task was not accepted";
        Err(TaskError::new(ErrorCode::Internal, text).retry_after(ANSWER_TIMEOUT))
    }

    /// Waits until everybody lives whom this task has to pass: its message may have died with any of them.
    async fn until_way_in(&self, record: &TaskRecord) {
        self.runtime.admission.until_alive().await;
        if let Some(pool) = record.pool().filter(|pool| !pool.is_leaving()) {
            pool.queue.until_alive().await;
        }
    }

    /// Counts a refusal, and remembers it for a client that can name it.
    fn refused(&self, request: &TaskRequest, error: TaskError) -> TaskError {
        if let Some(id) = &request.task_id {
            self.runtime.refusals.note(&request.client_id, id.clone(), error.clone());
        }
        let counter = &self.runtime.rejected[code_index(error.code)];
        counter.fetch_add(1, Relaxed);
        let limit = error.policy.as_deref().and_then(|policy| LIMITS.iter().position(|known| *known == policy));
        if let Some(limit) = limit {
            self.runtime.limited[limit].fetch_add(1, Relaxed);
        }
        error
    }
}

/// The first submission's state, for one that repeats it (ORCH-3024), as soon as the first has been decided. `None` when
/// it was not accepted: its id is free.
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
    TaskError::new(ErrorCode::AdmissionReject, text).policy(TEXTS).retry_after(expected_wait(runtime, request))
}

/// How long a new task would wait where it would wait least.
fn expected_wait(runtime: &RuntimeShared, request: &TaskRequest) -> Duration {
    runtime
        .pools
        .table()
        .serving
        .iter()
        .map(|pool| pool.expected_wait(request.priority, None))
        .min()
        .unwrap_or_default()
}

/// The refusal of a runtime that has as many tasks as it may have anywhere.
fn gate_closed(runtime: &RuntimeShared, request: &TaskRequest) -> TaskError {
    let text = format!("the runtime holds {} tasks, which is all it may hold", runtime.gate.limit());
    TaskError::new(ErrorCode::AdmissionReject, text).policy("gate").retry_after(expected_wait(runtime, request))
}
