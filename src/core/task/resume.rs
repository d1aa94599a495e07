//! What becomes of a task whose attempt was lost: its engine died, hung or talked nonsense, or its worker failed.
//!
//! Because a replica set is deterministic, a lost attempt can be run again from the same seed: the tokens that the log
//! has already are compared, the rest is appended, and whoever reads the stream sees each token once.

use serde::{Deserialize, Serialize};

use crate::core::task::Determinism;

/// What becomes of a task whose attempt was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum OnLoss {
    /// It runs again, and goes on behind the tokens that it has. A token that differs ends it with `WORKER_RESET`.
    Resume,
    /// It runs again if nobody has seen a token of it; else it ends with `WORKER_RESET`.
    RestartIfNoToken,
    /// It ends with `WORKER_RESET`.
    Fail,
    /// It runs again behind the tokens that it has: the engine is given the prompt and the text so far. No token is
    /// repeated and none compared; what follows is not what an undisturbed run would say, and the `started` event says
    /// so.
    Continue,
}

/// What an engine, as it is configured, makes of the same prompt, parameters and seed. The later is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum DeterminismClass {
    /// Other tokens each time.
    None,
    /// The same tokens while nothing else runs on it: batches of another size may round otherwise.
    SingleSlot,
    /// The same tokens, whatever runs beside it.
    BatchInvariant,
}

impl DeterminismClass {
    /// The class that a self-test has shown: whether a run alone was repeated, and, where there is more than one slot,
    /// in a batch.
    pub fn shown(repeats_alone: bool, repeats_in_batch: Option<bool>) -> Self {
        match (repeats_alone, repeats_in_batch) {
            (false, _) => DeterminismClass::None,
            (true, Some(true)) => DeterminismClass::BatchInvariant,
            (true, _) => DeterminismClass::SingleSlot,
        }
    }

    /// Whether what a self-test has shown speaks against this class. A single slot says nothing about batches.
    pub fn is_refuted_by(self, repeats_alone: bool, repeats_in_batch: Option<bool>) -> bool {
        match self {
            DeterminismClass::None => false,
            DeterminismClass::SingleSlot => !repeats_alone,
            DeterminismClass::BatchInvariant => !repeats_alone || repeats_in_batch == Some(false),
        }
    }
}

/// The rule for one task: its own wish, else its pool's, else what its determinism allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossRule {
    /// What becomes of it.
    pub on_loss: OnLoss,
    /// Most attempts, the first included. Whatever kills engines ends here, before it has worn a replica set out.
    pub attempts_max: u32,
}

impl LossRule {
    /// The rule of a task: what it says itself, else what its pool says, else by what it asks for and the engine can
    /// do; of an engine of an unknown class (`None`) the best is hoped, since each token is compared.
    pub fn of(
        task: Option<OnLoss>,
        pool: Option<OnLoss>,
        (determinism, class): (Determinism, Option<DeterminismClass>),
        attempts_max: u32,
    ) -> Self {
        let by_determinism = match (determinism, class) {
            (Determinism::BestEffort, _) | (_, Some(DeterminismClass::None)) => OnLoss::RestartIfNoToken,
            (Determinism::Strict, _) => OnLoss::Resume,
        };
        LossRule { on_loss: task.or(pool).unwrap_or(by_determinism), attempts_max }
    }

    /// Whether the next attempt of a task with this many tokens goes on behind them without repeating them.
    pub const fn continues(&self, tokens: u32) -> bool {
        tokens > 0 && matches!(self.on_loss, OnLoss::Continue)
    }

    /// Whether a task that has had this many attempts and has this many tokens runs again.
    pub const fn runs_again(&self, attempts: u32, tokens: u32) -> bool {
        let wanted = match self.on_loss {
            OnLoss::Resume | OnLoss::Continue => true,
            OnLoss::RestartIfNoToken => tokens == 0,
            OnLoss::Fail => false,
        };
        wanted && attempts < self.attempts_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_decides_before_its_pool_and_its_determinism_last() {
        use OnLoss::{Fail, RestartIfNoToken, Resume};
        let rule = |task, pool, determinism| LossRule::of(task, pool, (determinism, None), 4).on_loss;
        assert_eq!(rule(Some(Fail), Some(Resume), Determinism::Strict), Fail);
        assert_eq!(rule(None, Some(RestartIfNoToken), Determinism::Strict), RestartIfNoToken);
        assert_eq!(rule(None, None, Determinism::Strict), Resume);
        assert_eq!(rule(None, None, Determinism::BestEffort), RestartIfNoToken);
        let of_class = |task, class| LossRule::of(task, None, (Determinism::Strict, Some(class)), 4).on_loss;
        assert_eq!(of_class(None, DeterminismClass::None), RestartIfNoToken, "it would only diverge");
        assert_eq!(of_class(Some(Resume), DeterminismClass::None), Resume, "who insists may try");
        assert_eq!(of_class(None, DeterminismClass::SingleSlot), Resume);
        assert_eq!(of_class(None, DeterminismClass::BatchInvariant), Resume);
    }

    #[test]
    fn a_class_is_what_the_runs_alone_and_in_a_batch_have_shown() {
        use DeterminismClass::{BatchInvariant, None as Never, SingleSlot};
        let cases = [
            ((false, None), Never, [false, true, true]),
            ((false, Some(true)), Never, [false, true, true]),
            ((true, Some(false)), SingleSlot, [false, false, true]),
            ((true, None), SingleSlot, [false, false, false]),
            ((true, Some(true)), BatchInvariant, [false, false, false]),
        ];
        for ((alone, batch), shown, refuted) in cases {
            assert_eq!(DeterminismClass::shown(alone, batch), shown);
            assert_eq!([Never, SingleSlot, BatchInvariant].map(|class| class.is_refuted_by(alone, batch)), refuted);
        }
        assert!(Never < SingleSlot && SingleSlot < BatchInvariant);
    }

    #[test]
    fn attempts_have_a_bound_and_only_resume_goes_on_behind_a_token() {
        let again = |on_loss, attempts, tokens| LossRule { on_loss, attempts_max: 3 }.runs_again(attempts, tokens);
        for (on_loss, tokens, want) in [
            (OnLoss::Resume, 0, true),
            (OnLoss::Resume, 9, true),
            (OnLoss::RestartIfNoToken, 0, true),
            (OnLoss::RestartIfNoToken, 1, false),
            (OnLoss::Fail, 0, false),
            (OnLoss::Continue, 0, true),
            (OnLoss::Continue, 9, true),
        ] {
            assert_eq!((again(on_loss, 1, tokens), again(on_loss, 2, tokens)), (want, want), "{on_loss:?} {tokens}");
            assert!(!again(on_loss, 3, tokens), "the third was the last");
        }
    }
}
