//! Which ends of processes the system's kills for want of memory explain: a kill looks like any other SIGKILL, but the
//! system counts it.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::gpu::process::cgroup;

/// Kills that are remembered as explained; older ones have found their ends long ago.
const EXPLAINED_MAX: usize = 1_024;

/// The kills that have explained an end, by their numbers in the system's count. Each explains one.
static EXPLAINED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// The system's count at one moment, for our own control group.
pub(crate) struct MemoryKills {
    /// `None` where the system does not count.
    before: Option<u64>,
}

impl MemoryKills {
    /// The count as of now.
    pub(crate) fn until_now() -> Self {
        MemoryKills { before: cgroup::kills() }
    }

    /// Takes a kill since then to explain the end of one process; false when there is none that explains nothing yet.
    pub(crate) fn explain_one(&self) -> bool {
        let counts = self.before.zip(cgroup::kills());
        counts.is_some_and(|(before, now)| take(&mut EXPLAINED.lock(), before, now))
    }
}

/// Takes the newest kill behind `before`, up to `now`, that is not in `explained`.
fn take(explained: &mut BTreeSet<u64>, before: u64, now: u64) -> bool {
    let mut kills = (before..now).rev().map(|earlier| earlier + 1).take(EXPLAINED_MAX);
    let Some(kill) = kills.find(|kill| !explained.contains(kill)) else { return false };
    explained.insert(kill);
    while explained.len() > EXPLAINED_MAX {
        explained.pop_first();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_explains_one_end_of_a_process_that_lived_then() {
        let mut explained = BTreeSet::new();
        assert!(!take(&mut explained, 3, 3), "none since it was started");
        assert!(take(&mut explained, 3, 5), "kill 5");
        assert!(take(&mut explained, 3, 5), "kill 4");
        assert!(!take(&mut explained, 3, 5), "both have explained an end");
        assert!(!take(&mut explained, 5, 5), "they were before this one");
        assert!(take(&mut explained, 4, 6) && !take(&mut explained, 0, 0));
        assert!(!take(&mut explained, 7, 2), "a count that goes back explains nothing");
        assert_eq!(explained.into_iter().collect::<Vec<_>>(), [4, 5, 6]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut explained = BTreeSet::new();
        for kill in 0..2 * EXPLAINED_MAX as u64 {
            assert!(take(&mut explained, kill, kill + 1));
        }
        assert_eq!(explained.len(), EXPLAINED_MAX);
    }
}
