//! What is wanted of the service, by class (ORCH-3041).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, section};
use crate::core::slo::objectives::Objectives;

section! {
    /// What is wanted of the service, by class.
    pub struct ObjectivesConfig {
        /// Of tasks that somebody waits for.
        pub interactive: InteractiveObjectives = InteractiveObjectives::default(),
        /// Of tasks of which only throughput matters.
        pub batch: BatchObjectives = BatchObjectives::default(),
    }
}

section! {
    /// Of tasks that somebody waits for.
    pub struct InteractiveObjectives {
        /// Longest time from submission to the first token, in milliseconds.
        pub first_token_ms: u64 = 900,
        /// Longest time from submission to the 64th token, or to the end of fewer, in milliseconds.
        pub tokens_64_ms: u64 = 2_500,
        /// Share of tasks that must keep both, above 0 and below 1: 0.95 is a p95.
        pub target: f64 = 0.95,
        /// Share of accepted tasks that may fail, above 0 and below 1.
        pub errors_max: f64 = 0.005,
    }
}

section! {
    /// Of tasks of which only throughput matters.
    pub struct BatchObjectives {
        /// Share of the slots that must be in use while batch tasks wait, above 0 and below 1.
        pub throughput_min: f64 = 0.8,
        /// Share of accepted tasks that may fail, above 0 and below 1.
        pub errors_max: f64 = 0.01,
    }
}

impl ObjectivesConfig {
    /// The objectives as they are measured.
    pub fn wanted(&self) -> Objectives {
        Objectives {
            first_token: Duration::from_millis(self.interactive.first_token_ms),
            tokens_64: Duration::from_millis(self.interactive.tokens_64_ms),
            latency_target: self.interactive.target,
            throughput_target: self.batch.throughput_min,
            errors_max: [self.interactive.errors_max, self.batch.errors_max],
        }
    }

    /// Shares that are none.
    pub(in crate::config) fn share_faults(&self) -> Vec<ConfigError> {
        let shares = [
            ("interactive.target", self.interactive.target),
            ("interactive.errors_max", self.interactive.errors_max),
            ("batch.throughput_min", self.batch.throughput_min),
            ("batch.errors_max", self.batch.errors_max),
        ];
        let wrong = shares.into_iter().filter(|(_, share)| !(*share > 0.0 && *share < 1.0));
        let fault = |(field, share)| {
            ConfigError::new(format!("objectives.{field}"), format!("it must be above 0 and below 1, not {share}"))
        };
        wrong.map(fault).collect()
    }
}
