//! Numbers in the order of names: two clients are compared without looking at their names, which lie anywhere in
//! memory.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use crate::core::id::ClientId;

/// Distance of two neighbours after all have been numbered anew, and of a new last one from the one before it.
const GAP: u64 = 1 << 32;

/// The rank of each name. A new name gets a number between its neighbours' and changes no other; only where there is
/// none left, all are numbered anew.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    by_name: BTreeMap<ClientId, u64>,
    version: u64,
}

impl Ranks {
    /// Counts how often all have been numbered anew: who keeps ranks looks at them again when it has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The rank of a name that is known.
    pub(crate) fn get(&self, name: &ClientId) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// Takes a new name in and returns its rank. O(log names), now and then O(names).
    pub(crate) fn insert(&mut self, name: &ClientId) -> u64 {
        let before = self.by_name.range((Unbounded, Excluded(name))).next_back().map_or(0, |(_, rank)| *rank);
        let after = self.by_name.range((Excluded(name), Unbounded)).next().map(|(_, rank)| *rank);
        let rank = match after {
            None => before.checked_add(GAP),
            Some(after) => Some(before + (after - before) / 2).filter(|rank| *rank > before),
        };
        let rank = rank.unwrap_or(0);
        self.by_name.insert(name.clone(), rank);
        if rank > 0 {
            return rank;
        }
        self.version += 1;
        (1..).zip(self.by_name.values_mut()).for_each(|(place, rank)| *rank = place * GAP);
        self.get(name).expect("it was inserted just now")
    }

    /// Names that are known.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Forgets a name.
    pub(crate) fn remove(&mut self, name: &ClientId) {
        self.by_name.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_names_whatever_the_order_of_arrival() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut ranks = Ranks::default();
        let mut names: Vec<ClientId> = Vec::new();
        for number in 0..3_000 {
            // Names that backlog together, so that gaps run out.
            let text = if number % 2 == 0 {
                format!("a{}", "b".repeat(number / 40)) + &number.to_string()
            } else {
                format!("{:x}", dice.u32(..))
            };
            let name = ClientId::parse(&text).expect("valid");
            if ranks.get(&name).is_none() {
                ranks.insert(&name);
                names.push(name);
            }
            if number % 5 == 0 {
                ranks.remove(&names.swap_remove(dice.usize(..names.len())));
            }
        }
        names.sort();
        let found: Vec<u64> = names.iter().filter_map(|name| ranks.get(name)).collect();
        assert_eq!(found.len(), names.len());
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ranks.version() > 0, "all were numbered anew at some time");
    }
}
