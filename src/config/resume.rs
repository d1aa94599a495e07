//! What becomes of tasks whose worker or engine is lost.

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::core::pool::outlier::OutlierPolicy;
use crate::core::task::resume::{DeterminismClass, LossRule, OnLoss};
use crate::core::task::{TaskRequest, Workload};

section! {
    /// What becomes of a task whose worker or engine is lost while it runs.
    pub struct ResumeConfig {
        /// What becomes of a task that does not say. Left out, `resume` for `determinism: strict` on an engine that
        /// repeats itself, else `restart_if_no_token`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub on_loss: Option<OnLoss> = None,
        /// Most attempts of one task, the first included. Below `restart.intensity`, so that a task that kills engines
        /// ends before a breaker opens.
        pub attempts_max: u32 = 4,
        /// How long a replica gets no task behind an attempt that failed on it, in milliseconds; doubled with each that
        /// follows without a success in between. So long, too, one that says that it is busy and not for how long.
        pub ejection_ms: u64 = 250,
        /// Longest such wait, in milliseconds.
        pub ejection_max_ms: u64 = 30_000,
    }
}

impl ResumeConfig {
    /// The waits of a replica whose attempts fail.
    pub(crate) fn outlier_policy(&self) -> OutlierPolicy {
        let ms = std::time::Duration::from_millis;
        OutlierPolicy { wait: ms(self.ejection_ms), wait_max: ms(self.ejection_max_ms) }
    }

    /// The rule for this task, on an engine of this class.
    pub fn rule(&self, request: &TaskRequest, class: Option<DeterminismClass>) -> LossRule {
        let rule = LossRule::of(request.on_loss, self.on_loss, (request.determinism, class), self.attempts_max);
        match rule.on_loss {
            // There is no text to go on behind.
            OnLoss::Continue if request.workload != Workload::Completion => {
                LossRule { on_loss: OnLoss::Resume, ..rule }
            }
            _ => rule,
        }
    }
}
