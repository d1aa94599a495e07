//! Who holds how much of what is kept for all, so that whoever holds most by its weight gives way first.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::id::ClientId;

/// A part of the bound, as a number that can be compared: the whole bound by weight 1.
const WHOLE: u64 = 1 << 40;

/// What one client holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    count: u64,
    bytes: u64,
    weight: u32,
}

/// What each client holds of something that is bounded in number and in bytes.
///
/// The load of a client is the larger of its two parts of the bounds, divided by its weight. When a bound is exceeded, the client with
/// the largest load holds more than its part by weight among those that hold anything, so whoever stays within its part never has to
/// give way.
#[derive(Debug)]
pub struct Holders {
    count_max: u64,
    bytes_max: u64,
    total: Held,
    by_client: BTreeMap<ClientId, Held>,
    /// Clients by load; empty while there is only one.
    by_load: BTreeSet<(u64, ClientId)>,
}

impl Holders {
    /// Nobody holds anything.
    pub fn new(count_max: u64, bytes_max: u64) -> Self {
        let total = Held::default();
        Holders { count_max, bytes_max, total, by_client: BTreeMap::new(), by_load: BTreeSet::new() }
    }

    fn load(&self, held: Held) -> u64 {
        let part = |part: u64, whole: u64| u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
        let larger = part(held.count, self.count_max).max(part(held.bytes, self.bytes_max));
        u64::try_from(larger / u128::from(held.weight.max(1))).unwrap_or(u64::MAX)
    }

    fn set(&mut self, client: &ClientId, was: Held, is: Held) {
        if self.by_client.len() < 2 {
            self.by_load.clear();
        } else if self.by_load.is_empty() {
            let all = self.by_client.iter().map(|(client, held)| (self.load(*held), client.clone()));
            self.by_load = all.collect();
        } else {
            self.by_load.remove(&(self.load(was), client.clone()));
            if is.count > 0 {
                self.by_load.insert((self.load(is), client.clone()));
            }
        }
    }

    /// A client with this weight holds one more, of so many bytes.
    pub fn add(&mut self, client: &ClientId, weight: u32, bytes: u64) {
        let (was, is) = match self.by_client.get_mut(client) {
            Some(held) => {
                let was = *held;
                *held = Held { count: was.count + 1, bytes: was.bytes + bytes, weight };
                (was, *held)
            }
            None => {
                let held = Held { count: 1, bytes, weight };
                self.by_client.insert(client.clone(), held);
                (Held::default(), held)
            }
        };
        self.total.count += 1;
        self.total.bytes += bytes;
        self.set(client, was, is);
    }

    /// It holds one less.
    pub fn sub(&mut self, client: &ClientId, bytes: u64) {
        let Some(held) = self.by_client.get_mut(client) else { return };
        let was = *held;
        *held = Held { count: was.count - 1, bytes: was.bytes.saturating_sub(bytes), weight: was.weight };
        let is = *held;
        if is.count == 0 {
            self.by_client.remove(client);
            self.by_load.remove(&(self.load(was), client.clone()));
        }
        self.total.count -= 1;
        self.total.bytes = self.total.bytes.saturating_sub(bytes);
        self.set(client, was, is);
    }

    /// Whether there is more than may be kept.
    pub fn is_over(&self) -> bool {
        self.total.count > self.count_max || self.total.bytes > self.bytes_max
    }

    /// Who gives way.
    pub fn largest(&self) -> Option<&ClientId> {
        let largest = self.by_load.last().map(|(_, client)| client);
        largest.or_else(|| self.by_client.first_key_value().map(|(client, _)| client))
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
            let mut model: Vec<Vec<u64>> = vec![Vec::new(); 5];
            for _ in 0..500 {
                let who = random.usize(0..5);
                if random.u8(0..4) == 0 {
                    if let Some(bytes) = model[who].pop() {
                        holders.sub(&client(who), bytes);
                    }
                    continue;
                }
                let bytes = random.u64(0..300);
                holders.add(&client(who), weights[who], bytes);
                model[who].push(bytes);
                while holders.is_over() {
                    let largest = holders.largest().expect("somebody holds too much").clone();
                    let largest = (0..5).find(|who| client(*who) == largest).expect("one of them");
                    let sum: u64 =
                        (0..5).filter(|who| !model[*who].is_empty()).map(|who| u64::from(weights[who])).sum();
                    let (count, bytes) = (model[largest].len() as u64, model[largest].iter().sum::<u64>());
                    let weight = u64::from(weights[largest]);
                    let above = |held: u64, most: u64| (held + 1) * sum * 100 > most * weight * 99;
                    assert!(above(count, count_max) || above(bytes, bytes_max), "it holds more than its part");
                    let bytes = model[largest].remove(0);
                    holders.sub(&client(largest), bytes);
                }
                let count: usize = model.iter().map(Vec::len).sum();
                let bytes: u64 = model.iter().flatten().sum();
                assert!(count as u64 <= count_max && bytes <= bytes_max);
                assert_eq!((holders.total.count, holders.total.bytes), (count as u64, bytes));
                let several = model.iter().filter(|held| !held.is_empty()).count();
                assert_eq!(holders.by_load.len(), if several < 2 { 0 } else { several });
            }
        }
    }

    #[test]
    fn a_neighbour_with_ten_thousand_takes_none_of_anothers_few() {
        let mut holders = Holders::new(1_000, u64::MAX);
        (0..10).for_each(|_| holders.add(&client(0), 1, 10));
        for _ in 0..10_000 {
            holders.add(&client(1), 1, 10);
            if holders.is_over() {
                assert_eq!(holders.largest(), Some(&client(1)));
                holders.sub(&client(1), 10);
            }
        }
    }
}
