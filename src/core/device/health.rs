//! Whether a device may be used: what it was seen to do decides when it is taken out, and when it is tried again
//! (ORCH-3038, ORCH-3053).
//!
//! A device that has failed is out for a wait that doubles with each failure, behind a breaker when it fails too often,
//! and comes back with the first good look behind that. The caller brings the time; nothing here waits.

use std::time::Duration;

use serde::Serialize;

use crate::core::device::xid::{XidEffect, xid};
use crate::core::device::{DeviceSample, Observation};
use crate::core::pool::restart::{Backoff, Breaker, Decision, Excess, RestartHistory, RestartPolicy};
use crate::core::units::Timestamp;

/// The XID of memory errors that concern only the process that hit them.
const CONTAINED_ECC: u64 = 94;

/// Looks in a row without an answer after which a device counts as failed.
pub const LATE_MAX: u32 = 3;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The driver reported this XID.
    Xid(u64),
    /// The driver says that it is lost.
    Lost,
    /// The driver says that it needs a reset.
    ResetRequired,
    /// It has counted uncorrected memory errors.
    EccUncorrected,
    /// It has not answered [`LATE_MAX`] times in a row.
    Unresponsive,
    /// The driver does not know it any more.
    Missing,
}

impl Failure {
    /// The failure as it is written in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Failure::Xid(_) => "xid",
            Failure::Lost => "lost",
            Failure::ResetRequired => "reset_required",
            Failure::EccUncorrected => "ecc_uncorrected",
            Failure::Unresponsive => "unresponsive",
            Failure::Missing => "missing",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Xid(number) => write!(f, "XID {number}: {}", xid(*number).meaning),
            Failure::Lost => f.write_str("the driver says that it is lost"),
            Failure::ResetRequired => f.write_str("the driver says that it needs a reset"),
            Failure::EccUncorrected => f.write_str("uncorrected ECC errors"),
            Failure::Unresponsive => f.write_str("the driver does not answer for it"),
            Failure::Missing => f.write_str("the driver does not know it any more"),
        }
    }
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "condition")]
pub enum Condition {
    /// It is well.
    Healthy,
    /// It is used on; its memory waits for a reset to be retired.
    ResetPending,
    /// It is used on; it has not answered the last look in time.
    Late,
    /// It is out.
    Failed {
        /// Why.
        failure: Failure,
        /// It is not tried again before this moment.
        until: Timestamp,
    },
}

/// What an observation changes for those who use the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// What runs on it may have lost its context.
    Suspect(u64),
    /// It is out from now on.
    Down(Failure),
    /// It may be used again.
    Up,
}

/// One device's record.
#[derive(Clone, Debug)]
pub struct Health {
    condition: Condition,
    history: RestartHistory,
    late: u32,
    /// Uncorrected ECC errors when it was last looked at. Those from before the first look are not held against it.
    ecc: Option<u64>,
    /// The driver has said that the next ones were contained: only the process that hit them is concerned.
    contained: bool,
}

/// The rule of devices: three failures within an hour come back after the wait, doubled each time; the fourth opens the
/// breaker for ten minutes. A device that fails so often wants a person.
pub fn policy(wait: Duration) -> RestartPolicy {
    RestartPolicy {
        intensity: 3,
        period: Duration::from_secs(3_600),
        backoff: Backoff { base: wait, max: wait.saturating_mul(8), jitter_percent: 0 },
        excess: Excess::OpenBreaker(Duration::from_secs(600).max(wait)),
    }
}

impl Health {
    /// A device that is well.
    pub fn new(policy: RestartPolicy) -> Self {
        Health {
            condition: Condition::Healthy,
            history: RestartHistory::new(policy),
            late: 0,
            ecc: None,
            contained: false,
        }
    }

    /// Where it stands.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Whether it may be used.
    pub fn is_usable(&self) -> bool {
        !matches!(self.condition, Condition::Failed { .. })
    }

    /// Takes up what was seen now.
    pub fn observe(&mut self, now: Timestamp, seen: &Observation) -> Change {
        let was_usable = self.is_usable();
        let change = self.apply(now, seen);
        if cfg!(debug_assertions) {
            self.invariants();
            let is_usable = self.is_usable();
            assert_eq!(matches!(change, Change::Down(_)), was_usable && !is_usable, "what goes out is told");
            assert_eq!(change == Change::Up, !was_usable && is_usable, "what comes back is told");
        }
        change
    }

    /// Checks what must always hold. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        self.history.invariants();
        assert!(self.late < LATE_MAX || !self.is_usable(), "one that does not answer is out");
        assert!(self.condition != Condition::Late || self.late > 0, "who is late has been late");
        let is_open = self.history.breaker() == Breaker::Open;
        assert!(!is_open || !self.is_usable(), "behind an open breaker nothing is used");
    }

    fn apply(&mut self, now: Timestamp, seen: &Observation) -> Change {
        match seen {
            Observation::Sample(sample) => self.on_sample(now, sample),
            Observation::Late => {
                self.late = self.late.saturating_add(1);
                if self.late >= LATE_MAX {
                    return self.fail(now, Failure::Unresponsive);
                }
                if self.is_usable() {
                    self.condition = Condition::Late;
                }
                Change::None
            }
            Observation::Lost => self.fail(now, Failure::Lost),
            Observation::ResetRequired => self.fail(now, Failure::ResetRequired),
            Observation::Missing => self.fail(now, Failure::Missing),
            Observation::Xid(number) => match xid(*number).effect {
                XidEffect::Process if *number == CONTAINED_ECC && self.is_usable() => {
                    self.contained = true;
                    Change::Suspect(*number)
                }
                XidEffect::Note => Change::None,
                XidEffect::Process if self.is_usable() => Change::Suspect(*number),
                XidEffect::Process => Change::None,
                XidEffect::Memory | XidEffect::Reset | XidEffect::Lost => self.fail(now, Failure::Xid(*number)),
            },
        }
    }

    fn on_sample(&mut self, now: Timestamp, sample: &DeviceSample) -> Change {
        self.late = 0;
        let before = self.ecc;
        self.ecc = sample.ecc_uncorrected.or(before);
        if let (Some(before), Some(errors)) = (before, sample.ecc_uncorrected)
            && errors > before
            && !std::mem::take(&mut self.contained)
        {
            return self.fail(now, Failure::EccUncorrected);
        }
        let well = if sample.reset_pending { Condition::ResetPending } else { Condition::Healthy };
        match self.condition {
            Condition::Failed { until, .. } if now < until => Change::None,
            Condition::Failed { .. } => {
                self.condition = well;
                self.history.on_started();
                self.history.on_healthy(now);
                Change::Up
            }
            _ => {
                self.condition = well;
                Change::None
            }
        }
    }

    /// Takes it out. One that is out already only has its reason replaced by a worse one: it has not come back in
    /// between.
    pub fn fail(&mut self, now: Timestamp, failure: Failure) -> Change {
        if let Condition::Failed { until, .. } = self.condition {
            self.condition = Condition::Failed { failure, until };
            return Change::None;
        }
        let Decision::Restart { after } = self.history.on_exit(now, 0) else { return Change::None };
        self.condition = Condition::Failed { failure, until: now.after(after) };
        Change::Down(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn sample() -> Observation {
        Observation::Sample(DeviceSample::default())
    }

    fn ecc(errors: u64) -> Observation {
        Observation::Sample(DeviceSample { ecc_uncorrected: Some(errors), ..DeviceSample::default() })
    }

    #[test]
    fn each_observation_ends_in_its_state() {
        let cases = [
            (Observation::Xid(13), Change::Suspect(13), true),
            (Observation::Xid(31), Change::Suspect(31), true),
            (Observation::Xid(48), Change::Down(Failure::Xid(48)), false),
            (Observation::Xid(63), Change::None, true),
            (Observation::Xid(64), Change::Down(Failure::Xid(64)), false),
            (Observation::Xid(74), Change::Down(Failure::Xid(74)), false),
            (Observation::Xid(79), Change::Down(Failure::Xid(79)), false),
            (Observation::Xid(94), Change::Suspect(94), true),
            (Observation::Xid(95), Change::Down(Failure::Xid(95)), false),
            (Observation::Lost, Change::Down(Failure::Lost), false),
            (Observation::ResetRequired, Change::Down(Failure::ResetRequired), false),
            (Observation::Missing, Change::Down(Failure::Missing), false),
            (Observation::Late, Change::None, true),
            (sample(), Change::None, true),
        ];
        for (seen, change, usable) in cases {
            let mut health = Health::new(policy(WAIT));
            assert_eq!((health.observe(at(1), &seen), health.is_usable()), (change, usable), "{seen:?}");
        }
    }

    #[test]
    fn it_comes_back_with_the_first_good_look_behind_its_wait() {
        let mut health = Health::new(policy(WAIT));
        health.observe(at(1), &Observation::Xid(79));
        assert_eq!(health.observe(at(2), &Observation::Lost), Change::None, "it is out already");
        assert_eq!(health.observe(at(5), &sample()), Change::None, "too early");
        assert_eq!(health.observe(at(20), &Observation::Lost), Change::None, "not while it is lost");
        assert_eq!(health.observe(at(21), &sample()), Change::Up);
        health.observe(at(30), &Observation::Xid(79));
        assert_eq!(health.observe(at(45), &sample()), Change::None, "twice the wait");
        assert_eq!(health.observe(at(50), &sample()), Change::Up);
    }

    #[test]
    fn the_fourth_failure_of_an_hour_opens_the_breaker() {
        let mut health = Health::new(policy(WAIT));
        let mut now = 0;
        for wait in [10, 20, 40, 600] {
            assert!(matches!(health.observe(at(now), &Observation::Lost), Change::Down(_)));
            assert_eq!(health.observe(at(now + wait - 1), &sample()), Change::None, "not before {wait} s");
            assert_eq!(health.observe(at(now + wait), &sample()), Change::Up);
            now += wait + 1;
        }
    }

    #[test]
    fn only_new_memory_errors_count_and_a_reset_begins_anew() {
        let mut health = Health::new(policy(WAIT));
        assert_eq!(health.observe(at(1), &ecc(3)), Change::None, "from before");
        assert_eq!(health.observe(at(2), &ecc(3)), Change::None);
        assert_eq!(health.observe(at(3), &ecc(4)), Change::Down(Failure::EccUncorrected));
        assert_eq!(health.observe(at(13), &ecc(0)), Change::Up, "reset");
        assert_eq!(health.observe(at(14), &ecc(1)), Change::Down(Failure::EccUncorrected));
    }

    #[test]
    fn errors_that_the_driver_calls_contained_take_no_device_out() {
        let mut health = Health::new(policy(WAIT));
        health.observe(at(1), &ecc(0));
        assert_eq!(health.observe(at(2), &Observation::Xid(94)), Change::Suspect(94));
        assert_eq!(health.observe(at(3), &ecc(1)), Change::None, "that one");
        assert_eq!(health.observe(at(4), &ecc(2)), Change::Down(Failure::EccUncorrected), "and no other");
    }

    #[test]
    fn slow_answers_are_told_apart_from_none() {
        let mut health = Health::new(policy(WAIT));
        assert_eq!(health.observe(at(1), &Observation::Late), Change::None);
        assert_eq!(health.condition(), Condition::Late);
        health.observe(at(2), &sample());
        assert_eq!(health.condition(), Condition::Healthy);
        for second in 3..5 {
            assert_eq!(health.observe(at(second), &Observation::Late), Change::None);
        }
        assert_eq!(health.observe(at(5), &Observation::Late), Change::Down(Failure::Unresponsive));
    }

    #[test]
    fn a_reset_that_waits_is_said_and_ends_nothing() {
        let mut health = Health::new(policy(WAIT));
        let pending = DeviceSample { reset_pending: true, ..DeviceSample::default() };
        assert_eq!(health.observe(at(1), &Observation::Sample(pending)), Change::None);
        assert_eq!((health.condition(), health.is_usable()), (Condition::ResetPending, true));
        health.observe(at(2), &sample());
        assert_eq!(health.condition(), Condition::Healthy);
    }
}
