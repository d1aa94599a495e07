//! When a queued task will start, and when a refused one should come back (ORCH-2007, ORCH-3029).

use std::time::Duration;

/// What the pool has lately delivered. Owned by the pool manager, carried to the queue with each offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRate {
    /// Slots of the replicas that are Ready now.
    pub slots_ready: u32,
    /// Mean time a slot was held by one task, or the configured guess while nothing has been measured.
    pub hold_mean: Duration,
}

impl ServiceRate {
    /// The expected time until `ahead` tasks have been started and one slot is free again.
    ///
    /// With `s` slots in steady use one becomes free each `hold_mean / s`; the first of them frees the way for the
    /// task at position 0. With no Ready slot the pool counts as one slot: a lower bound, never an excuse of zero.
    pub fn wait(&self, ahead: u64) -> Duration {
        let slots = u64::from(self.slots_ready.max(1));
        let hold = u64::try_from(self.hold_mean.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(hold.saturating_mul(ahead + 1) / slots)
    }
}

/// Exponentially weighted mean of durations, in integers: the same samples give the same mean on every machine.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    /// Microseconds times [`Mean::SCALE`], so that small samples do not vanish in rounding.
    scaled: u64,
    measured: bool,
}

impl Mean {
    const SCALE: u64 = 256;
    /// Weight of a new sample: one eighth, as in TCP's round-trip estimate (RFC 6298).
    const SHIFT: u32 = 3;

    /// A mean that answers `guess` until the first sample.
    pub fn starting_at(guess: Duration) -> Self {
        Mean { scaled: Self::scale(guess), measured: false }
    }

    fn scale(duration: Duration) -> u64 {
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).saturating_mul(Self::SCALE)
    }

    /// Takes one sample in. The first replaces the guess.
    pub fn record(&mut self, sample: Duration) {
        let sample = Self::scale(sample);
        if !self.measured {
            *self = Mean { scaled: sample, measured: true };
            return;
        }
        self.scaled = self.scaled - (self.scaled >> Self::SHIFT) + (sample >> Self::SHIFT);
    }

    /// The mean now.
    pub fn get(&self) -> Duration {
        Duration::from_micros(self.scaled / Self::SCALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_position_and_slots() {
        let rate = ServiceRate { slots_ready: 4, hold_mean: Duration::from_millis(400) };
        assert_eq!(rate.wait(0), Duration::from_millis(100));
        assert_eq!(rate.wait(7), Duration::from_millis(800));
        assert_eq!(ServiceRate { slots_ready: 0, ..rate }.wait(0), Duration::from_millis(400));
    }

    #[test]
    fn the_first_sample_replaces_the_guess_and_later_ones_move_it() {
        let mut mean = Mean::starting_at(Duration::from_secs(9));
        mean.record(Duration::from_millis(80));
        assert_eq!(mean.get(), Duration::from_millis(80));
        for _ in 0..200 {
            mean.record(Duration::from_millis(160));
        }
        let settled = mean.get().as_micros();
        assert!((159_000..=160_000).contains(&settled), "{settled}");
    }
}
