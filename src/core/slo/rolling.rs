//! Durations of the last minute, or the last ten: a histogram for each slice of time, of which the old ones fall out.
//!
//! A window of six slices shows what came in the newest, open one and in the five before it. Nothing here reads a
//! clock: whoever records or looks says what time it is. Empty slices cost nothing.

use std::collections::VecDeque;
use std::time::Duration;

use histogram::{Bucket, Config, Histogram32};

use crate::core::check;
use crate::core::units::Timestamp;

/// The buckets of every histogram of durations in microseconds: exact below 128, 64 for each power of two above. The
/// middle of a bucket is at most 0.8 % from each value in it.
pub const BUCKETS: Config = match Config::new(6, 37) {
    Ok(buckets) => buckets,
    Err(_) => panic!("64 buckets for each of 37 powers of two"),
};
/// Largest duration, in microseconds: a day. Longer ones count as a day.
pub const VALUE_US_MAX: u64 = 24 * 3_600 * 1_000_000;

/// The duration that stands for a bucket, in microseconds.
pub fn middle_us(bucket: &Bucket) -> f64 {
    (bucket.start() as f64 + bucket.end() as f64) / 2.0
}

/// Which slice of time a moment lies in.
pub fn slice_of(now: Timestamp, slice: Duration) -> u64 {
    now.as_micros() / (slice.as_micros() as u64).max(1)
}

/// Durations of a window.
#[derive(Clone, Debug)]
pub struct Rolling {
    slice: Duration,
    /// Slices of the window, the open one included.
    slices: u64,
    /// Oldest first: number, durations, their sum in microseconds. Invariant: numbers rise, and none is empty.
    ring: VecDeque<(u64, Histogram32, u64)>,
}

impl Rolling {
    /// A window of so many slices, at least one.
    pub fn new(slice: Duration, slices: u64) -> Self {
        Rolling { slice, slices: slices.max(1), ring: VecDeque::new() }
    }

    /// Notes a duration in microseconds.
    pub fn record(&mut self, now: Timestamp, micros: u64) {
        self.advance(now);
        let number = slice_of(now, self.slice);
        if self.ring.back().is_none_or(|(newest, _, _)| *newest != number) {
            self.ring.push_back((number, Histogram32::with_config(&BUCKETS), 0));
        }
        if let Some((_, histogram, sum)) = self.ring.back_mut() {
            let micros = micros.clamp(1, VALUE_US_MAX);
            let _ = histogram.increment(micros); // Within the buckets, which reach beyond a day.
            *sum = sum.saturating_add(micros);
        }
        check(self.ring.len(), || self.invariants());
    }

    /// Checks what must always hold. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        assert!(self.ring.iter().is_sorted_by(|(before, ..), (after, ..)| before < after), "slices are in order");
        assert!(self.ring.len() as u64 <= self.slices, "no more slices than the window has");
        assert!(self.ring.iter().all(|(_, _, sum)| *sum > 0), "no slice is empty");
    }

    /// Lets go of what has left the window.
    pub fn advance(&mut self, now: Timestamp) {
        let oldest = (slice_of(now, self.slice) + 1).saturating_sub(self.slices);
        while self.ring.front().is_some_and(|(number, _, _)| *number < oldest) {
            self.ring.pop_front();
        }
    }

    /// Whether nothing is in the window, as of the last call that said the time.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// All durations of the window together, and their sum in microseconds.
    pub fn merged(&self) -> Option<(Histogram32, u64)> {
        let mut slices = self.ring.iter();
        let (_, first, sum) = slices.next()?;
        let (mut whole, mut sum) = (first.clone(), *sum);
        for (_, histogram, more) in slices {
            let _ = whole.checked_add_assign(histogram); // Alike; it fails only at four billion in one bucket.
            sum = sum.saturating_add(*more);
        }
        Some((whole, sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn window() -> Rolling {
        Rolling::new(Duration::from_secs(10), 6)
    }

    #[test]
    fn what_is_older_than_the_window_falls_out_slice_by_slice() {
        let mut window = window();
        let at = |seconds: u64| Timestamp::from_micros(seconds * SECOND);
        for seconds in [0, 9, 10, 55] {
            window.record(at(seconds), 1_000);
        }
        let count = |window: &Rolling| window.merged().map_or(0, |(histogram, _)| histogram.as_slice().iter().sum());
        assert_eq!(count(&window), 4);
        window.advance(at(59));
        assert_eq!(count(&window), 4);
        window.advance(at(60));
        assert_eq!(count(&window), 2, "the slice from 0 to 10 s is out");
        window.advance(at(110));
        assert!(window.is_empty());
    }

    #[test]
    fn quantiles_of_a_window_are_those_of_its_values_within_one_percent() {
        let mut window = window();
        let mut values = Vec::new();
        for number in 0..10_000u64 {
            let value = 1 + (number * number) % 9_999_991;
            window.record(Timestamp::from_micros(number * 5_000), value);
            values.push(value);
        }
        values.sort_unstable();
        let (whole, sum) = window.merged().expect("not empty");
        assert_eq!(sum, values.iter().sum::<u64>());
        for part in [0.5, 0.95, 0.99] {
            let exact = values[(part * values.len() as f64).ceil() as usize - 1] as f64;
            let shown = middle_us(&whole.quantile_bucket(part).expect("from 0 to 1").expect("not empty"));
            assert!((shown - exact).abs() <= exact * 0.01, "{part}: {shown} for {exact}");
        }
    }
}
