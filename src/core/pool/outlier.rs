//! When a replica gets no tasks although its engine answers: its attempts fail one after another, or it says that it is
//! busy.
//!
//! The model is Envoy's outlier detection with slow start. A failed attempt takes the replica out for a wait that
//! doubles with each failure in a row, so whoever fails fastest is not free most often. Behind the wait it gets one
//! task, then more with each sign that it works. An engine that says itself how long it wants to be left alone is left
//! alone for that long, and keeps what it runs. The caller brings the time; nothing here waits.

use std::time::Duration;

use crate::core::id::TaskSeq;
use crate::core::pool::restart::Backoff;
use crate::core::units::Timestamp;

/// The waits of a replica whose attempts fail or are turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Wait behind the first failure; doubled with each that follows without a success in between.
    pub wait: Duration,
    /// Longest wait.
    pub wait_max: Duration,
}

/// What a failed attempt says about the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The replica gets no task before this moment.
    pub until: Timestamp,
    /// The failure is the replica's, as far as can be known: another task failed on it just before, and nothing has
    /// succeeded since.
    pub is_the_replicas: bool,
}

/// One replica's record. Invariant: `failures` is 0 exactly when `first` is `None`.
#[derive(Clone, Debug)]
pub struct Outlier {
    policy: OutlierPolicy,
    /// Attempts that failed one after another, those of one moment counted once.
    failures: u32,
    /// The task whose attempt was the first of them.
    first: Option<TaskSeq>,
    /// Requests that the engine turned away one after another without saying for how long.
    turned_away: u32,
    /// When the last of either happened.
    last: Timestamp,
    /// It gets no task before this moment.
    until: Timestamp,
    /// Tasks that it may run at once; `None` is no bound.
    allowed: Option<u32>,
}

impl Outlier {
    /// A clean record.
    pub fn new(policy: OutlierPolicy) -> Self {
        let zero = Timestamp::from_micros(0);
        Outlier { policy, failures: 0, first: None, turned_away: 0, last: zero, until: zero, allowed: None }
    }

    /// Whether there is anything to its discredit: without it no success needs to be told.
    pub fn is_clean(&self) -> bool {
        self.failures == 0 && self.turned_away == 0 && self.allowed.is_none()
    }

    /// Tasks that it may run at once, of so many slots, as of now.
    pub fn allowance(&self, now: Timestamp, slots: u32) -> u32 {
        if now < self.until { 0 } else { self.allowed.map_or(slots, |allowed| allowed.min(slots)) }
    }

    /// The moment before which it gets no task, if that is still to come.
    pub fn out_until(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.until).filter(|until| now < *until)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The attempt of `task`, which was begun at `begun`, has failed now. What runs beside it, so many, goes on.
    pub fn on_failure(&mut self, now: Timestamp, begun: Timestamp, task: TaskSeq, beside: u32) -> Verdict {
        let allowed = beside.saturating_add(1);
        // An engine that fails takes all its runs along: what was begun before the last failure says nothing more.
        if self.failures > 0 && begun <= self.last {
            self.allowed = Some(self.allowed.map_or(allowed, |before| before.min(allowed)));
            return Verdict { until: self.until, is_the_replicas: false };
        }
        let is_the_replicas = self.first.is_some_and(|first| first != task);
        let wait = self.backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.first.get_or_insert(task);
        self.eject(now, wait, allowed);
        Verdict { until: self.until, is_the_replicas }
    }

    /// The attempt of `task` has panicked now. The first in a row says nothing of the others, which run in the same
    /// process and go on: it is noted, and costs no wait. One that follows it is a failure as any.
    pub fn on_panic(&mut self, now: Timestamp, begun: Timestamp, task: TaskSeq, beside: u32) -> Verdict {
        if self.failures > 0 {
            return self.on_failure(now, begun, task, beside);
        }
        (self.failures, self.first, self.last) = (1, Some(task), now);
        self.invariants();
        Verdict { until: now, is_the_replicas: false }
    }

    /// The engine has turned a request away, and asks to be left alone for so long, if it says so. `beside` tasks run
    /// on it.
    pub fn on_busy(&mut self, now: Timestamp, asked: Option<Duration>, beside: u32) -> Timestamp {
        let wait = match asked {
            // One that asks for no wait at all is not asked again at once.
            Some(asked) => asked.max(self.policy.wait / 5),
            None => self.backoff(self.turned_away),
        };
        if now >= self.until {
            self.turned_away = self.turned_away.saturating_add(1); // Those of one moment are one.
        }
        self.eject(now, wait, beside.max(1));
        self.until
    }

    /// A run on it has given its first token.
    pub fn on_progress(&mut self, slots: u32) {
        self.allowed = self.allowed.map(|allowed| allowed.saturating_add(1)).filter(|allowed| *allowed < slots);
    }

    /// A run on it has come to a good end.
    pub fn on_success(&mut self, slots: u32) {
        (self.failures, self.first, self.turned_away) = (0, None, 0);
        self.on_progress(slots);
    }

    fn backoff(&self, number: u32) -> Duration {
        Backoff { base: self.policy.wait, max: self.policy.wait_max, jitter_percent: 0 }.delay(number, 0)
    }

    fn eject(&mut self, now: Timestamp, wait: Duration, allowed: u32) {
        self.until = self.until.max(now.after(wait));
        self.allowed = Some(self.allowed.map_or(allowed, |before| before.min(allowed)));
        self.last = now;
        self.invariants();
    }

    /// What always holds.
    ///
    /// # Panics
    /// When it does not, which is a bug.
    pub fn invariants(&self) {
        debug_assert_eq!(self.failures == 0, self.first.is_none(), "{self:?}");
        debug_assert!(self.allowed != Some(0), "one task may always try: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: OutlierPolicy =
        OutlierPolicy { wait: Duration::from_millis(250), wait_max: Duration::from_millis(2_000) };

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn wait(verdict: Verdict, now: u64) -> u64 {
        verdict.until.since(at(now)).as_millis() as u64
    }

    #[test]
    fn waits_double_with_each_failure_in_a_row_and_begin_anew_behind_a_success() {
        let mut outlier = Outlier::new(POLICY);
        let mut now = 1_000;
        for want in [250, 500, 1_000, 2_000, 2_000] {
            assert_eq!(wait(outlier.on_failure(at(now), at(now - 1), TaskSeq(now), 0), now), want);
            assert_eq!(outlier.allowance(at(now + want - 1), 4), 0);
            assert_eq!(outlier.allowance(at(now + want), 4), 1, "one tries");
            now += want + 1;
        }
        outlier.on_success(4);
        assert_eq!(wait(outlier.on_failure(at(now), at(now - 1), TaskSeq(0), 0), now), 250);
    }

    #[test]
    fn it_comes_back_by_steps() {
        let mut outlier = Outlier::new(POLICY);
        outlier.on_failure(at(10), at(9), TaskSeq(1), 0);
        for want in [1, 2, 3] {
            assert_eq!(outlier.allowance(at(1_000), 4), want);
            outlier.on_progress(4);
        }
        assert_eq!(outlier.allowance(at(1_000), 4), 4);
        assert!(!outlier.is_clean(), "tokens alone do not clear it");
        outlier.on_success(4);
        assert!(outlier.is_clean());
    }

    #[test]
    fn what_runs_well_beside_a_failure_goes_on_and_one_may_join_it() {
        let mut outlier = Outlier::new(POLICY);
        outlier.on_failure(at(10), at(9), TaskSeq(1), 3);
        assert_eq!(outlier.allowance(at(1_000), 8), 4);
        outlier.on_failure(at(11), at(8), TaskSeq(2), 2);
        assert_eq!(outlier.allowance(at(1_000), 8), 3, "one fewer runs");
    }

    #[test]
    fn whose_failure_it_was_is_told_by_who_failed_before() {
        let mut outlier = Outlier::new(POLICY);
        let of_replica = |outlier: &mut Outlier, now, begun, task| {
            outlier.on_failure(at(now), at(begun), TaskSeq(task), 0).is_the_replicas
        };
        assert!(!of_replica(&mut outlier, 10, 5, 1), "the first may be the task's own");
        assert!(!of_replica(&mut outlier, 11, 6, 2), "it ran beside the first: one failure took both");
        assert!(!of_replica(&mut outlier, 400, 300, 1), "the same task again");
        assert!(of_replica(&mut outlier, 2_000, 1_500, 3), "another one, behind it");
        outlier.on_success(1);
        assert!(!of_replica(&mut outlier, 9_000, 8_000, 4));
    }

    #[test]
    fn who_is_busy_is_left_alone_as_long_as_it_asks_and_keeps_what_it_runs() {
        let mut outlier = Outlier::new(POLICY);
        assert_eq!(outlier.on_busy(at(0), Some(Duration::from_secs(9)), 3), at(9_000));
        assert_eq!((outlier.allowance(at(8_999), 8), outlier.allowance(at(9_000), 8)), (0, 3));
        assert_eq!(outlier.on_busy(at(1), Some(Duration::from_secs(1)), 3), at(9_000), "the longer wait holds");
        let mut silent = Outlier::new(POLICY);
        assert_eq!(silent.on_busy(at(0), None, 0), at(250));
        assert_eq!(silent.on_busy(at(1), None, 0), at(501), "of one moment, counted once");
        assert_eq!(silent.on_busy(at(501), None, 0), at(1_001));
        assert_eq!(silent.failures(), 0, "it has failed nothing");
    }
}
