//! The restart rule against a naive model that keeps everything and counts anew each time, on random timelines.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use orchestrator_core::core::Timestamp;
use orchestrator_core::core::pool::restart::{Backoff, Breaker, Decision, Excess, RestartHistory, RestartPolicy};

const TIMELINES: u64 = 1_000;
const DEATHS: usize = 200;

/// One death, as the model remembers it.
#[derive(Clone, Copy)]
struct Death {
    at: u64,
    /// The life before it was good for something for at least a period.
    was_long: bool,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Restart,
    Escalate,
    Open,
}

/// Everything that ever happened, and the rule as it is written down.
struct Model {
    policy: RestartPolicy,
    deaths: Vec<Death>,
}

impl Model {
    fn period(&self) -> u64 {
        self.policy.period.as_micros() as u64
    }

    /// Deaths since the last long life, this one's included or not.
    fn in_a_row(&self) -> u32 {
        self.deaths.iter().rev().take_while(|death| !death.was_long).count() as u32
            + u32::from(self.deaths.iter().any(|death| death.was_long))
    }

    fn die(&mut self, at: u64, healthy_for: Option<u64>) -> (Answer, u32) {
        let was_long = healthy_for.is_some_and(|life| life >= self.period());
        // The breaker is half open when it was opened and no life has been long since.
        let after_open = self.deaths.iter().rposition(|death| death.answer == Answer::Open);
        let long_since = after_open.is_some_and(|open| self.deaths[open + 1..].iter().any(|death| death.was_long));
        let probing = after_open.is_some() && !long_since && !was_long;
        // More than `intensity` restarts within `period`: those that the breaker's opening has not wiped out.
        let counted = &self.deaths[after_open.map_or(0, |open| open + 1)..];
        let within = |death: &&Death| death.answer == Answer::Restart && at - death.at <= self.period();
        let too_many = counted.iter().filter(within).count() >= self.policy.intensity as usize;
        let failures = if was_long { 0 } else { self.in_a_row() };
        let answer = match self.policy.excess {
            Excess::Escalate if too_many => Answer::Escalate,
            Excess::OpenBreaker(_) if too_many || probing => Answer::Open,
            _ => Answer::Restart,
        };
        self.deaths.push(Death { at, was_long, answer });
        (answer, failures)
    }
}

fn millis(dice: &mut fastrand::Rng, below: u64) -> Duration {
    Duration::from_millis(dice.u64(1..below))
}

#[test]
fn a_thousand_random_timelines_follow_the_naive_rule() {
    let (mut restarts, mut escalations, mut openings, mut closings) = (0, 0, 0, 0);
    for seed in 0..TIMELINES {
        let mut dice = fastrand::Rng::with_seed(seed);
        let period = millis(&mut dice, 10_000);
        let base = millis(&mut dice, 500);
        let backoff = Backoff { base, max: base * dice.u32(1..40), jitter_percent: 0 };
        let excess = if dice.bool() { Excess::Escalate } else { Excess::OpenBreaker(millis(&mut dice, 30_000)) };
        let policy = RestartPolicy { intensity: dice.u32(1..8), period, backoff, excess };
        let (mut history, mut model) = (RestartHistory::new(policy), Model { policy, deaths: Vec::new() });
        let mut now = 0;
        history.on_started();
        for death in 0..DEATHS {
            // Lives end within the period, exactly at its end, or beyond it; some are never good for anything.
            let period = period.as_micros() as u64;
            let life = [dice.u64(0..period), period / 8, period - 1, period, period + 1, 3 * period][dice.usize(..6)];
            let healthy_from = (dice.u32(..4) > 0).then(|| now + if dice.bool() { 0 } else { life / 2 });
            if let Some(since) = healthy_from {
                history.on_healthy(Timestamp::from_micros(since));
            }
            now += life;
            let (want, failures) = model.die(now, healthy_from.map(|since| now - since));
            let before = history.breaker();
            let got = history.on_exit(Timestamp::from_micros(now), 0);
            let case = format!("seed {seed}, death {death} at {now}");
            match (want, got, policy.excess) {
                (Answer::Escalate, Decision::Escalate, _) => escalations += 1,
                (Answer::Open, Decision::Restart { after }, Excess::OpenBreaker(open)) => {
                    assert_eq!((after, history.breaker()), (open, Breaker::Open), "{case}");
                    openings += 1;
                }
                (Answer::Restart, Decision::Restart { after }, _) => {
                    assert_eq!(after, backoff.delay(failures, 0), "{case}: {failures} in a row");
                    assert_eq!(history.breaker(), Breaker::Closed, "{case}: a half-open breaker takes no second death");
                    closings += u32::from(before == Breaker::HalfOpen);
                    restarts += 1;
                }
                (want, got, _) => panic!("{case}: {got:?} instead of {want:?}"),
            }
            if let Decision::Restart { after } = got {
                now += after.as_micros() as u64;
            }
            history.on_started();
        }
    }
    println!("{restarts} restarts, {escalations} escalations, {openings} openings of breakers, {closings} closings");
    assert!([restarts, escalations, openings, closings].iter().all(|count| *count > 1_000));
}
