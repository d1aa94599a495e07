//! The ends of tasks that are remembered: as many as the configuration allows, and of whom when there are too many.
//!
//! Whoever holds most by its weight forgets its oldest first, so nobody's ends vanish because a neighbour has many.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::config::RetentionConfig;
use crate::core::holders::{Held, Holders};
use crate::core::id::{ClientId, TaskId, TaskSeq};
use crate::core::units::Timestamp;

/// One end.
pub(super) struct Ended {
    pub(super) id: TaskId,
    pub(super) seq: TaskSeq,
    pub(super) at: Timestamp,
    /// Memory that it goes on holding.
    pub(super) bytes: usize,
}

/// Ends in their order, by client and all together.
pub(super) struct Retained {
    age: Duration,
    holders: Holders,
    /// Never empty for a client; oldest first.
    by_client: BTreeMap<ClientId, VecDeque<(u64, Ended)>>,
    /// All of them by number, oldest first, and some that are forgotten already.
    order: VecDeque<(u64, ClientId)>,
    count: usize,
    next: u64,
}

impl Retained {
    pub(super) fn new(config: &RetentionConfig) -> Self {
        Retained {
            age: Duration::from_millis(config.age_ms),
            holders: Holders::new(config.tasks.into(), config.bytes),
            by_client: BTreeMap::new(),
            order: VecDeque::new(),
            count: 0,
            next: 0,
        }
    }

    /// Remembers one.
    pub(super) fn push(&mut self, client: &ClientId, weight: u32, ended: Ended) {
        let bytes = self.holders.get(client).bytes + ended.bytes as u64;
        let entry = (self.next, ended);
        self.order.push_back((self.next, client.clone()));
        self.next += 1;
        self.count += 1;
        match self.by_client.get_mut(client) {
            Some(own) => own.push_back(entry),
            None => drop(self.by_client.insert(client.clone(), VecDeque::from([entry]))),
        }
        self.tell(client, bytes, weight);
        if self.order.len() > 2 * self.count + 1_024 {
            // A client's own go in their order: what is not before its oldest is there.
            let oldest =
                |client: &ClientId| self.by_client.get(client).and_then(VecDeque::front).map(|(oldest, _)| *oldest);
            self.order.retain(|(number, client)| oldest(client).is_some_and(|oldest| oldest <= *number));
        }
    }

    /// Takes out the next that is to be forgotten.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Ended> {
        if let Some(client) = self.holders.largest().filter(|_| self.holders.is_over()).cloned() {
            return self.take_oldest(&client);
        }
        loop {
            let (number, client) = self.order.front()?;
            match self.by_client.get(client).and_then(VecDeque::front) {
                Some((oldest, ended)) if oldest == number => {
                    if now.since(ended.at) <= self.age {
                        return None;
                    }
                    let client = client.clone();
                    return self.take_oldest(&client);
                }
                _ => drop(self.order.pop_front()), // It went before its time.
            }
        }
    }

    fn take_oldest(&mut self, client: &ClientId) -> Option<Ended> {
        let own = self.by_client.get_mut(client)?;
        let (_, ended) = own.pop_front()?;
        if own.is_empty() {
            self.by_client.remove(client);
        }
        let held = self.holders.get(client);
        self.tell(client, held.bytes - ended.bytes as u64, held.weight);
        self.count -= 1;
        Some(ended)
    }

    /// Notes what a client holds now.
    fn tell(&mut self, client: &ClientId, bytes: u64, weight: u32) {
        let own = self.by_client.get(client);
        let oldest = own.and_then(VecDeque::front).map_or(0, |(number, _)| *number);
        let count = own.map_or(0, VecDeque::len) as u64;
        self.holders.set(client, Held { count, bytes, weight, oldest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> ClientId {
        ClientId::parse(name).expect("valid")
    }

    fn ended(seq: u64, at_ms: u64) -> Ended {
        let id = TaskId::parse(&format!("t{seq}")).expect("valid");
        Ended { id, seq: TaskSeq(seq), at: Timestamp::from_micros(at_ms * 1_000), bytes: 10 }
    }

    fn retained(tasks: u32) -> Retained {
        Retained::new(&RetentionConfig { tasks, bytes: 1 << 40, age_ms: 1_000 })
    }

    #[test]
    fn a_neighbours_many_ends_forget_none_of_mine() {
        let mut kept = retained(1_000);
        let at = Timestamp::from_micros(0);
        (0..10).for_each(|seq| kept.push(&client("alice"), 1, ended(seq, 0)));
        let mut forgotten = Vec::new();
        for seq in 10..20_000 {
            kept.push(&client("bob"), 1, ended(seq, 0));
            forgotten.extend(std::iter::from_fn(|| kept.pop(at)).map(|ended| ended.seq.0));
        }
        assert!(forgotten.iter().all(|seq| *seq >= 10) && forgotten.is_sorted(), "bob's own oldest");
        assert!(kept.count == 1_000 && kept.order.len() <= 2 * 1_000 + 1_025, "{}", kept.order.len());
        let late = Timestamp::from_micros(1_001_000);
        let aged: Vec<u64> = std::iter::from_fn(|| kept.pop(late)).map(|ended| ended.seq.0).collect();
        assert!(aged.len() == 1_000 && aged[..10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "age forgets everybody's");
        assert!(kept.by_client.is_empty() && kept.order.is_empty());
    }

    #[test]
    fn whatever_comes_each_end_is_forgotten_once_and_in_its_clients_order() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut kept = retained(50);
        let (mut pushed, mut seen) = (Vec::new(), Vec::new());
        for seq in 0..5_000 {
            let who = random.usize(0..4);
            pushed.push(who);
            kept.push(&client(["a", "b", "c", "d"][who]), 1 + who as u32, ended(seq, seq));
            seen.extend(std::iter::from_fn(|| kept.pop(Timestamp::from_micros(seq * 1_000))).map(|ended| ended.seq.0));
            assert!(kept.count <= 50);
        }
        seen.extend(std::iter::from_fn(|| kept.pop(Timestamp::from_micros(u64::MAX / 2))).map(|ended| ended.seq.0));
        for who in 0..4 {
            let own: Vec<u64> = seen.iter().copied().filter(|seq| pushed[*seq as usize] == who).collect();
            assert!(own.is_sorted(), "oldest first");
        }
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..5_000));
    }
}
