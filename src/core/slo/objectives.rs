//! The objectives of the service, per class, and how far they are met (ORCH-3041).
//!
//! *Interactive*: a task meets them when its first token comes in time, its first 64 tokens do (all of them, where
//! there are fewer), and it does not fail. *Batch*: a task meets them when it does not fail; besides, while batch tasks
//! wait, the slots must be in use. An objective's *burn rate* is the share that missed it over the share that may: at 1
//! the error budget is used up exactly (Beyer et al., The Site Reliability Workbook, chapter 5).

use std::collections::VecDeque;
use std::ops::AddAssign;
use std::time::Duration;

use serde::Serialize;

use crate::core::slo::rolling::slice_of;
use crate::core::task::Priority;
use crate::core::task::error::ErrorCode;
use crate::core::units::Timestamp;

/// Tokens that an interactive reader waits for.
pub const TOKENS_AWAITED: u32 = 64;
/// One slice of the windows.
const SLICE: Duration = Duration::from_secs(10);
/// Slices that are kept: ten minutes.
const SLICES: u64 = 60;

/// The windows that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Window {
    /// The last minute.
    #[serde(rename = "1m")]
    Minute,
    /// The last ten minutes.
    #[serde(rename = "10m")]
    TenMinutes,
}

impl Window {
    /// Both.
    pub const ALL: [Window; 2] = [Window::Minute, Window::TenMinutes];

    /// As it is written in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Window::Minute => "1m",
            Window::TenMinutes => "10m",
        }
    }

    const fn slices(self) -> u64 {
        match self {
            Window::Minute => 6,
            Window::TenMinutes => SLICES,
        }
    }
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objectives {
    /// Longest time from submission to the first token of an interactive task.
    pub first_token: Duration,
    /// Longest time from submission to its 64th token.
    pub tokens_64: Duration,
    /// Share of interactive tasks that must keep these times, 0 to 1.
    pub latency_target: f64,
    /// Share of batch's capacity that must be used while batch tasks wait, 0 to 1.
    pub throughput_target: f64,
    /// Share of accepted tasks that may fail, by [`Priority::index`].
    pub errors_max: [f64; 2],
}

/// What one task's end says of the objectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Submission to the first token; `None` when there was none.
    pub first_token: Option<Duration>,
    /// Submission to the 64th token, or to the end of fewer.
    pub tokens_64: Duration,
    /// It was accepted and failed through no fault of its client.
    pub failed: bool,
}

/// Whether an accepted task that ended with this code counts against the service: full queues and wrong requests do
/// not.
pub fn counts_as_failure(code: ErrorCode) -> bool {
    !matches!(code, ErrorCode::AdmissionReject | ErrorCode::QueueFullDropLru | ErrorCode::InvalidParams)
}

/// Counts of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Accepted tasks that ended, cancelled ones left out.
    pub tasks: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that met every objective of their class.
    pub good: u64,
    /// Those whose first token came in time.
    pub first_token: u64,
    /// Those whose first 64 tokens did.
    pub tokens_64: u64,
    /// Slots in use, summed over looks at moments when batch tasks waited.
    pub slots_used: u64,
    /// Slots there were at those moments.
    pub slots_total: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.tasks += other.tasks;
        self.failed += other.failed;
        self.good += other.good;
        self.first_token += other.first_token;
        self.tokens_64 += other.tokens_64;
        self.slots_used += other.slots_used;
        self.slots_total += other.slots_total;
    }
}

/// The tallies of ten minutes, by slices of ten seconds. Oldest first; at most sixty.
#[derive(Clone, Debug, Default)]
pub struct Tallies(VecDeque<(u64, Tally)>);

impl Tallies {
    fn open(&mut self, now: Timestamp) -> &mut Tally {
        self.advance(now);
        let number = slice_of(now, SLICE);
        if self.0.back().is_none_or(|(newest, _)| *newest != number) {
            self.0.push_back((number, Tally::default()));
        }
        &mut self.0.back_mut().expect("pushed just now, if it was empty").1
    }

    /// Counts a task that ended.
    pub fn count(&mut self, now: Timestamp, class: Priority, outcome: &Outcome, wanted: &Objectives) {
        let first_token = !outcome.failed && outcome.first_token.is_some_and(|time| time <= wanted.first_token);
        let tokens_64 = !outcome.failed && outcome.tokens_64 <= wanted.tokens_64;
        let good = match class {
            Priority::Interactive => first_token && tokens_64,
            Priority::Batch => !outcome.failed,
        };
        *self.open(now) += Tally {
            tasks: 1,
            failed: outcome.failed.into(),
            good: good.into(),
            first_token: first_token.into(),
            tokens_64: tokens_64.into(),
            ..Tally::default()
        };
    }

    /// Counts a look at the slots while tasks of the class waited.
    pub fn look(&mut self, now: Timestamp, used: u32, total: u32) {
        *self.open(now) += Tally { slots_used: used.into(), slots_total: total.into(), ..Tally::default() };
    }

    /// Lets go of what is older than ten minutes.
    pub fn advance(&mut self, now: Timestamp) {
        let oldest = (slice_of(now, SLICE) + 1).saturating_sub(SLICES);
        while self.0.front().is_some_and(|(number, _)| *number < oldest) {
            self.0.pop_front();
        }
    }

    /// Whether nothing was counted in ten minutes, as of the last call that said the time.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The counts of a window.
    pub fn of(&self, now: Timestamp, window: Window) -> Tally {
        let oldest = (slice_of(now, SLICE) + 1).saturating_sub(window.slices());
        let mut sum = Tally::default();
        self.0.iter().filter(|(number, _)| *number >= oldest).for_each(|(_, tally)| sum += *tally);
        sum
    }
}

/// How far one objective is met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ObjectiveView {
    /// `first_token`, `tokens_64`, `throughput` or `errors`.
    pub name: &'static str,
    /// The time that it allows, in milliseconds, if it is about time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
    /// Share that must meet it, 0 to 1.
    pub target: f64,
    /// Share that met it; `None` without a task.
    pub attainment: Option<f64>,
}

impl ObjectiveView {
    /// The share that missed it, over the share that may; 0 without a task.
    pub fn burn_rate(&self) -> f64 {
        self.attainment.map_or(0.0, |met| (1.0 - met) / (1.0 - self.target).max(1e-6))
    }
}

/// How far the objectives of a class are met in a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SloView {
    /// The class.
    pub priority: Priority,
    /// The window.
    pub window: Window,
    /// Share of tasks that must meet all objectives of one task.
    pub target: f64,
    /// Share of tasks that met them; `None` without a task.
    pub attainment: Option<f64>,
    /// The highest burn rate of all its objectives.
    pub burn_rate: f64,
    /// Tasks that the figures rest on.
    pub tasks: u64,
    /// Each objective.
    pub objectives: Vec<ObjectiveView>,
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// How far a class's objectives are met, by its counts.
pub fn attained(priority: Priority, window: Window, tally: &Tally, wanted: &Objectives) -> SloView {
    let millis = |time: Duration| Some(time.as_millis() as u64);
    let timely = |name, limit, met| ObjectiveView {
        name,
        limit_ms: millis(limit),
        target: wanted.latency_target,
        attainment: share(met, tally.tasks),
    };
    let errors_max = wanted.errors_max[priority.index()];
    let errors = ObjectiveView {
        name: "errors",
        limit_ms: None,
        target: 1.0 - errors_max,
        attainment: share(tally.tasks - tally.failed, tally.tasks),
    };
    let (target, objectives) = match priority {
        Priority::Interactive => {
            let first = timely("first_token", wanted.first_token, tally.first_token);
            let tokens = timely("tokens_64", wanted.tokens_64, tally.tokens_64);
            (wanted.latency_target, vec![first, tokens, errors])
        }
        Priority::Batch => {
            let throughput = ObjectiveView {
                name: "throughput",
                limit_ms: None,
                target: wanted.throughput_target,
                attainment: share(tally.slots_used, tally.slots_total),
            };
            (1.0 - errors_max, vec![throughput, errors])
        }
    };
    let burn_rate = objectives.iter().map(ObjectiveView::burn_rate).fold(0.0, f64::max);
    let attainment = share(tally.good, tally.tasks);
    SloView { priority, window, target, attainment, burn_rate, tasks: tally.tasks, objectives }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Objectives {
        crate::config::ObjectivesConfig::default().wanted()
    }

    fn outcome(first_ms: u64, tokens_ms: u64) -> Outcome {
        let millis = Duration::from_millis;
        Outcome { first_token: Some(millis(first_ms)), tokens_64: millis(tokens_ms), failed: false }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_task_is_good_when_it_meets_every_objective_of_its_class() {
        let mut tallies = Tallies::default();
        let slow = [outcome(901, 2_000), outcome(900, 2_501), Outcome { failed: true, ..outcome(1, 1) }];
        for outcome in slow.iter().chain([&outcome(900, 2_500)]) {
            tallies.count(at(1), Priority::Interactive, outcome, &wanted());
        }
        let tally = tallies.of(at(1), Window::Minute);
        assert_eq!((tally.tasks, tally.good, tally.first_token, tally.tokens_64, tally.failed), (4, 1, 2, 2, 1));
        let view = attained(Priority::Interactive, Window::Minute, &tally, &wanted());
        assert_eq!((view.attainment, view.tasks), (Some(0.25), 4));
        // A quarter failed where 0.5 % may: fifty times the budget, which is the worst of the three.
        assert!((view.burn_rate - 50.0).abs() < 1e-6, "{}", view.burn_rate);
    }

    #[test]
    fn batch_is_held_to_its_slots_only_while_it_waits() {
        let mut tallies = Tallies::default();
        tallies.count(at(1), Priority::Batch, &outcome(60_000, 90_000), &wanted());
        let view = |tallies: &Tallies| {
            attained(Priority::Batch, Window::Minute, &tallies.of(at(2), Window::Minute), &wanted())
        };
        assert_eq!((view(&tallies).attainment, view(&tallies).burn_rate), (Some(1.0), 0.0));
        tallies.look(at(2), 6, 10);
        assert!((view(&tallies).burn_rate - 2.0).abs() < 1e-6, "60 % where 80 % is wanted");
    }

    #[test]
    fn windows_forget() {
        let mut tallies = Tallies::default();
        tallies.count(at(0), Priority::Interactive, &outcome(1, 1), &wanted());
        assert_eq!(tallies.of(at(59), Window::Minute).tasks, 1);
        assert_eq!(tallies.of(at(60), Window::Minute).tasks, 0);
        assert_eq!(tallies.of(at(599), Window::TenMinutes).tasks, 1);
        tallies.advance(at(600));
        assert!(tallies.is_empty());
        let nothing = attained(Priority::Interactive, Window::Minute, &Tally::default(), &wanted());
        assert_eq!((nothing.attainment, nothing.burn_rate), (None, 0.0));
    }

    #[test]
    fn refusals_of_full_queues_and_wrong_requests_are_no_failures() {
        let counted: Vec<ErrorCode> = ErrorCode::ALL.into_iter().filter(|code| counts_as_failure(*code)).collect();
        assert_eq!(counted.len(), 6, "{counted:?}");
    }
}
