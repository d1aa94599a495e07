//! A binary heap whose entries can be found, moved and taken out by slot: who is first, in O(1); any change, in
//! O(log entries). After it has grown once, nothing is allocated.

/// Absent position.
const NOWHERE: u32 = u32::MAX;

/// What a heap holds: something with a slot, which is a small number of the caller's.
pub(crate) trait Entry: Ord + Copy {
    /// Its slot. Each is in the heap once at most.
    fn slot(&self) -> u32;
}

/// The least entry first.
#[derive(Debug)]
pub(crate) struct SlotHeap<E> {
    entries: Vec<E>,
    /// Place of each slot in `entries`, or [`NOWHERE`].
    positions: Vec<u32>,
}

impl<E> Default for SlotHeap<E> {
    fn default() -> Self {
        SlotHeap { entries: Vec::new(), positions: Vec::new() }
    }
}

impl<E: Entry> SlotHeap<E> {
    /// The first entry.
    pub(crate) fn first(&self) -> Option<E> {
        self.entries.first().copied()
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether this slot is in it.
    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.positions.get(slot as usize).is_some_and(|position| *position != NOWHERE)
    }

    /// Every entry, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = E> + '_ {
        self.entries.iter().copied()
    }

    /// Changes every entry without changing the order between any two.
    pub(crate) fn rewrite(&mut self, change: impl FnMut(&mut E)) {
        self.entries.iter_mut().for_each(change);
    }

    /// Puts this entry in, or moves its slot to where the new entry belongs.
    pub(crate) fn set(&mut self, entry: E) {
        let slot = entry.slot() as usize;
        if self.positions.len() <= slot {
            self.positions.resize(slot + 1, NOWHERE);
        }
        let mut at = self.positions[slot] as usize;
        if at == NOWHERE as usize {
            at = self.entries.len();
            self.entries.push(entry);
        }
        self.settle(at, entry);
    }

    /// Takes this slot out, if it is in.
    pub(crate) fn remove(&mut self, slot: u32) {
        if !self.contains(slot) {
            return;
        }
        let at = std::mem::replace(&mut self.positions[slot as usize], NOWHERE) as usize;
        let last = self.entries.pop().expect("it has this slot at least");
        if last.slot() != slot {
            self.settle(at, last);
        }
    }

    /// Brings `entry`, for which there is a hole at `at`, to where it belongs.
    fn settle(&mut self, at: usize, entry: E) {
        if at > 0 && entry < self.entries[(at - 1) / 2] {
            self.rise(at, 0, entry);
        } else {
            self.sink(at, entry);
        }
    }

    /// Fills the hole at `at` with `entry` or, as long as that comes before them, with what is above it, up to `top`.
    fn rise(&mut self, mut at: usize, top: usize, entry: E) {
        while at > top {
            let parent = (at - 1) / 2;
            if entry >= self.entries[parent] {
                break;
            }
            self.place(at, self.entries[parent]);
            at = parent;
        }
        self.place(at, entry);
    }

    /// Fills the hole at `at` from below.
    ///
    /// A client that was just served belongs near the end nearly always. So the hole is first moved to the very end,
    /// past the lesser of each two children, which takes one comparison a level and no guess of the processor's; and
    /// then back.
    fn sink(&mut self, mut at: usize, entry: E) {
        let top = at;
        loop {
            let left = 2 * at + 1;
            if left >= self.entries.len() {
                break;
            }
            let right = (left + 1).min(self.entries.len() - 1);
            let child = left + usize::from(self.entries[right] < self.entries[left]);
            self.place(at, self.entries[child]);
            at = child;
        }
        self.rise(at, top, entry);
    }

    fn place(&mut self, at: usize, entry: E) {
        self.entries[at] = entry;
        self.positions[entry.slot() as usize] = at as u32;
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        for (at, entry) in self.entries.iter().enumerate() {
            assert!(at == 0 || self.entries[(at - 1) / 2] <= *entry, "nobody comes before the one above it");
            assert_eq!(self.positions[entry.slot() as usize], at as u32, "each entry is found where it is");
        }
        let known = self.positions.iter().filter(|position| **position != NOWHERE).count();
        assert_eq!(known, self.entries.len(), "what is found is in it");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Entry for (i32, u32) {
        fn slot(&self) -> u32 {
            self.1
        }
    }

    proptest! {
        #[test]
        fn the_first_is_always_the_least_of_a_flat_list(ops in proptest::collection::vec((0u32..40, 0i32..10), 1..300)) {
            let mut heap = SlotHeap::default();
            let mut flat: Vec<(i32, u32)> = Vec::new();
            for (slot, key) in ops {
                flat.retain(|entry| entry.1 != slot);
                if key == 0 {
                    heap.remove(slot);
                } else {
                    heap.set((key, slot));
                    flat.push((key, slot));
                }
                heap.invariants();
                prop_assert_eq!(heap.first(), flat.iter().min().copied());
                prop_assert_eq!((heap.iter().count(), heap.contains(slot)), (flat.len(), key != 0));
            }
        }
    }
}
