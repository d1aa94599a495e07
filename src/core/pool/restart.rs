//! When a failed child is started again (Erlang/OTP's rule, with backoff and a breaker in front of escalation).
//!
//! More than `intensity` restarts within `period` is too much. What then happens is the policy's choice: the supervisor
//! gives up and fails in turn (escalation), or the child's breaker opens and one probe is let through when it is over.
//! The caller brings the time and one random number; nothing here waits.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::check;
use crate::core::units::Timestamp;

/// How long to wait before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Wait before the first restart; doubled with each one that follows. Zero restarts at once, always.
    pub base: Duration,
    /// Longest wait, before jitter.
    pub max: Duration,
    /// Largest random addition, in percent of the wait: children that died together do not come back together.
    pub jitter_percent: u32,
}

impl Backoff {
    /// Restart at once.
    pub const NONE: Backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO, jitter_percent: 0 };

    /// The wait before restart number `failures` in a row (from 0), where `roll` is any random number.
    pub fn delay(&self, failures: u32, roll: u64) -> Duration {
        let doubled = self.base.saturating_mul(1u32.checked_shl(failures.min(30)).unwrap_or(u32::MAX));
        let wait = doubled.min(self.max);
        let jitter_max = wait.as_micros() as u64 * u64::from(self.jitter_percent) / 100;
        wait + Duration::from_micros(roll % (jitter_max + 1))
    }
}

/// What to do about a child that fails more often than its intensity allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// The supervisor fails as well, and its own supervisor decides.
    Escalate,
    /// The child stays down for this long; then one probe decides.
    OpenBreaker(Duration),
}

/// The restart rule of one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Most restarts within `period`.
    pub intensity: u32,
    /// The sliding window. A child that was healthy this long starts with a clean record.
    pub period: Duration,
    /// The wait before each restart.
    pub backoff: Backoff,
    /// What to do beyond the intensity.
    pub excess: Excess,
}

/// State of a child's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Restarts are made as they come.
    Closed,
    /// The child stays down.
    Open,
    /// One probe runs; its failure opens the breaker again, `period` of life closes it.
    HalfOpen,
}

/// What a supervisor is to do about a dead child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this wait.
    Restart {
        /// The wait; zero is at once.
        after: Duration,
    },
    /// Fail.
    Escalate,
}

/// A child's record.
#[derive(Clone, Debug)]
pub struct RestartHistory {
    policy: RestartPolicy,
    /// Moments of the restarts within the last `period`. Invariant: at most `intensity` long.
    recent: VecDeque<Timestamp>,
    failures_in_a_row: u32,
    /// Since when the newest life has been good for something; `None` while it only tries.
    healthy_since: Option<Timestamp>,
    breaker: Breaker,
}

impl RestartHistory {
    /// A clean record.
    pub fn new(policy: RestartPolicy) -> Self {
        let (recent, breaker) = (VecDeque::new(), Breaker::Closed);
        RestartHistory { policy, recent, failures_in_a_row: 0, healthy_since: None, breaker }
    }

    /// The rule.
    pub fn policy(&self) -> &RestartPolicy {
        &self.policy
    }

    /// State of the breaker.
    pub fn breaker(&self) -> Breaker {
        self.breaker
    }

    /// Notes that the child has been started. It is good for nothing yet.
    pub fn on_started(&mut self) {
        self.healthy_since = None;
        if self.breaker == Breaker::Open {
            self.breaker = Breaker::HalfOpen;
        }
    }

    /// Notes that the child has been good for something since this moment: an hour of trying to load a model is no
    /// life.
    pub fn on_healthy(&mut self, since: Timestamp) {
        self.healthy_since = Some(since);
    }

    /// Decides about a child that died now. `roll` is any random number.
    pub fn on_exit(&mut self, now: Timestamp, roll: u64) -> Decision {
        let decision = self.decide(now, roll);
        check(self.recent.len(), || self.invariants());
        decision
    }

    /// Checks what must always hold. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        assert!(self.recent.len() <= self.policy.intensity as usize, "no more restarts than the intensity allows");
        assert!(self.recent.iter().is_sorted(), "restarts are kept in order");
        let has_breaker = matches!(self.policy.excess, Excess::OpenBreaker(_));
        assert!(has_breaker || self.breaker == Breaker::Closed, "who escalates has no breaker");
        assert!(self.breaker != Breaker::Open || self.healthy_since.is_none(), "who is down is good for nothing");
    }

    fn decide(&mut self, now: Timestamp, roll: u64) -> Decision {
        if self.healthy_since.take().is_some_and(|since| now.since(since) >= self.policy.period) {
            self.failures_in_a_row = 0;
            self.breaker = Breaker::Closed;
        }
        while self.recent.front().is_some_and(|restart| now.since(*restart) > self.policy.period) {
            self.recent.pop_front();
        }
        let too_many = self.recent.len() >= self.policy.intensity as usize;
        let failures = self.failures_in_a_row;
        self.failures_in_a_row = failures.saturating_add(1);
        match self.policy.excess {
            Excess::Escalate if too_many => Decision::Escalate,
            Excess::OpenBreaker(open) if too_many || self.breaker == Breaker::HalfOpen => {
                self.breaker = Breaker::Open;
                self.recent.clear();
                let pause = Backoff { base: open, max: open, ..self.policy.backoff };
                Decision::Restart { after: pause.delay(0, roll) }
            }
            Excess::Escalate | Excess::OpenBreaker(_) => {
                self.recent.push_back(now);
                Decision::Restart { after: self.policy.backoff.delay(failures, roll) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(excess: Excess) -> RestartPolicy {
        let backoff = Backoff { base: SECOND, max: 8 * SECOND, jitter_percent: 0 };
        RestartPolicy { intensity: 3, period: 10 * SECOND, backoff, excess }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// A child that started, and was healthy at once, at 0.
    fn alive(excess: Excess) -> RestartHistory {
        let mut history = RestartHistory::new(policy(excess));
        start(&mut history, 0);
        history
    }

    fn start(history: &mut RestartHistory, now: u64) {
        history.on_started();
        history.on_healthy(at(now));
    }

    fn restart(seconds: u32) -> Decision {
        Decision::Restart { after: seconds * SECOND }
    }

    #[test]
    fn escalates_on_exactly_the_first_restart_beyond_the_intensity() {
        let mut history = alive(Excess::Escalate);
        for (now, want) in [(1, restart(1)), (2, restart(2)), (3, restart(4)), (4, Decision::Escalate)] {
            assert_eq!(history.on_exit(at(now), 0), want, "at {now}");
            start(&mut history, now);
        }
    }

    #[test]
    fn a_restart_exactly_one_period_old_still_counts_and_an_older_one_does_not() {
        for (last, want_escalation) in [(11, true), (12, false)] {
            let mut history = alive(Excess::Escalate);
            for now in [1, 9, 10] {
                history.on_exit(at(now), 0);
                start(&mut history, now);
            }
            assert_eq!(history.on_exit(at(last), 0) == Decision::Escalate, want_escalation, "at {last}");
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_maximum_and_jitter_stays_in_its_share() {
        let backoff = Backoff { base: SECOND, max: 8 * SECOND, jitter_percent: 25 };
        for (failures, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (31, 8), (u32::MAX, 8)] {
            assert_eq!(backoff.delay(failures, 0), seconds * SECOND);
            for roll in [1, 999_999, u64::MAX] {
                assert!(backoff.delay(failures, roll) <= seconds * SECOND * 5 / 4);
            }
        }
        assert_eq!(backoff.delay(0, 250_000), SECOND * 5 / 4, "a quarter at most, and that too");
        assert_eq!(backoff.delay(0, 250_001), SECOND);
        assert_eq!(Backoff::NONE.delay(5, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_child_that_lived_a_period_starts_with_a_clean_record() {
        let mut history = alive(Excess::Escalate);
        history.on_exit(at(1), 0);
        start(&mut history, 2);
        assert_eq!(history.on_exit(at(12), 0), restart(1));
    }

    #[test]
    fn the_breaker_opens_probes_once_and_closes_after_a_period_of_life() {
        let mut history = alive(Excess::OpenBreaker(60 * SECOND));
        for now in 1..=3 {
            history.on_exit(at(now), 0);
            start(&mut history, now);
        }
        assert_eq!((history.on_exit(at(4), 0), history.breaker()), (restart(60), Breaker::Open));
        start(&mut history, 64);
        assert_eq!(history.breaker(), Breaker::HalfOpen);
        assert_eq!((history.on_exit(at(65), 0), history.breaker()), (restart(60), Breaker::Open), "the probe failed");
        start(&mut history, 125);
        history.on_exit(at(135), 0);
        assert_eq!(history.breaker(), Breaker::Closed, "the probe lived");
    }

    #[test]
    fn an_hour_of_trying_is_no_life() {
        let mut history = RestartHistory::new(policy(Excess::OpenBreaker(60 * SECOND)));
        for (attempt, want) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
            history.on_started();
            assert_eq!(history.on_exit(at(attempt * 3_600), 0), restart(want), "attempt {attempt}");
        }
    }
}
