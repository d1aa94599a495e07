//! How fast a client may send, and how much it may have at once (ORCH-3006, ORCH-3036).
//!
//! Token buckets in integers: the same calls at the same moments give the same answers everywhere. Every "no" says how
//! long until it could be a "yes", as far as that follows from the limit alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::units::{Timestamp, Tokens};

/// Parts of a unit in a bucket: a rate in millionths a second, times microseconds.
const PARTS: i128 = 1_000_000_000_000;

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second, in millionths.
    per_s_micro: u64,
    /// Most units that come at once.
    burst: u32,
}

impl Rate {
    /// So many units a second, at most `burst` at once. Rates below a millionth a second count as that.
    pub fn new(per_s: f64, burst: u32) -> Self {
        Rate { per_s_micro: (per_s * 1e6).clamp(1.0, 1e15) as u64, burst: burst.max(1) }
    }

    /// A part of it, in millionths. A burst of one is never denied.
    #[must_use]
    pub fn part(self, millionths: u32) -> Self {
        let part = |whole: u64| whole as u128 * u128::from(millionths) / 1_000_000;
        Rate { per_s_micro: (part(self.per_s_micro) as u64).max(1), burst: (part(self.burst.into()) as u32).max(1) }
    }
}

/// What is left of a [`Rate`]. Starts full.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// What is missing from a full bucket, in [`PARTS`]; more than the burst is a debt.
    missing: i128,
    at: Timestamp,
    /// The burst at the last look; 0 before the first. What a larger burst adds is not there yet.
    burst: u32,
}

impl Bucket {
    /// How long until `wanted` units may be taken; zero when they may now. More than the burst may be taken from a full
    /// bucket.
    fn wait(&mut self, rate: Rate, now: Timestamp, wanted: u32) -> Duration {
        let elapsed = now.since(self.at).as_micros() as i128;
        self.missing = (self.missing - elapsed * i128::from(rate.per_s_micro)).max(0);
        if self.burst > 0 {
            self.missing += i128::from(rate.burst.saturating_sub(self.burst)) * PARTS;
        }
        (self.at, self.burst) = (now, rate.burst);
        let allowed = i128::from(rate.burst - wanted.min(rate.burst)) * PARTS;
        let micros = (self.missing - allowed).max(0).div_ceil_positive(i128::from(rate.per_s_micro));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn take(&mut self, units: u32) {
        self.missing += i128::from(units) * PARTS;
    }

    fn put_back(&mut self, units: u32) {
        self.missing = (self.missing - i128::from(units) * PARTS).max(0);
    }
}

trait DivCeil {
    fn div_ceil_positive(self, by: Self) -> Self;
}

impl DivCeil for i128 {
    fn div_ceil_positive(self, by: i128) -> i128 {
        (self + by - 1) / by
    }
}

/// How fast a client may send. `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tasks.
    pub requests: Option<Rate>,
    /// Tokens, prompt and generation together.
    pub tokens: Option<Rate>,
}

impl Limits {
    /// A part of them, in millionths.
    #[must_use]
    pub fn part(self, millionths: u32) -> Self {
        let part = |rate: Rate| rate.part(millionths);
        Limits { requests: self.requests.map(part), tokens: self.tokens.map(part) }
    }
}

/// How much a client may have at once. `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Tasks that run.
    pub running: Option<u32>,
    /// Tasks that wait.
    pub queued: Option<u32>,
    /// Device memory of running tasks, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Quotas {
    /// This node's part of them, in millionths, for a client that has `elsewhere` at other nodes. Counts are rounded
    /// up: with none of it in use elsewhere, a node that has almost all of a small quota has all of it.
    #[must_use]
    pub fn part(self, millionths: u32, elsewhere: Held) -> Self {
        let part = |whole: u64, used: u64| {
            let part = (u128::from(whole) * u128::from(millionths)).div_ceil(1_000_000);
            (part as u64).min(whole.saturating_sub(used))
        };
        let count = |whole: Option<u32>, used: u32| whole.map(|whole| part(whole.into(), used.into()) as u32);
        Quotas {
            running: count(self.running, elsewhere.running),
            queued: count(self.queued, elsewhere.queued),
            memory_bytes: self.memory_bytes.map(|whole| part(whole, elsewhere.memory_bytes)),
        }
    }

    /// The part with which this task may be begun: alone at its node it may have what is left of the whole, so that a
    /// large one is not kept waiting for ever.
    #[must_use]
    pub fn part_for(self, take: Demand, millionths: u32, elsewhere: Held) -> Self {
        let left = self.memory_bytes.map(|whole| whole.saturating_sub(elsewhere.memory_bytes));
        let part = self.part(millionths, elsewhere);
        let memory_bytes = part.memory_bytes.zip(left).map(|(part, left)| part.max(take.memory_bytes).min(left));
        Quotas { memory_bytes, ..part }
    }
}

/// What a client has of its quotas in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Tasks that run.
    pub running: u32,
    /// Tasks that wait.
    pub queued: u32,
    /// Device memory of running tasks, in bytes.
    pub memory_bytes: u64,
}

impl std::iter::Sum for Held {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Held::default(), |sum, held| Held {
            running: sum.running.saturating_add(held.running),
            queued: sum.queued.saturating_add(held.queued),
            memory_bytes: sum.memory_bytes.saturating_add(held.memory_bytes),
        })
    }
}

/// What one task takes from its client's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Its whole budget: prompt and most output.
    pub tokens: Tokens,
    /// Device memory while it runs.
    pub memory_bytes: u64,
}

/// The limit that a task would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// Tasks a second; so long until one more may come.
    Requests(Duration),
    /// Tokens a second; so long until this one's may come.
    Tokens(Duration),
    /// Tasks that wait; this is the quota.
    Queued(u32),
    /// Tasks that wait; this is the node's part of that quota.
    QueuedHere(u32, u32),
    /// The task alone needs more memory than the quota, which is this many bytes.
    Memory(u64),
}

/// What a client uses of its limits and quotas now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    requests: Bucket,
    tokens: Bucket,
    queued: u32,
    running: u32,
    memory_bytes: u64,
}

impl Usage {
    /// Takes a new task in, to wait. All limits are asked before anything is taken.
    ///
    /// # Errors
    /// The first limit that it would exceed; nothing was taken.
    pub fn admit(&mut self, limits: &Limits, quotas: &Quotas, now: Timestamp, take: Demand) -> Result<(), Exceeded> {
        if let Some(most) = quotas.memory_bytes.filter(|most| take.memory_bytes > *most) {
            return Err(Exceeded::Memory(most));
        }
        if let Some(most) = quotas.queued.filter(|most| self.queued >= *most) {
            return Err(Exceeded::Queued(most));
        }
        let ask = |bucket: &mut Bucket, rate: Option<Rate>, wanted| {
            rate.map_or(Duration::ZERO, |rate| bucket.wait(rate, now, wanted))
        };
        match ask(&mut self.requests, limits.requests, 1) {
            Duration::ZERO => {}
            wait => return Err(Exceeded::Requests(wait)),
        }
        match ask(&mut self.tokens, limits.tokens, take.tokens.0) {
            Duration::ZERO => {}
            wait => return Err(Exceeded::Tokens(wait)),
        }
        self.requests.take(1);
        self.tokens.take(take.tokens.0);
        self.queued += 1;
        Ok(())
    }

    /// A task was not accepted after all: everything is given back.
    pub fn undo(&mut self, take: Demand) {
        self.requests.put_back(1);
        self.leave_queue(take.tokens);
    }

    /// A task ends while it waits; its tokens come back.
    pub fn leave_queue(&mut self, unused: Tokens) {
        debug_assert!(self.queued > 0, "only a task that waits leaves the queue");
        self.queued -= 1;
        self.tokens.put_back(unused.0);
    }

    /// Begins to run a waiting task, if the quotas leave room beside those that run. Returns whether it does.
    pub fn start(&mut self, quotas: &Quotas, take: Demand) -> bool {
        let too_many = quotas.running.is_some_and(|most| self.running >= most);
        let too_much =
            quotas.memory_bytes.is_some_and(|most| self.memory_bytes.saturating_add(take.memory_bytes) > most);
        if too_many || too_much {
            return false;
        }
        self.queued -= 1;
        self.running += 1;
        self.memory_bytes += take.memory_bytes;
        true
    }

    /// A running task waits again.
    pub fn give_back(&mut self, take: Demand) {
        self.end(take, Tokens(0));
        self.queued += 1;
    }

    /// A running task ends; tokens that it did not generate come back.
    pub fn end(&mut self, take: Demand, unused: Tokens) {
        debug_assert!(self.running > 0, "only a task that runs ends");
        self.running -= 1;
        self.memory_bytes -= take.memory_bytes;
        self.tokens.put_back(unused.0);
    }

    /// What is in use of the quotas now.
    pub fn held(&self) -> Held {
        Held { running: self.running, queued: self.queued, memory_bytes: self.memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_micros(millis * 1_000)
    }

    fn admit(usage: &mut Usage, limits: &Limits, millis: u64, tokens: u32) -> Result<(), Exceeded> {
        usage.admit(limits, &Quotas::default(), at(millis), Demand { tokens: Tokens(tokens), memory_bytes: 0 })
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let limits = Limits { requests: Some(Rate::new(2.0, 3)), tokens: None };
        let mut usage = Usage::default();
        for _ in 0..3 {
            assert_eq!(admit(&mut usage, &limits, 0, 1), Ok(()));
        }
        assert_eq!(admit(&mut usage, &limits, 0, 1), Err(Exceeded::Requests(Duration::from_millis(500))));
        assert_eq!(admit(&mut usage, &limits, 499, 1), Err(Exceeded::Requests(Duration::from_millis(1))));
        assert_eq!(admit(&mut usage, &limits, 500, 1), Ok(()), "exactly when it was told to come back");
        assert_eq!(admit(&mut usage, &limits, 600_000, 1), Ok(()), "an hour of silence saves no more than the burst");
        let passed = (0..9).filter(|_| admit(&mut usage, &limits, 600_000, 1).is_ok()).count();
        assert_eq!(passed, 2);
    }

    #[test]
    fn tokens_are_taken_whole_and_unused_ones_come_back() {
        let limits = Limits { requests: None, tokens: Some(Rate::new(10.0, 100)) };
        let mut usage = Usage::default();
        assert_eq!(admit(&mut usage, &limits, 0, 90), Ok(()));
        assert_eq!(admit(&mut usage, &limits, 0, 20), Err(Exceeded::Tokens(Duration::from_secs(1))));
        assert!(usage.start(&Quotas::default(), Demand { tokens: Tokens(90), memory_bytes: 0 }));
        usage.end(Demand { tokens: Tokens(90), memory_bytes: 0 }, Tokens(60));
        assert_eq!(admit(&mut usage, &limits, 0, 70), Ok(()));
    }

    #[test]
    fn a_task_larger_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
        let limits = Limits { requests: None, tokens: Some(Rate::new(10.0, 100)) };
        let mut usage = Usage::default();
        assert_eq!(admit(&mut usage, &limits, 0, 250), Ok(()));
        assert_eq!(admit(&mut usage, &limits, 0, 1), Err(Exceeded::Tokens(Duration::from_millis(15_100))));
    }

    #[test]
    fn a_task_that_ends_while_it_waits_leaves_its_place_and_its_tokens() {
        let limits = Limits { requests: None, tokens: Some(Rate::new(1.0, 100)) };
        let quotas = Quotas { queued: Some(2), memory_bytes: Some(100), ..Quotas::default() };
        let take = Demand { tokens: Tokens(50), memory_bytes: 100 };
        let mut usage = Usage::default();
        for _ in 0..5 {
            assert_eq!(usage.admit(&limits, &quotas, at(0), take), Ok(()), "all of the memory is not too much");
            assert_eq!(usage.admit(&limits, &quotas, at(0), take), Ok(()));
            assert_eq!(usage.admit(&limits, &quotas, at(0), take), Err(Exceeded::Queued(2)));
            usage.leave_queue(Tokens(50));
            usage.leave_queue(Tokens(50));
        }
    }

    #[test]
    fn a_refused_task_takes_nothing() {
        let limits = Limits { requests: Some(Rate::new(1.0, 1)), tokens: Some(Rate::new(1.0, 1)) };
        let mut usage = Usage::default();
        assert_eq!(admit(&mut usage, &limits, 0, 1), Ok(()));
        usage.undo(Demand { tokens: Tokens(1), memory_bytes: 0 });
        assert_eq!(admit(&mut usage, &limits, 0, 1), Ok(()), "undone, as if it had never been");
    }

    #[test]
    fn quotas_hold_back_what_runs_and_refuse_what_waits() {
        let quotas = Quotas { running: Some(2), queued: Some(1), memory_bytes: Some(100) };
        let take = |memory_bytes| Demand { tokens: Tokens(1), memory_bytes };
        let mut usage = Usage::default();
        let admit = |usage: &mut Usage, bytes| usage.admit(&Limits::default(), &quotas, at(0), take(bytes));
        assert_eq!(admit(&mut usage, 101), Err(Exceeded::Memory(100)));
        assert_eq!(admit(&mut usage, 60), Ok(()));
        assert_eq!(admit(&mut usage, 60), Err(Exceeded::Queued(1)));
        assert!(usage.start(&quotas, take(60)));
        assert_eq!(admit(&mut usage, 60), Ok(()));
        assert!(!usage.start(&quotas, take(60)), "memory");
        assert!(usage.start(&quotas, take(40)), "one that fits");
        assert_eq!(admit(&mut usage, 0), Ok(()));
        assert!(!usage.start(&quotas, take(0)), "running");
        usage.give_back(take(40));
        assert_eq!(usage.held(), Held { running: 1, queued: 2, memory_bytes: 60 });
    }

    #[test]
    fn a_part_of_a_quota_leaves_alone_what_is_in_use_elsewhere() {
        let quotas = Quotas { running: Some(10), queued: None, memory_bytes: Some(100) };
        let elsewhere = |running, memory_bytes| Held { running, queued: 7, memory_bytes };
        let part = |share, held| {
            let part = quotas.part(share, held);
            (part.running, part.queued, part.memory_bytes)
        };
        assert_eq!(part(1_000_000, Held::default()), (Some(10), None, Some(100)));
        assert_eq!(part(933_333, elsewhere(0, 0)), (Some(10), None, Some(94)), "rounded up");
        assert_eq!(part(333_333, elsewhere(0, 0)), (Some(4), None, Some(34)));
        assert_eq!(part(333_333, elsewhere(8, 90)), (Some(2), None, Some(10)));
        assert_eq!(part(333_333, elsewhere(12, 200)), (Some(0), None, Some(0)));
        let begins = |memory_bytes, held| {
            let take = Demand { tokens: Tokens(1), memory_bytes };
            let mut usage = Usage { queued: 2, ..Usage::default() };
            usage.start(&quotas.part_for(take, 333_333, held), take)
        };
        assert!(begins(100, elsewhere(0, 0)), "alone it may have all");
        assert!(begins(60, elsewhere(1, 40)) && !begins(61, elsewhere(1, 40)), "of what is left");
    }
}
