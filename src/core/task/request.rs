//! What a client asks for: one unit of inference work, and how to build it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::{ClientId, PoolId, SessionId, TaskId};
use crate::core::task::resume::OnLoss;
use crate::core::task::traceparent::TraceParent;
use crate::core::task::workload::Workload;
use crate::core::task::{Determinism, KvHint, OnDisconnect, Priority};
use crate::core::units::Tokens;

/// How tokens are drawn. `None` leaves the engine's own default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub struct Sampling {
    /// Flatness of the distribution, 0 (greedy) to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus of the distribution, above 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// How many candidates are kept; 0 keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Least probability beside the best candidate's, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Penalty for what was said already, above 0 to 10; 1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// Texts that end the generation when they appear, at most [`STOP_TEXTS_MAX`].
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::core::text::texts::at_most::<64, _>"
    )]
    pub stop: Vec<String>,
}

/// Most stop texts of one task: engines scan for each of them behind every token.
pub const STOP_TEXTS_MAX: usize = 16;
/// Longest stop text, in bytes.
pub const STOP_TEXT_BYTES_MAX: usize = 256;

/// One unit of inference work, as it was asked for. Immutable from submission on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskRequest {
    /// The caller's own id; the runtime makes one when it is left out.
    pub task_id: Option<TaskId>,
    /// The tenant who pays.
    pub client_id: ClientId,
    /// The conversation that the task belongs to, if any.
    pub session_id: Option<SessionId>,
    /// What kind of answer is wanted.
    pub workload: Workload,
    /// The model, or `None` where one replica set serves.
    pub model_ref: Option<String>,
    /// The engine, or `None` for any.
    pub engine: Option<String>,
    /// The context that the caller needs, or `None` for the pool's own.
    pub ctx: Option<Tokens>,
    /// The class.
    pub priority: Priority,
    /// The seed, or `None` for one derived from the task's id.
    pub seed: Option<u64>,
    /// Whether the same seed must give the same tokens.
    pub determinism: Determinism,
    /// The sampler profile that the caller relies on, or `None` for the set's own.
    pub sampler_profile_version: Option<String>,
    /// How tokens are drawn.
    pub parameters: Sampling,
    /// The text to go on from; of a ranking, what its inputs are to fit. Empty only of an embedding.
    pub prompt: String,
    /// The texts to embed or to rank; none of a completion.
    pub inputs: Vec<String>,
    /// Most tokens to generate. At least 1.
    pub max_tokens: Tokens,
    /// How long after submission the task is still wanted, or `None` for ever.
    pub deadline: Option<Duration>,
    /// The caller's guess of the tokens that it will get, for order only.
    pub expected_tokens: Option<Tokens>,
    /// Whether the session's KV cache should be used again.
    pub kv_hint: KvHint,
    /// What becomes of the task when its attempt is lost, or `None` for the pool's rule.
    pub on_loss: Option<OnLoss>,
    /// What becomes of it when its last reader is gone.
    pub on_disconnect: OnDisconnect,
    /// The only pools that it may use, or `None` for all that its client may use.
    pub pools: Option<Arc<[PoolId]>>,
    /// The trace that it belongs to; passed on to its engine.
    pub traceparent: Option<TraceParent>,
}

/// Generation budget of a task that names none.
pub const MAX_TOKENS_DEFAULT: Tokens = Tokens(256);

impl TaskRequest {
    /// A completion of `prompt` for the anonymous client, everything else by default; it goes on when its readers are
    /// gone.
    pub fn completion(prompt: impl Into<String>) -> Self {
        TaskRequest {
            task_id: None,
            client_id: ClientId::anonymous(),
            session_id: None,
            workload: Workload::Completion,
            model_ref: None,
            engine: None,
            ctx: None,
            priority: Priority::Interactive,
            seed: None,
            determinism: Determinism::Strict,
            sampler_profile_version: None,
            parameters: Sampling::default(),
            prompt: prompt.into(),
            inputs: Vec::new(),
            max_tokens: MAX_TOKENS_DEFAULT,
            deadline: None,
            expected_tokens: None,
            kv_hint: KvHint::Reuse,
            on_loss: None,
            on_disconnect: OnDisconnect::Keep,
            pools: None,
            traceparent: None,
        }
    }

    /// A vector for each of these texts, else as [`TaskRequest::completion`]. Each is one event of the stream, as a
    /// JSON array.
    pub fn embedding(inputs: Vec<String>) -> Self {
        let max_tokens = Tokens(u32::try_from(inputs.len()).unwrap_or(u32::MAX));
        TaskRequest { workload: Workload::Embedding, inputs, max_tokens, ..TaskRequest::completion("") }
    }

    /// A score for each of these texts, by how well it fits `query`, else as [`TaskRequest::completion`]. Each is one
    /// event of the stream: `{"index":…,"score":…}`.
    pub fn rerank(query: impl Into<String>, inputs: Vec<String>) -> Self {
        TaskRequest { workload: Workload::Rerank, prompt: query.into(), ..TaskRequest::embedding(inputs) }
    }

    /// Whether it may use this pool, whatever its client may.
    pub fn may_use(&self, pool: &PoolId) -> bool {
        self.pools.as_ref().is_none_or(|pools| pools.contains(pool))
    }

    /// Whether this asks for the same work: all but the trace and the key's pools, which a second submission may have
    /// of its own.
    pub fn is_same(&self, other: &TaskRequest) -> bool {
        let work = |request: &TaskRequest| TaskRequest { traceparent: None, pools: None, ..request.clone() };
        self == other || work(self) == work(other)
    }

    /// Bytes of all its texts.
    pub fn text_bytes(&self) -> usize {
        self.prompt.len() + self.inputs.iter().map(String::len).sum::<usize>()
    }

    /// The same request with a generation budget.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Tokens(tokens);
        self
    }

    /// The same request with a seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The same request in another class.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// The same request for another client.
    #[must_use]
    pub fn client(mut self, client: ClientId) -> Self {
        self.client_id = client;
        self
    }

    /// The same request under an id of the caller's own: submitting it again finds the first (ORCH-3024).
    #[must_use]
    pub fn task_id(mut self, id: TaskId) -> Self {
        self.task_id = Some(id);
        self
    }

    /// The same request as a part of a conversation.
    #[must_use]
    pub fn session(mut self, session: SessionId) -> Self {
        self.session_id = Some(session);
        self
    }

    /// The same request for a model, by its name or an alias.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model_ref = Some(model.into());
        self
    }

    /// The same request for an engine, by its name.
    #[must_use]
    pub fn engine(mut self, engine: impl Into<String>) -> Self {
        self.engine = Some(engine.into());
        self
    }

    /// The same request for pools with at least this context, in tokens.
    #[must_use]
    pub fn ctx(mut self, tokens: u32) -> Self {
        self.ctx = Some(Tokens(tokens));
        self
    }

    /// The same request, wanted for so long after its submission.
    #[must_use]
    pub fn deadline(mut self, within: Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// The same request with another way to draw tokens.
    #[must_use]
    pub fn parameters(mut self, parameters: Sampling) -> Self {
        self.parameters = parameters;
        self
    }

    /// The same request with another promise about the same seed.
    #[must_use]
    pub fn determinism(mut self, determinism: Determinism) -> Self {
        self.determinism = determinism;
        self
    }

    /// The same request with a guess of the tokens that it will get, for order only.
    #[must_use]
    pub fn expected_tokens(mut self, tokens: u32) -> Self {
        self.expected_tokens = Some(Tokens(tokens));
        self
    }

    /// The same request with another wish about its conversation's KV cache.
    #[must_use]
    pub fn kv_hint(mut self, hint: KvHint) -> Self {
        self.kv_hint = hint;
        self
    }

    /// The same request with a rule of its own for lost attempts.
    #[must_use]
    pub fn on_loss(mut self, rule: OnLoss) -> Self {
        self.on_loss = Some(rule);
        self
    }

    /// The same request with a rule for the moment when its last reader is gone: [`OnDisconnect::Cancel`] is right for
    /// an answer that somebody waits for, and cancels it behind the configuration's `disconnect_grace_ms`.
    #[must_use]
    pub fn on_disconnect(mut self, rule: OnDisconnect) -> Self {
        self.on_disconnect = rule;
        self
    }

    /// The same request, kept to these pools.
    #[must_use]
    pub fn pools(mut self, pools: impl IntoIterator<Item = PoolId>) -> Self {
        self.pools = Some(pools.into_iter().collect());
        self
    }

    /// The same request as a part of a trace (W3C Trace Context); passed on to its engine.
    #[must_use]
    pub fn traceparent(mut self, parent: TraceParent) -> Self {
        self.traceparent = Some(parent);
        self
    }
}
