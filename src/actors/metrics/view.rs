//! Percentiles as they are shown.

use serde::Serialize;

use crate::core::fairness::usage::UsageWindow;
use crate::core::slo::objectives::Tally;
use crate::core::task::Priority;

/// Percentiles of one kind of duration, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Samples behind the figures.
    pub count: u64,
    /// Half of all samples are at most this.
    pub p50: f64,
    /// 95 % of all samples are at most this.
    pub p95: f64,
    /// 99 % of all samples are at most this.
    pub p99: f64,
    /// Sum of all samples.
    pub sum: f64,
}

/// Number of durations that are measured.
const STAGES: usize = 7;

/// The durations that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Submission to start.
    Queue,
    /// Submission to the first token.
    FirstToken,
    /// One token to the next.
    PerToken,
    /// First token to the end.
    Decode,
    /// Submission to the end.
    Total,
    /// Between the start and its prediction, early or late (ORCH-3029).
    StartError,
    /// A stream's silence between a lost attempt and the next token.
    ResumeGap,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; STAGES] = [
        Stage::Queue,
        Stage::FirstToken,
        Stage::PerToken,
        Stage::Decode,
        Stage::Total,
        Stage::StartError,
        Stage::ResumeGap,
    ];

    /// The stage as it is written in metric names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::FirstToken => "first_token",
            Stage::PerToken => "per_token",
            Stage::Decode => "decode",
            Stage::Total => "total",
            Stage::StartError => "start_prediction_error",
            Stage::ResumeGap => "resume_gap",
        }
    }
}

/// Upper bounds of the buckets that are exported, in milliseconds.
pub const BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000, 300_000];

/// One kind of duration of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageView {
    /// Its percentiles since the start.
    pub quantiles: Quantiles,
    /// Its percentiles in each of [`Window::ALL`](crate::Window::ALL).
    pub windows: [Quantiles; 2],
    /// Samples at most as long as each of [`BUCKETS_MS`].
    pub buckets: [u64; BUCKETS_MS.len()],
}

/// All percentiles of a pool, as of the newest collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LatencyView {
    /// By class ([`Priority::index`]), then by stage in the order of [`Stage::ALL`].
    pub stages: [[StageView; STAGES]; 2],
    /// How objectives were met, by class, in each of [`Window::ALL`](crate::Window::ALL).
    pub tallies: [[Tally; 2]; 2],
    /// What was given to whom in the last minute.
    pub given: UsageWindow,
    /// Tokens a second that were generated over the last minute.
    pub tokens_per_s: f64,
}

impl LatencyView {
    /// One kind of duration of one class.
    pub fn of(&self, class: Priority, stage: Stage) -> &StageView {
        &self.stages[class.index()][stage as usize]
    }
}
