//! How many lines of the log a cause that costs its sender nothing may write: a burst, then a few each second. What has
//! no line is counted, and the next line says how many there were.

use std::collections::BTreeMap;

use crate::core::units::Timestamp;

/// Lines that may be written at once.
pub const LINES_BURST: f64 = 10.0;
/// Lines that may be written in each second in the long run.
pub const LINES_PER_S: f64 = 1.0;

/// A token bucket of lines.
#[derive(Clone, Debug)]
pub struct LineBudget {
    /// Lines that may be written, as of `since`.
    left: f64,
    since: Timestamp,
    /// Those that were left out since the last line.
    suppressed: u64,
}

impl LineBudget {
    /// A full bucket.
    pub fn new(now: Timestamp) -> Self {
        LineBudget { left: LINES_BURST, since: now, suppressed: 0 }
    }

    /// Takes a line; `None` when there were too many, else how many were left out since the last one.
    pub fn take(&mut self, now: Timestamp) -> Option<u64> {
        self.left = (self.left + now.since(self.since).as_secs_f64() * LINES_PER_S).min(LINES_BURST);
        self.since = now;
        debug_assert!((0.0..=LINES_BURST).contains(&self.left), "{} of {LINES_BURST} lines", self.left);
        if self.left < 1.0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Names with a budget of their own. Beyond them all are forgotten.
const NAMES_MAX: usize = 16_384;

/// A budget for each name, such as a key's id.
#[derive(Clone, Debug, Default)]
pub struct LineBudgets(BTreeMap<String, LineBudget>);

impl LineBudgets {
    /// Takes a line of this name's.
    pub fn take(&mut self, name: &str, now: Timestamp) -> Option<u64> {
        if let Some(budget) = self.0.get_mut(name) {
            return budget.take(now);
        }
        if self.0.len() >= NAMES_MAX {
            self.0.clear();
        }
        self.0.entry(name.to_owned()).or_insert(LineBudget::new(now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own_budget_and_names_are_bounded() {
        let (mut budgets, at) = (LineBudgets::default(), |ms: u64| Timestamp::from_micros(ms * 1_000));
        let lines = (0..3_000).filter(|_| budgets.take("one", at(0)).is_some()).count();
        assert_eq!(lines, 10);
        assert_eq!(budgets.take("one", at(1_000)), Some(2_990));
        assert_eq!(budgets.take("other", at(0)), Some(0));
        for number in 0..40_000 {
            budgets.take(&number.to_string(), at(0));
            assert!(budgets.0.len() <= NAMES_MAX);
        }
    }

    #[test]
    fn lines_are_bounded_and_say_how_many_were_left_out() {
        let at = |ms: u64| Timestamp::from_micros(ms * 1000);
        let mut lines = LineBudget::new(at(0));
        assert!((0..10).all(|_| lines.take(at(0)) == Some(0)));
        assert!((0..7).all(|_| lines.take(at(500)).is_none()));
        assert_eq!(lines.take(at(1_000)), Some(7));
        assert_eq!(lines.take(at(1_100)), None);
        assert_eq!(lines.take(at(2_000)), Some(1));
        let written = (0..1_000).filter(|_| lines.take(at(3_600_000)).is_some()).count();
        assert_eq!(written, 10, "an hour of quiet allows no more than a burst");
    }
}
