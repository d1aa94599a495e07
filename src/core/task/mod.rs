//! What a task is, which steps its life may take, and how it may end.

#[doc(hidden)]
pub mod end;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod failure;
#[doc(hidden)]
pub mod request;
#[doc(hidden)]
pub mod resume;
#[doc(hidden)]
pub mod seed;
#[doc(hidden)]
pub mod trace;
#[doc(hidden)]
pub mod traceparent;
#[doc(hidden)]
pub mod workload;

use serde::{Deserialize, Serialize};

use crate::core::id::Epoch;
pub use crate::core::task::end::{FinishReason, Terminal};
pub use crate::core::task::request::{MAX_TOKENS_DEFAULT, STOP_TEXT_BYTES_MAX, STOP_TEXTS_MAX, Sampling, TaskRequest};
pub use crate::core::task::workload::{INPUTS_MAX, Workload};
use crate::core::units::Tokens;

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

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
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

/// Where a task stands. Every change goes through [`Phase::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
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
pub enum TransitionError {
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
    /// A peer's worker was to run it, and does not serve what its own pool serves any more.
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
