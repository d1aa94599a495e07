//! How many lines of the log a kind of refusal may have: what refused requests cost must not be ours.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::core::units::Timestamp;

/// Lines that may be written at once.
const LINES_BURST: f64 = 10.0;
/// Lines that may be written in the long run.
const LINES_PER_S: f64 = 1.0;
/// Names with a budget of their own. Beyond them all are forgotten.
const NAMES_MAX: usize = 16_384;

/// A token bucket of lines.
#[derive(Debug)]
pub(crate) struct LineBudget {
    /// Lines that may be written, as of `since`.
    left: f64,
    since: Timestamp,
    /// Events without a line since the last line.
    suppressed: u64,
}

impl LineBudget {
    /// A full bucket.
    pub(crate) fn new(now: Timestamp) -> Self {
        LineBudget { left: LINES_BURST, since: now, suppressed: 0 }
    }

    /// Takes a line; `None` when there were too many, else how many events had none since the last one.
    pub(crate) fn take(&mut self, now: Timestamp) -> Option<u64> {
        self.left = (self.left + now.since(self.since).as_secs_f64() * LINES_PER_S).min(LINES_BURST);
        self.since = now;
        if self.left < 1.0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A budget for each name, such as a key's id. A short lock for each event.
#[derive(Default)]
pub(crate) struct LineBudgets(Mutex<BTreeMap<String, LineBudget>>);

impl LineBudgets {
    /// Takes a line of this name's.
    pub(crate) fn take(&self, name: &str, now: Timestamp) -> Option<u64> {
        let mut budgets = self.0.lock();
        if !budgets.contains_key(name) {
            if budgets.len() >= NAMES_MAX {
                budgets.clear();
            }
            budgets.insert(name.to_owned(), LineBudget::new(now));
        }
        budgets.get_mut(name)?.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_at_once_then_one_a_second_and_what_had_none_is_told() {
        let (budgets, at) = (LineBudgets::default(), |ms: u64| Timestamp::from_micros(ms * 1_000));
        let lines = (0..3_000).filter(|_| budgets.take("one", at(0)).is_some()).count();
        assert_eq!(lines, 10);
        assert_eq!(budgets.take("one", at(999)), None);
        assert_eq!(budgets.take("one", at(1_000)), Some(2_991));
        assert_eq!(budgets.take("other", at(0)), Some(0));
    }

    #[test]
    fn names_are_bounded() {
        let budgets = LineBudgets::default();
        for number in 0..40_000 {
            budgets.take(&number.to_string(), Timestamp::from_micros(1));
            assert!(budgets.0.lock().len() <= NAMES_MAX);
        }
    }
}
