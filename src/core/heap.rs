//! A binary heap whose entries can be found, moved and taken out by slot: who is first, in O(1); any change, in
//! O(log entries). After it has grown once, nothing is allocated.

use std::cmp::Ordering;

/// Absent position.
const NOWHERE: u32 = u32::MAX;

/// The least key first. Slots are small numbers of the caller's; each is in the heap once at most.
#[derive(Debug)]
pub(crate) struct SlotHeap<K> {
    entries: Vec<(K, u32)>,
    /// Place of each slot in `entries`. Invariant: `entries[positions[slot]].1 == slot`, or [`NOWHERE`].
    positions: Vec<u32>,
}

impl<K> Default for SlotHeap<K> {
    fn default() -> Self {
        SlotHeap { entries: Vec::new(), positions: Vec::new() }
    }
}

impl<K: Ord + Copy> SlotHeap<K> {
    /// The first entry.
    pub(crate) fn first(&self) -> Option<(K, u32)> {
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
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        self.entries.iter().copied()
    }

    /// Puts this slot in, or moves it to where its new key belongs. `tie` orders slots whose keys are equal.
    pub(crate) fn set(&mut self, slot: u32, key: K, tie: impl Fn(u32, u32) -> Ordering) {
        if self.positions.len() <= slot as usize {
            self.positions.resize(slot as usize + 1, NOWHERE);
        }
        let mut at = self.positions[slot as usize];
        if at == NOWHERE {
            at = self.entries.len() as u32;
            self.entries.push((key, slot));
        } else {
            self.entries[at as usize].0 = key;
        }
        let at = self.rise(at as usize, &tie);
        self.sink(at, &tie);
    }

    /// Takes this slot out, if it is in.
    pub(crate) fn remove(&mut self, slot: u32, tie: impl Fn(u32, u32) -> Ordering) {
        if !self.contains(slot) {
            return;
        }
        let at = self.positions[slot as usize] as usize;
        self.positions[slot as usize] = NOWHERE;
        let last = self.entries.pop().expect("it has this slot at least");
        if last.1 != slot {
            self.entries[at] = last;
            let at = self.rise(at, &tie);
            self.sink(at, &tie);
        }
    }

    fn before(&self, a: (K, u32), b: (K, u32), tie: &impl Fn(u32, u32) -> Ordering) -> bool {
        a.0.cmp(&b.0).then_with(|| tie(a.1, b.1)).is_lt()
    }

    /// Moves the entry at `at` towards the front as far as it belongs; returns where it is.
    fn rise(&mut self, mut at: usize, tie: &impl Fn(u32, u32) -> Ordering) -> usize {
        let entry = self.entries[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if !self.before(entry, self.entries[parent], tie) {
                break;
            }
            self.place(at, self.entries[parent]);
            at = parent;
        }
        self.place(at, entry);
        at
    }

    /// Moves the entry at `at` towards the end as far as it belongs.
    fn sink(&mut self, mut at: usize, tie: &impl Fn(u32, u32) -> Ordering) {
        let entry = self.entries[at];
        loop {
            let left = 2 * at + 1;
            if left >= self.entries.len() {
                break;
            }
            let right = left + 1;
            let right_first = right < self.entries.len() && self.before(self.entries[right], self.entries[left], tie);
            let child = if right_first { right } else { left };
            if !self.before(self.entries[child], entry, tie) {
                break;
            }
            self.place(at, self.entries[child]);
            at = child;
        }
        self.place(at, entry);
    }

    fn place(&mut self, at: usize, entry: (K, u32)) {
        self.entries[at] = entry;
        self.positions[entry.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_always_the_least_of_a_flat_list(ops in proptest::collection::vec((0u32..40, 0i32..10), 1..300)) {
            let mut heap = SlotHeap::default();
            let mut flat: Vec<(i32, u32)> = Vec::new();
            for (slot, key) in ops {
                flat.retain(|entry| entry.1 != slot);
                if key == 0 {
                    heap.remove(slot, |a, b| a.cmp(&b));
                } else {
                    heap.set(slot, key, |a, b| a.cmp(&b));
                    flat.push((key, slot));
                }
                prop_assert_eq!(heap.first(), flat.iter().min().copied());
                prop_assert_eq!((heap.iter().count(), heap.contains(slot)), (flat.len(), key != 0));
            }
        }
    }
}
