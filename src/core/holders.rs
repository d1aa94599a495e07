//! Who holds how much of what is kept for all, so that whoever holds most by its weight gives way first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::core::id::ClientId;

/// A part of the bound, as a number that can be compared: the whole bound by weight 1.
const WHOLE: u64 = 1 << 40;

/// What one client holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The client's weight.
    pub weight: u32,
    /// The number of its oldest one.
    pub oldest: u64,
}

/// What each client holds of something that is bounded in number and in bytes.
///
/// The load of a client is the larger of its two parts of the bounds, divided by its weight. When a bound is exceeded, the client with
/// the largest load holds more than its part by weight among those that hold anything, so whoever stays within its part never has to
/// give way. Of clients with the same load the one with the oldest gives way first.
#[derive(Debug)]
pub struct Holders {
    count_max: u64,
    bytes_max: u64,
    count: u64,
    bytes: u64,
    by_client: BTreeMap<ClientId, Held>,
    /// Clients by load and age; empty while there is only one.
    by_load: BTreeSet<(u64, Reverse<u64>, ClientId)>,
}

impl Holders {
    /// Nobody holds anything. At least one is allowed.
    pub fn new(count_max: u64, bytes_max: u64) -> Self {
        let (by_client, by_load) = (BTreeMap::new(), BTreeSet::new());
        Holders { count_max: count_max.max(1), bytes_max, count: 0, bytes: 0, by_client, by_load }
    }

    /// Another bound, from now on.
    pub fn set_count_max(&mut self, count_max: u64) {
        if self.count_max != count_max.max(1) {
            self.count_max = count_max.max(1);
            self.rank_all();
        }
    }

    fn rank(&self, client: &ClientId, held: &Held) -> (u64, Reverse<u64>, ClientId) {
        let part = |part: u64, whole: u64| u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
        let larger = part(held.count, self.count_max).max(part(held.bytes, self.bytes_max));
        let load = u64::try_from(larger / u128::from(held.weight.max(1))).unwrap_or(u64::MAX);
        (load, Reverse(held.oldest), client.clone())
    }

    fn rank_all(&mut self) {
        self.by_load = match self.by_client.len() {
            0 | 1 => BTreeSet::new(),
            _ => self.by_client.iter().map(|(client, held)| self.rank(client, held)).collect(),
        };
    }

    /// What a client holds, as of now; with a count of 0 it holds nothing.
    pub fn set(&mut self, client: &ClientId, held: Held) {
        let was = self.by_client.get(client).copied();
        self.count = self.count - was.map_or(0, |was| was.count) + held.count;
        self.bytes = self.bytes - was.map_or(0, |was| was.bytes) + held.bytes;
        match held.count {
            0 => drop(self.by_client.remove(client)),
            _ => match self.by_client.get_mut(client) {
                Some(known) => *known = held,
                None => drop(self.by_client.insert(client.clone(), held)),
            },
        }
        if self.by_load.is_empty() || self.by_client.len() < 2 {
            return self.rank_all();
        }
        if let Some(was) = was {
            self.by_load.remove(&self.rank(client, &was));
        }
        if held.count > 0 {
            self.by_load.insert(self.rank(client, &held));
        }
    }

    /// How many all hold together.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What a client holds.
    pub fn get(&self, client: &ClientId) -> Held {
        self.by_client.get(client).copied().unwrap_or_default()
    }

    /// Whether there is more than may be kept.
    pub fn is_over(&self) -> bool {
        self.count > self.count_max || self.bytes > self.bytes_max
    }

    /// Who gives way.
    pub fn largest(&self) -> Option<&ClientId> {
        self.by_load.last().map(|(_, _, client)| client).or_else(|| self.only())
    }

    /// The same where the one of this number stays: whoever has it as its oldest, and so has no other, gives no way.
    pub fn largest_beside(&self, newest: u64) -> Option<&ClientId> {
        let others = self.by_load.iter().rev().find(|(_, Reverse(oldest), _)| *oldest != newest);
        let only = || self.only().filter(|only| self.get(only).oldest != newest);
        others.map(|(_, _, client)| client).or_else(only)
    }

    /// Who holds anything, while that is one.
    fn only(&self) -> Option<&ClientId> {
        let (client, _) = self.by_client.first_key_value()?;
        (self.by_client.len() == 1).then_some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> ClientId {
        ClientId::parse(&format!("c{number}")).expect("valid")
    }

    #[test]
    fn who_stays_within_its_part_by_weight_never_gives_way_and_the_bounds_hold() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            let (count_max, bytes_max) = (random.u64(1..200), random.u64(1..20_000));
            let mut holders = Holders::new(count_max, bytes_max);
            let weights: Vec<u32> = (0..5).map(|_| random.u32(1..10)).collect();
            let mut model: Vec<Vec<(u64, u64)>> = vec![Vec::new(); 5]; // Numbers and bytes, oldest first.
            let tell = |holders: &mut Holders, model: &[Vec<(u64, u64)>], who: usize| {
                let own = &model[who];
                let bytes = own.iter().map(|(_, bytes)| bytes).sum();
                let oldest = own.first().map_or(0, |(number, _)| *number);
                holders.set(&client(who), Held { count: own.len() as u64, bytes, weight: weights[who], oldest });
            };
            for number in 0..500 {
                let who = random.usize(0..5);
                if random.u8(0..4) == 0 {
                    model[who].pop();
                    tell(&mut holders, &model, who);
                    continue;
                }
                model[who].push((number, random.u64(0..300)));
                tell(&mut holders, &model, who);
                while holders.is_over() {
                    let largest = holders.largest().expect("somebody holds too much").clone();
                    let largest = (0..5).find(|who| client(*who) == largest).expect("one of them");
                    let sum: u64 =
                        (0..5).filter(|who| !model[*who].is_empty()).map(|who| u64::from(weights[who])).sum();
                    let held = holders.get(&client(largest));
                    let above = |held: u64, most: u64| (held + 1) * sum * 100 > most * u64::from(weights[largest]) * 99;
                    assert!(
                        above(held.count, count_max) || above(held.bytes, bytes_max),
                        "it holds more than its part"
                    );
                    model[largest].remove(0);
                    tell(&mut holders, &model, largest);
                }
                let count: usize = model.iter().map(Vec::len).sum();
                let bytes: u64 = model.iter().flatten().map(|(_, bytes)| bytes).sum();
                assert!(count as u64 <= count_max && bytes <= bytes_max);
                assert_eq!((holders.count, holders.bytes), (count as u64, bytes));
                let several = model.iter().filter(|held| !held.is_empty()).count();
                assert_eq!(holders.by_load.len(), if several < 2 { 0 } else { several });
            }
        }
    }

    #[test]
    fn of_equal_ones_the_oldest_gives_way_and_never_who_came_last() {
        let mut holders = Holders::new(3, u64::MAX);
        for (who, oldest) in [(7, 10), (2, 20), (9, 30), (1, 40)] {
            holders.set(&client(who), Held { count: 1, bytes: 1, weight: 1, oldest });
        }
        assert!(holders.is_over() && holders.largest() == Some(&client(7)));
        assert_eq!(holders.largest_beside(10), Some(&client(2)));
        holders.set_count_max(4);
        assert!(!holders.is_over());
    }
}
