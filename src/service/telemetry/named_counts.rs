//! Counters of a closed list of names: what happened, by its reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One counter for each name.
pub(crate) struct NamedCounts<const N: usize> {
    names: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> NamedCounts<N> {
    pub(crate) fn new(names: [&'static str; N]) -> Self {
        NamedCounts { names, counts: [const { AtomicU64::new(0) }; N] }
    }

    /// Counts one. A name that is not in the list is a bug, and counts nothing.
    pub(crate) fn count(&self, name: &str) {
        let row = self.names.iter().position(|known| *known == name);
        debug_assert!(row.is_some(), "{name} is none of {:?}", self.names);
        row.map(|row| self.counts[row].fetch_add(1, Relaxed));
    }

    /// Every name with its count.
    pub(crate) fn all(&self) -> [(&'static str, u64); N] {
        std::array::from_fn(|row| (self.names[row], self.counts[row].load(Relaxed)))
    }
}
