//! What a task is, which steps its life may take, and how it may end.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::core::end::{FinishReason, Terminal};
use crate::core::id::{ClientId, Epoch, PoolId, SessionId, TaskId};
use crate::core::resume::OnLoss;
use crate::core::traceparent::TraceParent;
use crate::core::units::Tokens;
pub use crate::core::workload::{INPUTS_MAX, Workload};

/// The class of a task. Interactive work goes first, by weight and not absolutely: batch never starves (FAIR-1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum Priority {
    /// Somebody waits for the first token.
    #[default]
    Interactive,
    /// Only throughput matters.
    Batch,
}

impl Priority {
    /// Every class, the more important first.
    pub const ALL: [Priority; 2] = [Priority::Interactive, Priority::Batch];

    /// The class's place in a table with one row for each class.
    pub const fn index(self) -> usize {
        match self {
            Priority::Interactive => 0,
            Priority::Batch => 1,
        }
    }

    /// The class as it is written in JSON, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
    }
}

/// Whether the same seed must give the same tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum Determinism {
    /// The same prompt, parameters and seed give the same tokens on every replica of a set (ORCH-3045).
    #[default]
    Strict,
    /// The engine may trade reproducibility for speed.
    BestEffort,
}

/// Whether the session's KV cache should be used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum KvHint {
    /// Prefer the replica that served the session last.
    #[default]
    Reuse,
    /// Any replica will do.
    Cold,
}

/// What becomes of a task when its last reader is gone and does not come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum OnDisconnect {
    /// It is cancelled after the runtime's `disconnect_grace_ms`. A task that nobody ever read goes on.
    #[default]
    Cancel,
    /// It goes on.
    Keep,
}

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
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::core::texts::at_most::<64, _>")]
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
    /// A completion of `prompt` for the anonymous client, everything else by default; it goes on when its readers are gone.
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

    /// A vector for each of these texts, else as [`TaskRequest::completion`]. Each is one event of the stream, as a JSON array.
    pub fn embedding(inputs: Vec<String>) -> Self {
        let max_tokens = Tokens(u32::try_from(inputs.len()).unwrap_or(u32::MAX));
        TaskRequest { workload: Workload::Embedding, inputs, max_tokens, ..TaskRequest::completion("") }
    }

    /// A score for each of these texts, by how well it fits `query`, else as [`TaskRequest::completion`]. Each is one event of the
    /// stream: `{"index":…,"score":…}`.
    pub fn rerank(query: impl Into<String>, inputs: Vec<String>) -> Self {
        TaskRequest { workload: Workload::Rerank, prompt: query.into(), ..TaskRequest::embedding(inputs) }
    }

    /// Whether it may use this pool, whatever its client may.
    pub fn may_use(&self, pool: &PoolId) -> bool {
        self.pools.as_ref().is_none_or(|pools| pools.contains(pool))
    }

    /// Whether this asks for the same work: all but the trace and the key's pools, which a second submission may have of its own.
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
}

/// Where a task stands. Every change goes through [`Phase::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// In the hands of admission; nothing has been promised yet.
    Submitted,
    /// Accepted: it waits in its pool's queue.
    Queued,
    /// On its way to a worker, which has not begun it.
    Assigned,
    /// A worker runs it.
    Running,
    /// Over. Nothing follows.
    Terminal,
}

/// What may happen to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The queue takes it in.
    Admit,
    /// The queue hands it towards a worker.
    Assign,
    /// It comes back to be run again: it was not begun, or its attempt was lost.
    Return,
    /// A worker begins it.
    Begin,
    /// It ends, for whatever reason.
    Seal,
}

/// A step that a task's phase does not allow. It changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from:?} cannot {step:?}")]
pub struct IllegalStep {
    /// The phase that the task is in.
    pub from: Phase,
    /// The step that was tried.
    pub step: Step,
}

impl Phase {
    /// The phase after `step`: the one place that knows every legal step.
    ///
    /// # Errors
    /// [`IllegalStep`] when this phase does not allow it.
    pub const fn next(self, step: Step) -> Result<Phase, IllegalStep> {
        match (self, step) {
            (Phase::Submitted, Step::Admit) => Ok(Phase::Queued),
            (Phase::Queued, Step::Assign) => Ok(Phase::Assigned),
            (Phase::Assigned | Phase::Running, Step::Return) => Ok(Phase::Queued),
            (Phase::Assigned, Step::Begin) => Ok(Phase::Running),
            (Phase::Submitted | Phase::Queued | Phase::Assigned | Phase::Running, Step::Seal) => Ok(Phase::Terminal),
            (from, step) => Err(IllegalStep { from, step }),
        }
    }

    /// Whether the runtime has promised to bring the task to an end.
    pub const fn is_accepted(self) -> bool {
        !matches!(self, Phase::Submitted)
    }

    /// The phase as it is written in JSON and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Submitted => "submitted",
            Phase::Queued => "queued",
            Phase::Assigned => "assigned",
            Phase::Running => "running",
            Phase::Terminal => "terminal",
        }
    }
}

/// What happened when a log was asked for something that its state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The log has its terminal event: nothing may follow (ORCH-3026).
    #[error("the log is sealed")]
    Sealed,
    /// The caller's attempt is not the task's newest.
    #[error("epoch {} is over, the task is in epoch {}", .theirs.0, .current.0)]
    StaleEpoch {
        /// The epoch of the caller.
        theirs: Epoch,
        /// The task's epoch.
        current: Epoch,
    },
    /// The step is not one that the task's phase allows.
    #[error(transparent)]
    Illegal(#[from] IllegalStep),
    /// The budget of tokens is used up.
    #[error("the budget of {} tokens is used up", .0)]
    Budget(Tokens),
    /// The attempt repeats what an earlier one gave, and does not give the same.
    #[error("token {0} is not the one that an earlier attempt gave")]
    Diverged(u32),
    /// A sibling's worker was to run it, and does not serve what its own pool serves any more.
    #[error("its pool and this one do not serve the same any more")]
    OtherModel,
    /// The worker does not serve what the task names.
    #[error("the task names what is not served here")]
    Misfit,
    /// The attempt would repeat what another model, or another version of the engine, gave.
    #[error("its first tokens came from another model or engine")]
    OtherSource,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 5] = [Phase::Submitted, Phase::Queued, Phase::Assigned, Phase::Running, Phase::Terminal];
    const STEPS: [Step; 5] = [Step::Admit, Step::Assign, Step::Return, Step::Begin, Step::Seal];

    #[test]
    fn nothing_follows_the_end() {
        for step in STEPS {
            assert!(Phase::Terminal.next(step).is_err(), "{step:?}");
        }
    }

    #[test]
    fn every_live_phase_can_be_sealed() {
        for phase in PHASES.into_iter().filter(|phase| *phase != Phase::Terminal) {
            assert_eq!(phase.next(Step::Seal), Ok(Phase::Terminal));
        }
    }

    #[test]
    fn exactly_the_nine_legal_steps_are_legal() {
        let legal = PHASES.iter().flat_map(|p| STEPS.iter().map(move |s| p.next(*s))).filter(Result::is_ok).count();
        assert_eq!(legal, 9, "Admit, Assign, Begin, Return from two phases, Seal from four");
    }

    #[test]
    fn a_task_is_in_one_pair_of_hands() {
        for phase in [Phase::Submitted, Phase::Assigned, Phase::Running] {
            assert!(phase.next(Step::Assign).is_err(), "{phase:?}");
        }
        for phase in [Phase::Submitted, Phase::Queued, Phase::Running] {
            assert!(phase.next(Step::Begin).is_err(), "{phase:?}");
        }
    }
}
