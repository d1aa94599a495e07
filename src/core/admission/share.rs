//! One bound over what all clients together make us hold, and a part of it for each that leaves room for the others.

use std::collections::BTreeMap;

use crate::core::check;
use crate::core::id::ClientId;

/// So much of something, held for clients.
///
/// A client may hold as much as is left free behind it: alone it gets half, two that grow together a third each, and
/// some is always left for whoever comes next, who may take any of it. That is the dynamic threshold of shared-memory
/// switches with the factor 1 (Choudhury and Hahne, *Dynamic queue length thresholds for shared-memory packet
/// switches*, IEEE/ACM ToN 1998), which needs no list of who might come.
#[derive(Debug)]
pub struct Share {
    most: u64,
    used: u64,
    by_client: BTreeMap<ClientId, u64>,
}

impl Share {
    /// Nothing is held yet of `most`.
    pub fn new(most: u64) -> Self {
        Share { most, used: 0, by_client: BTreeMap::new() }
    }

    /// Another bound, from now on; what is held stays.
    pub fn set_most(&mut self, most: u64) {
        self.most = most;
    }

    /// All that is held.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// What this client holds.
    pub fn held(&self, client: &ClientId) -> u64 {
        self.by_client.get(client).copied().unwrap_or_default()
    }

    /// Takes `amount` for a client, if that leaves it within its part; returns whether it did. `own` is what the taker
    /// holds of it already: a client's first is bounded by what is free alone.
    pub fn try_take(&mut self, client: &ClientId, amount: u64, own: u64) -> bool {
        let free = self.most.saturating_sub(self.used);
        let held = self.held(client);
        let is_first = held <= own;
        let fits = amount <= free && (is_first || held.saturating_add(amount) <= free.saturating_sub(amount));
        if fits && amount > 0 {
            self.used += amount;
            *self.by_client.entry(client.clone()).or_default() += amount;
        }
        check(self.by_client.len(), || self.invariants());
        fits
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        assert_eq!(self.used, self.by_client.values().sum::<u64>(), "all that is held is held by somebody");
        assert!(self.by_client.values().all(|held| *held > 0), "who holds nothing is forgotten");
    }

    /// Gives back what was taken.
    pub fn give(&mut self, client: &ClientId, amount: u64) {
        let Some(held) = self.by_client.get_mut(client) else { return };
        let amount = amount.min(*held);
        *held -= amount;
        self.used -= amount;
        if *held == 0 {
            self.by_client.remove(client);
        }
        check(self.by_client.len(), || self.invariants());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> ClientId {
        ClientId::parse(&format!("c{number}")).expect("valid")
    }

    #[test]
    fn a_client_alone_gets_half_and_leaves_the_rest() {
        let mut share = Share::new(100);
        let taken = (0..100).filter(|_| share.try_take(&client(0), 1, 0)).count();
        assert_eq!(taken, 50);
        let taken = (0..100).filter(|_| share.try_take(&client(1), 1, 0)).count();
        assert_eq!(taken, 25, "half of what is left");
        assert!(share.try_take(&client(2), 25, 0), "who holds nothing may take what is left");
        assert!(!share.try_take(&client(3), 1, 0) && share.used() == 100);
        share.give(&client(0), 50);
        assert!(share.try_take(&client(3), 40, 0) && share.held(&client(3)) == 40);
    }

    #[test]
    fn one_that_grows_is_bounded_by_what_is_free_as_long_as_it_is_the_only_one() {
        let mut share = Share::new(100);
        assert!(share.try_take(&client(0), 60, 0) && share.try_take(&client(0), 40, 60));
        assert!(!share.try_take(&client(0), 1, 100));
    }

    #[test]
    fn the_sums_are_right_and_the_bound_holds_whatever_comes() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let most = random.u64(0..1_000);
            let (mut share, mut model) = (Share::new(most), vec![Vec::<u64>::new(); 5]);
            for _ in 0..300 {
                let who = random.usize(0..5);
                match random.bool() {
                    true => {
                        let amount = random.u64(0..120);
                        let before = share.used();
                        let held = share.held(&client(who));
                        if share.try_take(&client(who), amount, 0) {
                            model[who].push(amount);
                            assert!(held == 0 || held + amount <= most - before - amount, "the others' room is kept");
                        } else {
                            assert!(
                                amount > most - before || held > 0,
                                "who holds nothing is not refused what is free"
                            );
                        }
                    }
                    false => {
                        if let Some(amount) = model[who].pop() {
                            share.give(&client(who), amount);
                        }
                    }
                }
                let sums: Vec<u64> = model.iter().map(|held| held.iter().sum()).collect();
                assert!(share.used() == sums.iter().sum::<u64>() && share.used() <= most);
                assert!(sums.iter().enumerate().all(|(who, sum)| share.held(&client(who)) == *sum));
            }
        }
    }
}
