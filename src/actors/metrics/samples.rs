//! What the end of a task says about latency, objectives and shares, on its way to its pool's latency actor.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::id::ClientId;
use crate::core::slo::objectives::Outcome;
use crate::core::task::Priority;

/// Durations of a task that ran to an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) queue: Duration,
    /// How far the start was from its prediction, early or late.
    pub(crate) start_error: Duration,
    pub(crate) first_token: Duration,
    /// Mean time from one token to the next; `None` with fewer than two tokens.
    pub(crate) per_token: Option<Duration>,
    pub(crate) decode: Duration,
    pub(crate) total: Duration,
    /// The longest silence between a lost attempt and the next token; `None` when none was lost.
    pub(crate) resume_gap: Option<Duration>,
}

/// One task's end.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) class: Priority,
    pub(crate) client: ClientId,
    /// Weighted tokens and generated tokens that it was given.
    pub(crate) weighted: u64,
    pub(crate) output: u32,
    /// `None` when it did not run to an end.
    pub(crate) run: Option<Run>,
    /// `None` when its client ended it, or it failed through no fault of ours.
    pub(crate) outcome: Option<Outcome>,
}

/// Samples on their way to the latency actor.
#[derive(Default)]
pub(crate) struct Samples {
    pub(in crate::actors) waiting: Mutex<Vec<Sample>>,
    /// The actor has been told and has not collected yet.
    pub(in crate::actors) collect_requested: AtomicBool,
    pub(crate) lost: AtomicU64,
}
