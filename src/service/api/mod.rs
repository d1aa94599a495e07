//! The HTTP API's own types (OrchQueue v1): what goes in and out as JSON.

pub(in crate::service) mod configs;
pub(in crate::service) mod health;
pub(in crate::service) mod nodes;
pub(in crate::service) mod overview;
pub(in crate::service) mod overview_cache;
pub(in crate::service) mod pools;
pub(in crate::service) mod rollouts;
pub(in crate::service) mod stream;
pub(in crate::service) mod tasks;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::id::{ClientId, InvalidId, SessionId, TaskId};
use crate::core::task::resume::OnLoss;
use crate::core::task::{
    Determinism, KvHint, MAX_TOKENS_DEFAULT, OnDisconnect, Priority, Sampling, TaskRequest, Workload,
};
use crate::core::units::Tokens;
use crate::orchestrator::Submitted;

/// A task as it is submitted. Only the prompt must be there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitBody {
    /// The caller's own id: 1 to 128 letters, digits, '-', '_', '.' or ':'. The service makes one when it is left out.
    pub task_id: Option<String>,
    /// The conversation that the task belongs to.
    pub session_id: Option<String>,
    /// What kind of answer is wanted.
    #[serde(default)]
    pub workload: Workload,
    /// The model; may be left out where one is served.
    pub model_ref: Option<String>,
    /// The engine; any when left out.
    pub engine: Option<String>,
    /// The context that the task needs, in tokens.
    pub ctx: Option<u32>,
    /// The class.
    #[serde(default)]
    pub priority: Priority,
    /// The seed, 0 to 4294967294; derived from the task's id when left out.
    pub seed: Option<u64>,
    /// Whether the same seed must give the same tokens.
    #[serde(default)]
    pub determinism: Determinism,
    /// The sampler profile that the caller relies on.
    pub sampler_profile_version: Option<String>,
    /// How tokens are drawn.
    #[serde(default)]
    pub parameters: Sampling,
    /// The text to go on from.
    pub prompt: Option<String>,
    /// The texts to embed, or to rank by how well they fit the prompt. Each result is one `token` event, as JSON.
    #[serde(default, deserialize_with = "crate::core::text::texts::some_at_most::<4096, _>")]
    pub inputs: Option<Vec<String>>,
    /// Most tokens to generate; 256 when left out.
    pub max_tokens: Option<u32>,
    /// How long after submission the task is still wanted, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// The caller's guess of the tokens that it will get.
    pub expected_tokens: Option<u32>,
    /// Whether the session's KV cache should be used again.
    #[serde(default)]
    pub kv_hint: KvHint,
    /// What becomes of the task when its worker or engine is lost; by the pool's rule when left out.
    pub on_loss: Option<OnLoss>,
    /// What becomes of the task when its last reader is gone and does not come back within the service's
    /// `disconnect_grace_ms`. A task that nobody ever read goes on.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
}

impl SubmitBody {
    /// The task that the runtime takes, for this client.
    ///
    /// # Errors
    /// One line that names the field and says what would be right.
    pub fn into_request(self, client_id: ClientId) -> Result<TaskRequest, String> {
        let named = |field: &str, error: InvalidId| format!("field '{field}': {error}");
        if self.workload == Workload::Completion && self.inputs.is_some() {
            return Err("field 'inputs': only for workload \"embedding\" or \"rerank\"; send a 'prompt'".into());
        }
        let prompt = match (self.prompt, self.workload) {
            (Some(prompt), _) => prompt,
            (None, Workload::Embedding) => String::new(),
            (None, _) => return Err("field 'prompt': it is missing".into()),
        };
        let inputs = self.inputs.unwrap_or_default();
        // One event for each input; a completion has none.
        let results = u32::try_from(inputs.len()).unwrap_or(u32::MAX).max(1);
        let max_tokens = match self.workload {
            Workload::Completion => self.max_tokens.map_or(MAX_TOKENS_DEFAULT, Tokens),
            Workload::Embedding | Workload::Rerank => Tokens(results),
        };
        let task_id = self.task_id.as_deref().map(TaskId::parse).transpose().map_err(|e| named("task_id", e))?;
        let session_id =
            self.session_id.as_deref().map(SessionId::parse).transpose().map_err(|e| named("session_id", e))?;
        Ok(TaskRequest {
            task_id,
            client_id,
            session_id,
            workload: self.workload,
            model_ref: self.model_ref,
            engine: self.engine,
            ctx: self.ctx.map(Tokens),
            priority: self.priority,
            seed: self.seed,
            determinism: self.determinism,
            sampler_profile_version: self.sampler_profile_version,
            parameters: self.parameters,
            prompt,
            inputs,
            max_tokens,
            deadline: self.deadline_ms.map(Duration::from_millis),
            expected_tokens: self.expected_tokens.map(Tokens),
            kv_hint: self.kv_hint,
            on_loss: self.on_loss,
            on_disconnect: self.on_disconnect,
            pools: None,
            traceparent: None,
        })
    }
}

/// An accepted task.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedBody {
    /// Its id.
    pub task_id: String,
    /// Tasks that will be started before it.
    pub queue_position: u64,
    /// Predicted time until it starts, in milliseconds.
    pub predicted_start_ms: u64,
    /// How long a well-behaved client waits before it sends the next task, in milliseconds.
    pub backoff_ms: u64,
}

impl From<&Submitted> for AcceptedBody {
    fn from(submitted: &Submitted) -> Self {
        AcceptedBody {
            task_id: submitted.task_id.to_string(),
            queue_position: submitted.queue_position,
            predicted_start_ms: submitted.predicted_start_ms,
            backoff_ms: submitted.backoff_ms,
        }
    }
}

/// The envelope of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// A stable word, such as `ADMISSION_REJECT`.
    pub code: String,
    /// What happened, where, and what would be right.
    pub message: String,
    /// The engine that was meant to serve.
    pub engine: Option<String>,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// When to come back, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The full-queue policy that decided.
    pub policy: Option<String>,
}
