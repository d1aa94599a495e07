//! Service that counts in more than one place: what one queue's accounts charge is told to the others that keep the
//! same clients, on other nodes, and counts there as if it had been served there (FAIR-1).

use crate::core::fairness::Accounts;
use crate::core::fairness::cost::price;
use crate::core::id::{ClientId, TaskSeq};
use crate::core::task::Priority;

/// A charge or its correction, for those who keep the same client's accounts elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charged {
    /// The task.
    pub seq: TaskSeq,
    /// Whose it is.
    pub client: ClientId,
    /// Its class.
    pub class: Priority,
    /// Weighted tokens; less than nothing when more was charged before.
    pub cost: i64,
}

/// Most entries of the journal. Nobody asks for them any more when there are so many.
const JOURNAL_MAX: usize = 65_536;

/// What has been charged since somebody last asked; `None` while nobody asks.
#[derive(Debug, Default)]
pub(in crate::core) struct ChargeFeed(Option<Vec<Charged>>);

impl ChargeFeed {
    pub(in crate::core) fn note(&mut self, seq: TaskSeq, client: &ClientId, class: Priority, cost: i64) {
        let Some(entries) = self.0.as_mut().filter(|_| cost != 0) else { return };
        if entries.len() >= JOURNAL_MAX {
            self.0 = None;
            return;
        }
        entries.push(Charged { seq, client: client.clone(), class, cost });
    }
}

impl Accounts {
    /// What has been charged and corrected since the last call. The first call begins to keep it.
    pub fn take_journal(&mut self) -> Vec<Charged> {
        std::mem::take(self.journal.0.get_or_insert_default())
    }

    /// A client that is known here has been served elsewhere, at this cost: its next turn here is that much later.
    pub(crate) fn serve_elsewhere(&mut self, slot: u32, class: Priority, cost: i64) {
        let account = &mut self.accounts[slot as usize];
        let virtual_time = price(cost.unsigned_abs(), account.weight);
        let time = &mut account.time[class.index()];
        // The least there is, when nothing of it has come in this class yet: it joins in at the start when something
        // does.
        *time = time.saturating_add(if cost < 0 { -virtual_time } else { virtual_time });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fairness::{CostWeights, Served, Size, Virtual};
    use crate::core::units::Tokens;

    fn client(name: &str) -> ClientId {
        ClientId::parse(name).expect("valid")
    }

    fn enter(accounts: &mut Accounts, name: &str, weight: u32) -> u32 {
        let known = accounts.slot(&client(name));
        accounts.enter(&client(name), known, weight)
    }

    fn size(prompt: u32, output_max: u32) -> Size {
        Size::new(Tokens(prompt), Tokens(output_max), None)
    }

    #[test]
    fn what_was_served_elsewhere_counts_as_if_it_had_been_served_here() {
        let (mut here, mut there) =
            (Accounts::new(CostWeights::default(), [9, 1]), Accounts::new(CostWeights::default(), [9, 1]));
        let [slot, other] = [&mut here, &mut there].map(|accounts| {
            let slot = enter(accounts, "a", 2);
            accounts.catch_up(slot, Priority::Batch, None);
            slot
        });
        assert!(here.take_journal().is_empty(), "from here on it is kept");
        here.charge(TaskSeq(1), slot, Priority::Batch, size(10, 100), None);
        here.settle(TaskSeq(1), Served::Whole { prompt: Tokens(10), output: Tokens(7) });
        let journal = here.take_journal();
        assert_eq!(journal.iter().map(|entry| entry.cost).collect::<Vec<_>>(), [210, 24 - 210]);
        assert!(here.take_journal().is_empty(), "once");
        for entry in journal {
            there.serve_elsewhere(other, entry.class, entry.cost);
        }
        assert_eq!(there.time(&client("a"), Priority::Batch), here.time(&client("a"), Priority::Batch));
        there.serve_elsewhere(other, Priority::Interactive, -5);
        assert_eq!(
            there.time(&client("a"), Priority::Interactive),
            Some(Virtual::MIN),
            "it has not come in this class"
        );
    }

    #[test]
    fn a_journal_that_nobody_asks_for_ends() {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let slot = enter(&mut accounts, "a", 1);
        accounts.take_journal();
        for number in 0..=JOURNAL_MAX as u64 {
            accounts.charge(TaskSeq(number), slot, Priority::Batch, size(1, 1), None);
        }
        assert!(accounts.journal.0.is_none());
    }
}
