//! What is kept for clients within one bound: whoever holds most by its weight gives way, with its oldest.

use std::collections::BTreeMap;

use crate::core::holders::{Held, Holders};
use crate::core::id::ClientId;

/// Things by client and by number, the oldest with the lowest.
#[derive(Debug)]
pub struct Kept<T> {
    holders: Holders,
    /// With the bytes of each. Never empty for a client.
    by_client: BTreeMap<ClientId, BTreeMap<u64, (u64, T)>>,
}

impl<T> Kept<T> {
    /// Nothing yet; at most so many, of so many bytes together. One is always allowed.
    pub fn new(count_max: u64, bytes_max: u64) -> Self {
        Kept { holders: Holders::new(count_max, bytes_max), by_client: BTreeMap::new() }
    }

    /// Another bound, from now on.
    pub fn set_count_max(&mut self, count_max: u64) {
        self.holders.set_count_max(count_max);
    }

    /// Keeps one more of a client, which has this weight as of now. What is too much stays until [`evict`](Self::evict) is asked for it.
    pub fn insert(&mut self, client: &ClientId, weight: u32, number: u64, (bytes, what): (u64, T)) {
        match self.by_client.get_mut(client) {
            Some(own) => drop(own.insert(number, (bytes, what))),
            None => drop(self.by_client.insert(client.clone(), BTreeMap::from([(number, (bytes, what))]))),
        }
        let held = self.holders.get(client);
        self.note(client, Held { count: held.count + 1, bytes: held.bytes + bytes, weight, ..held });
    }

    /// The one of a client with this number.
    pub fn get(&self, client: &ClientId, number: u64) -> Option<&T> {
        self.by_client.get(client)?.get(&number).map(|(_, what)| what)
    }

    /// Takes the one of a client with this number out.
    pub fn remove(&mut self, client: &ClientId, number: u64) -> Option<T> {
        let own = self.by_client.get_mut(client)?;
        let (bytes, what) = own.remove(&number)?;
        if own.is_empty() {
            self.by_client.remove(client);
        }
        let held = self.holders.get(client);
        self.note(client, Held { count: held.count - 1, bytes: held.bytes - bytes, ..held });
        Some(what)
    }

    /// While there is too much, takes out the oldest of whoever holds most by its weight. That may be the newest of all, where it is the
    /// only one of a client of little weight.
    pub fn evict(&mut self) -> Option<(ClientId, T)> {
        self.evict_of(self.holders.largest()?.clone())
    }

    /// The same where the newest of all, which has this number, stays.
    pub fn evict_beside(&mut self, newest: u64) -> Option<(ClientId, T)> {
        self.evict_of(self.holders.largest_beside(newest)?.clone())
    }

    fn evict_of(&mut self, client: ClientId) -> Option<(ClientId, T)> {
        if !self.holders.is_over() {
            return None;
        }
        let oldest = *self.by_client.get(&client)?.first_key_value()?.0;
        self.remove(&client, oldest).map(|what| (client, what))
    }

    /// All of them, by client and then by number.
    pub fn iter(&self) -> impl Iterator<Item = (&ClientId, u64, &T)> {
        self.by_client
            .iter()
            .flat_map(|(client, own)| own.iter().map(move |(number, (_, what))| (client, *number, what)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.holders.count() as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    fn note(&mut self, client: &ClientId, held: Held) {
        let first = self.by_client.get(client).and_then(BTreeMap::first_key_value);
        self.holders.set(client, Held { oldest: first.map_or(0, |(number, _)| *number), ..held });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_whose_bounds_hold_and_each_clients_oldest_goes_first() {
        let mut random = fastrand::Rng::with_seed(8);
        let client = |who: usize| ClientId::parse(&format!("c{who}")).expect("valid");
        let mut kept = Kept::new(40, 1_000);
        let mut model: Vec<(usize, u64, u64)> = Vec::new(); // Whose, number and bytes; oldest first.
        for number in 0..5_000 {
            let (who, bytes) = (random.usize(0..4), random.u64(0..100));
            kept.insert(&client(who), 1 + who as u32, number, (bytes, number));
            model.push((who, number, bytes));
            if random.u8(0..4) == 0 {
                let (who, number, _) = model.remove(random.usize(..model.len()));
                assert_eq!((kept.remove(&client(who), number), kept.get(&client(who), number)), (Some(number), None));
            }
            let stays = random.bool();
            while let Some((whose, evicted)) = if stays { kept.evict_beside(number) } else { kept.evict() } {
                assert!(!stays || evicted != number);
                let oldest = model.iter().position(|(who, ..)| client(*who) == whose).expect("it has some");
                assert_eq!(model.remove(oldest).1, evicted);
            }
            let bytes: u64 = model.iter().map(|(.., bytes)| bytes).sum();
            assert!(model.len() <= 40 && bytes <= 1_000 && kept.len() == model.len());
        }
        let mut left: Vec<u64> = kept.iter().map(|(_, number, _)| number).collect();
        left.sort_unstable();
        assert!(left.into_iter().eq(model.iter().map(|(_, number, _)| *number)));
        model.iter().for_each(|(who, number, _)| assert!(kept.remove(&client(*who), *number).is_some()));
        assert_eq!((kept.is_empty(), kept.len(), kept.evict().is_none()), (true, 0, true));
    }
}
