//! When a queued task will start, and when a refused one should come back (ORCH-2007, ORCH-3029).

use std::time::Duration;

use crate::core::task::Priority;

/// What the pool has lately delivered. Owned by the pool manager, carried to the queue with each offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRate {
    /// Slots of the replicas that are Ready now.
    pub slots_ready: u32,
    /// Slots of all its replicas, by the configuration.
    pub slots: u32,
    /// Mean time a slot was held by one task, or the configured guess while nothing has been measured.
    pub hold_mean: Duration,
    /// Whether it has been measured.
    pub measured: bool,
}

impl ServiceRate {
    /// The expected time until `ahead` tasks have been started and one slot is free again, for a choice between pools.
    ///
    /// With `s` slots in steady use one becomes free each `hold_mean / s`; the first of them frees the way for the
    /// task at position 0. With no Ready slot the pool counts as one slot, never as an excuse of zero: it has to load
    /// first.
    pub fn wait(&self, ahead: u64) -> Duration {
        self.wait_in(ahead, self.slots_ready)
    }

    /// The same for whoever is told of it: with no Ready slot the pool counts with those that it is to have.
    pub fn predicted(&self, ahead: u64) -> Duration {
        self.wait_in(ahead, if self.slots_ready > 0 { self.slots_ready } else { self.slots })
    }

    /// When one who is refused should come back. While nothing has been measured that is at most the guess of one run:
    /// what is guessed to take minutes may be over in a moment, and who stays away leaves the pool idle.
    pub fn advice(&self, ahead: u64) -> Duration {
        let wait = self.predicted(ahead);
        if self.measured { wait } else { wait.min(self.hold_mean) }
    }

    fn wait_in(&self, ahead: u64, slots: u32) -> Duration {
        let hold = u64::try_from(self.hold_mean.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(hold.saturating_mul(ahead + 1) / u64::from(slots.max(1)))
    }
}

/// Who waits in a queue, in numbers: what a prediction needs, as of the moment it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Tasks of each class.
    pub count: [u32; 2],
    /// Sum of the weights of the clients with a task, of each class.
    pub weights: [u64; 2],
    /// Weights of the classes.
    pub class_weights: [u32; 2],
}

impl Backlog {
    /// Expected dispatches before a task with `before` of its client's `own` waiting tasks in front of it; for a task
    /// that is still to come, `before` and `own` are equal.
    ///
    /// It takes every task to cost the same: its own lane, the share of the others meanwhile (half a round of them for
    /// the last of its own), and what the other class gets by its weight.
    pub fn ahead(&self, before: u32, own: u32, weight: u32, class: Priority) -> u64 {
        let (index, other) = (class.index(), 1 - class.index());
        let (before, weight) = (u64::from(before), u64::from(weight.max(1)));
        let others = u64::from(self.count[index].saturating_sub(own));
        let their_weights = self.weights[index].saturating_sub(if own > 0 { weight } else { 0 });
        let in_class = before + others.min((2 * before + 1) * their_weights / (2 * weight));
        let overtakes =
            (in_class + 1) * u64::from(self.class_weights[other]) / u64::from(self.class_weights[index].max(1));
        in_class + overtakes.min(u64::from(self.count[other]))
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

    /// Whether there has been a sample.
    pub fn is_measured(&self) -> bool {
        self.measured
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
        let rate = ServiceRate { slots_ready: 4, slots: 8, hold_mean: Duration::from_millis(400), measured: true };
        assert_eq!(rate.wait(0), Duration::from_millis(100));
        assert_eq!(rate.wait(7), Duration::from_millis(800));
        let unready = ServiceRate { slots_ready: 0, ..rate };
        assert_eq!((unready.wait(0), unready.predicted(7)), (Duration::from_millis(400), Duration::from_millis(400)));
        let guess = ServiceRate { slots_ready: 0, slots: 64, hold_mean: Duration::from_secs(2), measured: false };
        assert_eq!(guess.predicted(231), Duration::from_millis(7_250), "the slots that it is to have");
        assert_eq!(guess.advice(231), Duration::from_secs(2), "a guess is no reason to stay away for minutes");
        assert_eq!(rate.advice(231), rate.wait(231));
    }

    #[test]
    fn the_position_counts_the_others_share_and_no_more_than_there_are() {
        let backlog = Backlog { count: [100, 0], weights: [4, 0], class_weights: [9, 1] };
        // Ten of its own before it, three others of the same weight: three for each of its own, and half a round.
        assert_eq!(backlog.ahead(10, 10, 1, Priority::Interactive), 10 + 31);
        assert_eq!(backlog.ahead(90, 90, 1, Priority::Interactive), 100, "no more than there are");
        let newcomer = Backlog { count: [30, 0], weights: [3, 0], class_weights: [9, 1] };
        assert_eq!(newcomer.ahead(0, 0, 1, Priority::Interactive), 1, "half a round of three");
        assert_eq!(newcomer.ahead(0, 0, 1, Priority::Batch), 9, "nine interactive for one of batch");
        // A client with a task is one of those whose weights are summed: it does not wait for itself.
        let alone = Backlog { count: [30, 0], weights: [5, 0], class_weights: [9, 1] };
        assert_eq!(alone.ahead(30, 30, 5, Priority::Interactive), 30);
        let heavy = Backlog { count: [100, 0], weights: [6, 0], class_weights: [9, 1] };
        assert_eq!(heavy.ahead(10, 10, 4, Priority::Interactive), 10 + 21 * 2 / 8, "weight four beside weight two");
    }

    #[test]
    fn the_first_sample_replaces_the_guess_and_later_ones_move_it() {
        let mut mean = Mean::starting_at(Duration::from_secs(9));
        assert_eq!((mean.is_measured(), mean.get()), (false, Duration::from_secs(9)));
        mean.record(Duration::from_millis(80));
        assert_eq!((mean.is_measured(), mean.get()), (true, Duration::from_millis(80)));
        for _ in 0..200 {
            mean.record(Duration::from_millis(160));
        }
        let settled = mean.get().as_micros();
        assert!((159_000..=160_000).contains(&settled), "{settled}");
    }
}
