//! How often somebody may do something: a bucket for each, by which it waits, is refused, or is let through.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::check;
use crate::core::units::Timestamp;

/// Askers whose buckets are remembered. Beyond them those that are full again are forgotten, and then all.
pub(crate) const ASKERS_MAX: usize = 16_384;
/// Longest wait that a request is given instead of a refusal.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// Token buckets by who asks, each filled by so much a second up to a bound.
#[derive(Debug)]
pub struct RateLimiter<K> {
    per_s: f64,
    burst: f64,
    /// What is left, and as of when; below zero it is owed.
    left: BTreeMap<K, (f64, Timestamp)>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// It goes on behind this wait, which may be none.
    Behind(Duration),
    /// There are too many before it: come back later.
    Refused(Duration),
}

impl<K: Ord + Clone> RateLimiter<K> {
    /// `per_s` for each of them in the long run, and `burst` at once.
    pub fn new(per_s: f64, burst: f64) -> Self {
        RateLimiter { per_s: per_s.max(f64::MIN_POSITIVE), burst, left: BTreeMap::new() }
    }

    /// Takes one, where nobody waits.
    ///
    /// # Errors
    /// How long until there is one; nothing was taken.
    pub fn take(&mut self, asker: &K, now: Timestamp) -> Result<(), Duration> {
        let per_s = self.per_s;
        let left = self.left_mut(asker, now);
        if *left < 1.0 {
            return Err(seconds((1.0 - *left) / per_s));
        }
        *left -= 1.0;
        Ok(())
    }

    /// The turn of a request that costs so much. What is refused costs nothing.
    pub fn turn(&mut self, asker: &K, cost: f64, now: Timestamp) -> Turn {
        let (burst, per_s) = (self.burst, self.per_s);
        let left = self.left_mut(asker, now);
        let wait = seconds((cost - *left).max(0.0) / per_s);
        if wait > WAIT_MAX && *left < burst {
            return Turn::Refused(wait);
        }
        *left -= cost;
        Turn::Behind(wait.min(WAIT_MAX))
    }

    /// Notes what a request has cost that nobody could know before. At most as much is owed as makes the next one wait
    /// for long.
    pub fn charge(&mut self, asker: &K, cost: f64, now: Timestamp) {
        let per_s = self.per_s;
        let left = self.left_mut(asker, now);
        *left = (*left - cost).max(-per_s * WAIT_MAX.as_secs_f64());
    }

    fn left_mut(&mut self, asker: &K, now: Timestamp) -> &mut f64 {
        check(self.left.len(), || self.invariants());
        let (burst, per_s) = (self.burst, self.per_s);
        let filled = |(left, since): (f64, Timestamp)| (left + now.since(since).as_secs_f64() * per_s).min(burst);
        if self.left.len() >= ASKERS_MAX && !self.left.contains_key(asker) {
            self.left.retain(|_, bucket| filled(*bucket) < burst);
            if self.left.len() >= ASKERS_MAX {
                self.left.clear();
            }
        }
        let bucket = self.left.entry(asker.clone()).or_insert((burst, now));
        *bucket = (filled(*bucket), now);
        &mut bucket.0
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        assert!(self.left.len() <= ASKERS_MAX, "askers are bounded");
        assert!(self.left.values().all(|(left, _)| *left <= self.burst), "no bucket has more than fits in");
    }

    /// Askers that are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }
}

/// A span that may be longer than there are numbers for.
fn seconds(span_s: f64) -> Duration {
    Duration::try_from_secs_f64(span_s).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::ClientId;

    fn client(number: u32) -> ClientId {
        ClientId::parse(&format!("c{number}")).expect("valid")
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    #[test]
    fn a_burst_passes_then_each_waits_and_what_would_wait_too_long_is_refused() {
        let mut rates = RateLimiter::new(10.0, 20.0);
        let turns: Vec<Turn> = (0..40).map(|_| rates.turn(&client(0), 1.0, at(0))).collect();
        assert!(turns[..20].iter().all(|turn| *turn == Turn::Behind(Duration::ZERO)));
        assert_eq!(turns[20], Turn::Behind(Duration::from_millis(100)));
        assert_eq!(turns[29], Turn::Behind(Duration::from_secs(1)));
        assert!(turns[30..].iter().all(|turn| matches!(turn, Turn::Refused(_))));
        assert_eq!(rates.turn(&client(1), 1.0, at(0)), Turn::Behind(Duration::ZERO), "another client");
        assert_eq!(rates.turn(&client(0), 1.0, at(1_100)), Turn::Behind(Duration::ZERO));
    }

    #[test]
    fn in_the_long_run_nobody_gets_more_than_its_pace() {
        let mut rates = RateLimiter::new(10.0, 20.0);
        let served = (0..10_000).filter(|ms| matches!(rates.turn(&client(0), 1.0, at(*ms)), Turn::Behind(_))).count();
        assert!((100..=130).contains(&served), "{served} in 10 s");
    }

    #[test]
    fn one_that_costs_more_than_all_there_can_be_is_served_when_nothing_is_owed() {
        let mut rates = RateLimiter::new(1.0, 2.0);
        assert_eq!(rates.turn(&client(0), 50.0, at(0)), Turn::Behind(WAIT_MAX));
        assert!(matches!(rates.turn(&client(0), 1.0, at(1_000)), Turn::Refused(_)));
    }

    #[test]
    fn what_is_charged_behind_is_bounded_and_clients_are_too() {
        let mut rates = RateLimiter::new(10.0, 20.0);
        (0..1_000).for_each(|_| rates.charge(&client(0), 1.0, at(0)));
        assert!(matches!(rates.turn(&client(0), 0.0, at(0)), Turn::Behind(wait) if wait == Duration::from_secs(1)));
        (0..40_000).for_each(|number| rates.charge(&client(number), 1.0, at(0)));
        assert!(rates.len() <= ASKERS_MAX);
    }
}
