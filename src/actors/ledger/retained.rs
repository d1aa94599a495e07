//! The ends of tasks that are remembered: as many as the configuration allows, and of whom when there are too many.
//!
//! Whoever holds most by its weight forgets its oldest first, so nobody's ends vanish because a neighbour has many.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::RetentionConfig;
use crate::core::admission::kept::Kept;
use crate::core::id::{ClientId, TaskId, TaskSeq};
use crate::core::units::Timestamp;

/// One end.
pub(in crate::actors) struct Ended {
    pub(in crate::actors) id: TaskId,
    pub(in crate::actors) seq: TaskSeq,
    pub(in crate::actors) at: Timestamp,
    /// Memory that it goes on holding.
    pub(in crate::actors) bytes: usize,
}

/// Ends in their order, by client and all together.
pub(in crate::actors) struct Retained {
    age: Duration,
    kept: Kept<Ended>,
    /// All of them by number, oldest first, and some that are forgotten already.
    order: VecDeque<(u64, ClientId)>,
    next: u64,
}

impl Retained {
    pub(in crate::actors) fn new(config: &RetentionConfig) -> Self {
        Retained {
            age: Duration::from_millis(config.age_ms),
            kept: Kept::new(config.tasks.into(), config.bytes),
            order: VecDeque::new(),
            next: 0,
        }
    }

    /// Remembers one.
    pub(in crate::actors) fn push(&mut self, client: &ClientId, weight: u32, ended: Ended) {
        self.order.push_back((self.next, client.clone()));
        self.kept.insert(client, weight, self.next, (ended.bytes as u64, ended));
        self.next += 1;
        if self.order.len() > 2 * self.kept.len() + 1_024 {
            self.order.retain(|(number, client)| self.kept.get(client, *number).is_some());
        }
    }

    /// Takes out the next that is to be forgotten.
    pub(in crate::actors) fn pop(&mut self, now: Timestamp) -> Option<Ended> {
        if let Some((_, ended)) = self.kept.evict() {
            return Some(ended);
        }
        loop {
            let (number, client) = self.order.front()?;
            match self.kept.get(client, *number) {
                Some(ended) if now.since(ended.at) <= self.age => return None,
                Some(_) => return self.kept.remove(client, *number),
                None => drop(self.order.pop_front()), // It went before its time.
            }
        }
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
        assert!(kept.kept.len() == 1_000 && kept.order.len() <= 2 * 1_000 + 1_025, "{}", kept.order.len());
        let late = Timestamp::from_micros(1_001_000);
        let aged: Vec<u64> = std::iter::from_fn(|| kept.pop(late)).map(|ended| ended.seq.0).collect();
        assert!(aged.len() == 1_000 && aged[..10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "age forgets everybody's");
        assert!(kept.kept.is_empty() && kept.order.is_empty());
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
            assert!(kept.kept.len() <= 50);
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
