//! What is kept for clients within one bound: whoever holds most by its weight gives way, with its oldest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::check;
use crate::core::id::ClientId;

/// A part of the bound, as a number that can be compared: the whole bound by weight 1.
const WHOLE: u64 = 1 << 40;

/// Things by client and by number, the oldest with the lowest. Numbers of a client only rise.
///
/// The load of a client is the larger of its two parts of the bounds, divided by its weight. When a bound is exceeded,
/// the client with the largest load holds more than its part by weight among those that hold anything, so whoever stays
/// within its part never has to give way. Of clients with the same load the one with the oldest gives way first.
#[derive(Debug)]
pub struct Kept<T> {
    count_max: u64,
    bytes_max: u64,
    count: u64,
    bytes: u64,
    /// Nobody in it holds nothing.
    by_client: BTreeMap<ClientId, Own<T>>,
    /// Clients by load and age; empty while there is only one.
    by_load: BTreeSet<(u64, Reverse<u64>, ClientId)>,
}

/// What one client holds.
#[derive(Debug)]
struct Own<T> {
    held: Held,
    /// By number. What was taken out of the middle leaves a gap; the first is none.
    things: VecDeque<(u64, Option<Thing<T>>)>,
}

#[derive(Debug)]
struct Thing<T> {
    bytes: u64,
    what: T,
}

/// How much that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    count: u64,
    bytes: u64,
    weight: u32,
    /// The number of its oldest one.
    oldest: u64,
}

impl<T> Own<T> {
    fn index_of(&self, number: u64) -> Option<usize> {
        match self.things.front()? {
            (first, _) if *first == number => Some(0),
            _ => self.things.binary_search_by_key(&number, |(number, _)| *number).ok(),
        }
    }

    fn push(&mut self, number: u64, bytes: u64, what: T) {
        debug_assert!(self.things.back().is_none_or(|(last, _)| *last < number), "numbers of a client rise");
        self.things.push_back((number, Some(Thing { bytes, what })));
        self.held = Held { count: self.held.count + 1, bytes: self.held.bytes + bytes, ..self.held };
        self.held.oldest = self.things.front().map_or(0, |(number, _)| *number);
    }

    fn take(&mut self, number: u64) -> Option<T> {
        let index = self.index_of(number)?;
        let Thing { bytes, what } = self.things[index].1.take()?;
        self.held = Held { count: self.held.count - 1, bytes: self.held.bytes - bytes, ..self.held };
        while self.things.front().is_some_and(|(_, thing)| thing.is_none()) {
            self.things.pop_front();
        }
        if self.things.len() > 2 * self.held.count as usize + 64 {
            self.things.retain(|(_, thing)| thing.is_some());
        }
        self.held.oldest = self.things.front().map_or(0, |(number, _)| *number);
        Some(what)
    }
}

impl<T> Kept<T> {
    /// Nothing yet; at most so many, of so many bytes together. One is always allowed.
    pub fn new(count_max: u64, bytes_max: u64) -> Self {
        let (by_client, by_load) = (BTreeMap::new(), BTreeSet::new());
        Kept { count_max: count_max.max(1), bytes_max, count: 0, bytes: 0, by_client, by_load }
    }

    /// Another bound, from now on.
    pub fn set_count_max(&mut self, count_max: u64) {
        if self.count_max != count_max.max(1) {
            self.count_max = count_max.max(1);
            self.rank_all();
        }
    }

    /// Keeps one more of a client, which has this weight as of now. What is too much stays until [`evict`](Self::evict)
    /// is asked for it.
    pub fn insert(&mut self, client: &ClientId, weight: u32, number: u64, (bytes, what): (u64, T)) {
        let (was, held) = match self.by_client.get_mut(client) {
            Some(own) => {
                let was = own.held;
                own.held.weight = weight;
                own.push(number, bytes, what);
                (Some(was), own.held)
            }
            None => {
                let mut own = Own { held: Held { weight, ..Held::default() }, things: VecDeque::new() };
                own.push(number, bytes, what);
                let held = own.held;
                self.by_client.insert(client.clone(), own);
                (None, held)
            }
        };
        self.count += 1;
        self.bytes += bytes;
        self.rank_one(client, was, held);
        check(self.len(), || self.invariants());
    }

    /// The one of a client with this number.
    pub fn get(&self, client: &ClientId, number: u64) -> Option<&T> {
        let own = self.by_client.get(client)?;
        own.things[own.index_of(number)?].1.as_ref().map(|thing| &thing.what)
    }

    /// Takes the one of a client with this number out.
    pub fn remove(&mut self, client: &ClientId, number: u64) -> Option<T> {
        let own = self.by_client.get_mut(client)?;
        let was = own.held;
        let what = own.take(number)?;
        let held = own.held;
        self.count -= 1;
        self.bytes -= was.bytes - held.bytes;
        if held.count == 0 {
            self.by_client.remove(client);
        }
        self.rank_one(client, Some(was), held);
        check(self.len(), || self.invariants());
        Some(what)
    }

    /// While there is too much, takes out the oldest of whoever holds most by its weight. That may be the newest of
    /// all, where it is the only one of a client of little weight.
    pub fn evict(&mut self) -> Option<(ClientId, T)> {
        self.evict_unless(|_| false)
    }

    /// The same where the newest of all, which has this number, stays: whoever has it as its oldest, and so has no
    /// other, gives no way.
    pub fn evict_beside(&mut self, newest: u64) -> Option<(ClientId, T)> {
        self.evict_unless(|oldest| oldest == newest)
    }

    fn evict_unless(&mut self, stays: impl Fn(u64) -> bool) -> Option<(ClientId, T)> {
        if self.count <= self.count_max && self.bytes <= self.bytes_max {
            return None;
        }
        let (client, oldest) = match self.by_load.iter().rev().find(|(_, Reverse(oldest), _)| !stays(*oldest)) {
            Some((_, Reverse(oldest), client)) => (client.clone(), *oldest),
            None => {
                let (only, own) = self.by_client.first_key_value()?;
                (only.clone(), own.held.oldest)
            }
        };
        if stays(oldest) {
            return None;
        }
        self.remove(&client, oldest).map(|what| (client, what))
    }

    /// All of them, by client and then by number.
    pub fn iter(&self) -> impl Iterator<Item = (&ClientId, u64, &T)> {
        self.by_client.iter().flat_map(|(client, own)| {
            let held = own.things.iter();
            held.filter_map(move |(number, thing)| Some((client, *number, &thing.as_ref()?.what)))
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        let (mut count, mut bytes) = (0, 0);
        for (client, own) in &self.by_client {
            let things = own.things.iter().filter_map(|(_, thing)| thing.as_ref());
            assert_eq!(own.held.count, things.clone().count() as u64, "a client's count is what it holds");
            assert_eq!(own.held.bytes, things.map(|thing| thing.bytes).sum::<u64>(), "and so are its bytes");
            let first = own.things.front().expect("who holds nothing is forgotten");
            assert!(first.1.is_some() && first.0 == own.held.oldest, "the first is the oldest that is held");
            assert!(own.things.iter().is_sorted_by(|(before, _), (after, _)| before < after), "numbers rise");
            assert!(
                self.by_load.is_empty() || self.by_load.contains(&self.rank(client, &own.held)),
                "each has its rank"
            );
            (count, bytes) = (count + own.held.count, bytes + own.held.bytes);
        }
        assert_eq!((count, bytes), (self.count, self.bytes), "the sums are those of the clients");
        let ranked = if self.by_client.len() > 1 { self.by_client.len() } else { 0 };
        assert_eq!(self.by_load.len(), ranked, "two or more are ranked, one alone is not");
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
            _ => self.by_client.iter().map(|(client, own)| self.rank(client, &own.held)).collect(),
        };
    }

    /// One client holds this now. Alone it has no rank.
    fn rank_one(&mut self, client: &ClientId, was: Option<Held>, held: Held) {
        if self.by_load.is_empty() || self.by_client.len() < 2 {
            if self.by_client.len() > 1 || !self.by_load.is_empty() {
                self.rank_all();
            }
            return;
        }
        if let Some(was) = was {
            self.by_load.remove(&self.rank(client, &was));
        }
        if held.count > 0 {
            self.by_load.insert(self.rank(client, &held));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(who: usize) -> ClientId {
        ClientId::parse(&format!("c{who}")).expect("valid")
    }

    /// Whose, number and bytes; oldest first.
    type Model = Vec<(usize, u64, u64)>;

    /// Of `kept` one was evicted: the oldest of somebody that held more than its part by weight.
    fn check_evicted(
        model: &mut Model,
        (count_max, bytes_max): (u64, u64),
        (whose, number): (&ClientId, u64),
        weight: impl Fn(usize) -> u64,
    ) {
        let oldest = model.iter().position(|(who, ..)| client(*who) == *whose).expect("it has some");
        let (who, ..) = model[oldest];
        assert_eq!(model[oldest].1, number);
        let mut holding: Vec<usize> = model.iter().map(|(who, ..)| *who).collect();
        holding.sort_unstable();
        holding.dedup();
        let sum: u64 = holding.into_iter().map(&weight).sum();
        let (count, bytes) = model
            .iter()
            .filter(|held| held.0 == who)
            .fold((0, 0), |(count, all), (.., bytes)| (count + 1, all + bytes));
        let above = |held: u64, most: u64| (held + 1) * sum * 100 > most * weight(who) * 99;
        assert!(above(count, count_max) || above(bytes, bytes_max), "it holds more than its part");
        model.remove(oldest);
    }

    #[test]
    fn who_stays_within_its_part_by_weight_never_gives_way_and_the_bounds_hold() {
        let mut random = fastrand::Rng::with_seed(8);
        for _ in 0..200 {
            let bounds = (random.u64(1..200), random.u64(1..20_000));
            let weights: Vec<u32> = (0..5).map(|_| random.u32(1..10)).collect();
            let mut kept = Kept::new(bounds.0, bounds.1);
            let mut model = Model::new();
            for number in 0..500 {
                let (who, bytes) = (random.usize(0..5), random.u64(0..300));
                kept.insert(&client(who), weights[who], number, (bytes, number));
                model.push((who, number, bytes));
                if random.u8(0..4) == 0 {
                    let (who, number, _) = model.remove(random.usize(..model.len()));
                    assert_eq!(
                        (kept.remove(&client(who), number), kept.get(&client(who), number)),
                        (Some(number), None)
                    );
                }
                while let Some((whose, evicted)) = kept.evict() {
                    check_evicted(&mut model, bounds, (&whose, evicted), |who| u64::from(weights[who]));
                }
                let bytes: u64 = model.iter().map(|(.., bytes)| bytes).sum();
                assert!(
                    model.len() as u64 <= bounds.0
                        && bytes <= bounds.1
                        && kept.len() == model.len()
                        && kept.bytes == bytes
                );
                let several = kept.by_client.len();
                assert_eq!(kept.by_load.len(), if several < 2 { 0 } else { several });
            }
            let mut left: Vec<u64> = kept.iter().map(|(_, number, _)| number).collect();
            left.sort_unstable();
            assert!(left.into_iter().eq(model.iter().map(|(_, number, _)| *number)));
            model.iter().for_each(|(who, number, _)| assert!(kept.remove(&client(*who), *number).is_some()));
            assert_eq!((kept.is_empty(), kept.len(), kept.evict().is_none()), (true, 0, true));
        }
    }

    #[test]
    fn the_newest_of_all_can_be_spared() {
        let mut kept = Kept::new(1, u64::MAX);
        kept.insert(&client(1), 100, 1, (1, 'a'));
        kept.insert(&client(2), 1, 2, (1, 'b'));
        assert_eq!(kept.evict_beside(2), Some((client(1), 'a')), "though the other has more by weight");
        kept.set_count_max(0);
        assert_eq!((kept.evict_beside(2), kept.len()), (None, 1), "one is always allowed");
    }

    #[test]
    fn of_equal_ones_the_oldest_gives_way_and_never_who_came_last() {
        let mut kept = Kept::new(3, u64::MAX);
        [(7, 10), (2, 20), (9, 30), (1, 40)]
            .into_iter()
            .for_each(|(who, number)| kept.insert(&client(who), 1, number, (1, ())));
        assert_eq!(kept.evict(), Some((client(7), ())));
        kept.set_count_max(2);
        assert_eq!(kept.evict_beside(20), Some((client(9), ())));
        assert_eq!(kept.evict(), None);
    }

    #[test]
    fn gaps_do_not_add_up() {
        let mut kept = Kept::new(10, 0);
        kept.set_count_max(u64::MAX);
        kept.insert(&client(1), 1, 0, (0, ()));
        for number in 1..10_000 {
            kept.insert(&client(1), 1, number, (0, ()));
            assert_eq!(kept.remove(&client(1), number), Some(()));
        }
        assert!(kept.by_client[&client(1)].things.len() <= 66 + 1);
    }
}
