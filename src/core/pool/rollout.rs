//! The rollout of a new model by percentage, and the way back when it does not do well (ORCH-3033).
//!
//! Two pools have a name in common, an alias. Of the tasks that ask for the alias, or for nothing in particular, a
//! share goes to the pool with the new model: first a small one, then a larger one, each for a while. Conversations
//! stay on their side, since it is drawn from their names. When the new side burns its error budget, or is not there,
//! everything goes to the old side at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::PoolId;
use crate::core::slo::objectives::{Objectives, Tally, Window, attained};
use crate::core::task::Priority;
use crate::core::units::Timestamp;

/// Most steps of a rollout.
const STEPS_MAX: usize = 32;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema))]
pub struct RolloutSpec {
    /// The pool with the old model.
    #[cfg_attr(feature = "service", schema(value_type = String))]
    pub from: PoolId,
    /// The pool with the new one.
    #[cfg_attr(feature = "service", schema(value_type = String))]
    pub to: PoolId,
    /// Shares of tasks for the new one, in percent, rising.
    #[serde(default = "steps_default")]
    pub steps: Vec<u32>,
    /// How long each share is held at least, in milliseconds.
    #[serde(default = "hold_default")]
    pub hold_ms: u64,
    /// Tasks that must have ended on the new side in a step before it counts.
    #[serde(default = "tasks_default")]
    pub tasks_min: u64,
    /// The burn rate of the last minute above which everything goes back.
    #[serde(default = "burn_default")]
    pub burn_max: f64,
}

fn steps_default() -> Vec<u32> {
    vec![5, 25, 50, 100]
}

fn hold_default() -> u64 {
    60_000
}

fn tasks_default() -> u64 {
    20
}

fn burn_default() -> f64 {
    2.0
}

impl RolloutSpec {
    /// A rollout from one pool to another with every setting at its default.
    pub fn new(from: PoolId, to: PoolId) -> Self {
        let (steps, hold_ms, tasks_min, burn_max) = (steps_default(), hold_default(), tasks_default(), burn_default());
        RolloutSpec { from, to, steps, hold_ms, tasks_min, burn_max }
    }

    /// What is wrong with it, with the field; `None` when nothing is.
    pub fn fault(&self) -> Option<String> {
        let rising = self.steps.windows(2).all(|pair| pair[0] < pair[1]);
        if self.steps.is_empty()
            || self.steps.len() > STEPS_MAX
            || !rising
            || self.steps.iter().any(|share| *share > 100)
        {
            return Some(
                "field 'steps': from 1 to 32 shares in percent are needed, each larger than the one before".into(),
            );
        }
        if self.from == self.to {
            return Some("field 'to': it must be another pool than 'from'".into());
        }
        (self.burn_max.is_nan() || self.burn_max <= 0.0).then(|| "field 'burn_max': it must be above 0".into())
    }
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RolloutState {
    /// A share of the tasks goes to the new side.
    Rolling {
        /// The step, from 0.
        step: usize,
    },
    /// Its last share has been held.
    Done,
    /// Everything goes to the old side.
    RolledBack {
        /// Why.
        reason: String,
    },
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rollout {
    /// What was wanted.
    pub spec: RolloutSpec,
    /// Where it stands.
    #[serde(flatten)]
    pub state: RolloutState,
    /// When the step began.
    #[serde(skip)]
    since: Timestamp,
    /// Tasks that had ended on the new side when the step began.
    #[serde(skip)]
    tasks_before: u64,
    /// Since when the new side takes no tasks.
    #[serde(skip)]
    out_since: Option<Timestamp>,
}

/// How the new side does.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSide {
    /// Whether it takes tasks.
    pub takes_tasks: bool,
    /// Tasks that have ended there since the start.
    pub ended: u64,
    /// Counts of its last minute, by class.
    pub tallies: [Tally; 2],
}

/// How long the new side may take no tasks before everything goes back.
const OUT_MAX: Duration = Duration::from_secs(10);
/// Tasks of the last minute below which a burn rate says nothing.
const TALLY_MIN: u64 = 10;

impl Rollout {
    /// A rollout that begins now; `ended` tasks have ended on the new side before.
    pub fn new(spec: RolloutSpec, now: Timestamp, ended: u64) -> Self {
        let state = RolloutState::Rolling { step: 0 };
        Rollout { spec, state, since: now, tasks_before: ended, out_since: None }
    }

    /// The share of tasks that goes to the new side now, in percent.
    pub fn share(&self) -> u32 {
        match &self.state {
            RolloutState::Rolling { step } => self.spec.steps[*step],
            RolloutState::Done => self.spec.steps.last().copied().unwrap_or(100),
            RolloutState::RolledBack { .. } => 0,
        }
    }

    /// Whether what has this hash goes to the new side.
    pub fn picks_new(&self, hash: u64) -> bool {
        hash % 10_000 < u64::from(self.share()) * 100
    }

    /// Looks how the new side does; returns whether that changes anything.
    pub fn look(&mut self, now: Timestamp, side: &NewSide, wanted: &Objectives) -> bool {
        let (share, has_changed) = (self.share(), self.decide(now, side, wanted));
        if cfg!(debug_assertions) {
            self.invariants();
            let is_back = matches!(self.state, RolloutState::RolledBack { .. });
            assert!(is_back || self.share() >= share, "the share of the new side rises, or everything goes back");
        }
        has_changed
    }

    /// Checks what must always hold. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        let step = match self.state {
            RolloutState::Rolling { step } => step,
            RolloutState::Done | RolloutState::RolledBack { .. } => 0,
        };
        assert!(step < self.spec.steps.len(), "there is such a step");
        assert!(self.share() <= 100, "a share is of a hundred");
    }

    fn decide(&mut self, now: Timestamp, side: &NewSide, wanted: &Objectives) -> bool {
        let RolloutState::Rolling { step } = self.state else { return false };
        self.out_since = if side.takes_tasks { None } else { Some(self.out_since.unwrap_or(now)) };
        if self.out_since.is_some_and(|since| now.since(since) >= OUT_MAX) {
            return self.go_back(format!("pool {} has taken no tasks for {OUT_MAX:?}", self.spec.to));
        }
        for class in Priority::ALL {
            let tally = side.tallies[class.index()];
            if tally.tasks < TALLY_MIN {
                continue;
            }
            let view = attained(class, Window::Minute, &tally, wanted);
            let worst = view.objectives.iter().filter(|objective| objective.name != "throughput");
            let worst = worst.max_by(|a, b| a.burn_rate().total_cmp(&b.burn_rate()));
            if let Some(worst) = worst.filter(|worst| worst.burn_rate() > self.spec.burn_max) {
                let met = worst.attainment.unwrap_or(1.0) * 100.0;
                let (name, tasks, class) = (worst.name, tally.tasks, class.as_str());
                return self
                    .go_back(format!("of {tasks} {class} tasks of the last minute {met:.1} % met objective {name}"));
            }
        }
        self.tasks_before = self.tasks_before.min(side.ended); // Its counts may have begun anew.
        let held = now.since(self.since) >= Duration::from_millis(self.spec.hold_ms);
        if !held || side.ended.saturating_sub(self.tasks_before) < self.spec.tasks_min {
            return false;
        }
        (self.since, self.tasks_before) = (now, side.ended);
        let next = step + 1;
        self.state =
            if next < self.spec.steps.len() { RolloutState::Rolling { step: next } } else { RolloutState::Done };
        true
    }

    /// An operator ends it: everything goes to the old side.
    pub fn end(&mut self) {
        self.go_back("ended by an operator".into());
    }

    fn go_back(&mut self, reason: String) -> bool {
        self.state = RolloutState::RolledBack { reason };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Objectives {
        crate::config::ObjectivesConfig::default().wanted()
    }

    fn rollout() -> Rollout {
        let id = |name: &str| PoolId::parse(name).expect("valid");
        Rollout::new(RolloutSpec::new(id("old"), id("new")), Timestamp::from_micros(0), 0)
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn side(ended: u64, tasks: u64, good: u64) -> NewSide {
        let tally = Tally { tasks, good, first_token: good, tokens_64: good, ..Tally::default() };
        NewSide { takes_tasks: true, ended, tallies: [tally, Tally::default()] }
    }

    #[test]
    fn it_goes_on_step_by_step_when_time_and_tasks_have_passed() {
        let mut rollout = rollout();
        assert!(!rollout.look(at(59), &side(500, 100, 100), &wanted()));
        assert!(!rollout.look(at(61), &side(19, 19, 19), &wanted()), "too few tasks");
        let mut shares = Vec::new();
        for round in 1..=4 {
            shares.push(rollout.share());
            assert!(rollout.look(at(round * 61), &side(round * 20, 20, 20), &wanted()));
        }
        assert_eq!((shares, rollout.state.clone(), rollout.share()), (vec![5, 25, 50, 100], RolloutState::Done, 100));
    }

    #[test]
    fn it_goes_back_when_the_new_side_burns_its_budget_or_is_not_there() {
        let mut burns = rollout();
        assert!(burns.look(at(1), &side(20, 20, 17), &wanted()), "15 % late where 5 % may be");
        assert!(matches!(&burns.state, RolloutState::RolledBack { reason } if reason.contains("85.0 % met objective")));
        assert!((0..10_000).all(|hash| !burns.picks_new(hash)));
        let mut out = rollout();
        let away = NewSide { takes_tasks: false, ..side(0, 0, 0) };
        assert!(!out.look(at(1), &away, &wanted()) && !out.look(at(10), &away, &wanted()));
        assert!(out.look(at(11), &away, &wanted()));
    }

    #[test]
    fn shares_are_exact_over_all_hashes() {
        let rollout = rollout();
        assert_eq!((0..10_000).filter(|hash| rollout.picks_new(*hash)).count(), 500);
    }

    #[test]
    fn what_is_no_rollout_is_said() {
        let spec = rollout().spec;
        let with = |steps: &[u32]| RolloutSpec { steps: steps.to_vec(), ..spec.clone() };
        for wrong in [with(&[]), with(&[5, 5]), with(&[101])] {
            assert!(wrong.fault().is_some_and(|fault| fault.contains("'steps'")));
        }
        assert!(RolloutSpec { to: spec.from.clone(), ..spec.clone() }.fault().is_some());
        assert_eq!(spec.fault(), None);
    }
}
