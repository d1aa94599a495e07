//! What becomes of a task whose attempt was lost: its engine died, hung or talked nonsense, or its worker failed.
//!
//! Because a replica set is deterministic, a lost attempt can be run again from the same seed: the tokens that the log has
//! already are compared, the rest is appended, and whoever reads the stream sees each token once.

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
    /// The rule of a task.
    pub fn of(task: Option<OnLoss>, pool: Option<OnLoss>, determinism: Determinism, attempts_max: u32) -> Self {
        let by_determinism = match determinism {
            Determinism::Strict => OnLoss::Resume,
            Determinism::BestEffort => OnLoss::RestartIfNoToken,
        };
        LossRule { on_loss: task.or(pool).unwrap_or(by_determinism), attempts_max }
    }

    /// Whether a task that has had this many attempts and has this many tokens runs again.
    pub const fn runs_again(&self, attempts: u32, tokens: u32) -> bool {
        let wanted = match self.on_loss {
            OnLoss::Resume => true,
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
        let rule = |task, pool, determinism| LossRule::of(task, pool, determinism, 4).on_loss;
        assert_eq!(rule(Some(Fail), Some(Resume), Determinism::Strict), Fail);
        assert_eq!(rule(None, Some(RestartIfNoToken), Determinism::Strict), RestartIfNoToken);
        assert_eq!(rule(None, None, Determinism::Strict), Resume);
        assert_eq!(rule(None, None, Determinism::BestEffort), RestartIfNoToken);
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
        ] {
            assert_eq!((again(on_loss, 1, tokens), again(on_loss, 2, tokens)), (want, want), "{on_loss:?} {tokens}");
            assert!(!again(on_loss, 3, tokens), "the third was the last");
        }
    }
}
