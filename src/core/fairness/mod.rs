//! Who has been served how much: the accounts that a pool's order rests on (FAIR-1).
//!
//! Two levels of virtual time. A *class* has a tag (start-time fair queueing, Goyal 1996), a *client* has a counter in
//! each class (virtual token counter, "Fairness in Serving Large Language Models", OSDI 2024, here with weights). Both
//! advance by the cost of what is dispatched, divided by the weight; whoever has the least is served next.
//!
//! A task's cost is its prompt and its output in tokens, weighted. The output is not known when the task is dispatched,
//! so an estimate is charged and corrected when it ends: in the end a client has paid exactly for what was computed for
//! it. A task that comes back to be run again is refunded whole, so a lost attempt costs nobody.
//!
//! The accounts know nothing of what waits; [`Queue`](crate::core::queue::Queue) does. They outlive it, so that a queue
//! that is built anew goes on where the last one stood.

#[doc(hidden)]
pub mod charge_feed;
pub(in crate::core) mod cost;
#[doc(hidden)]
pub mod hash;
pub(in crate::core) mod ranks;
#[doc(hidden)]
pub mod usage;

use std::collections::HashMap;

use slab::Slab;

use crate::core::fairness::charge_feed::ChargeFeed;
use crate::core::fairness::cost::UsualOutput;
pub use crate::core::fairness::cost::{CostWeights, SCALE, Served, Size, Virtual, WEIGHT_MAX, price};
use crate::core::fairness::hash::SeqMap;
use crate::core::fairness::ranks::Ranks;
use crate::core::id::{ClientId, SessionId, TaskSeq};
use crate::core::task::Priority;
use crate::core::units::Tokens;

/// Clients without a task that are remembered, with their debts and their usual output. Beyond them one that was not
/// seen for long is forgotten, and forgiven: what outsiders can make us remember has a bound.
pub const IDLE_CLIENTS_MAX: usize = 16_384;

/// A dispatched task that is not settled yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    /// What was charged for it.
    cost: u64,
    pub(crate) client: u32,
    pub(crate) class: Priority,
    /// Whether it keeps a conversation busy.
    has_session: bool,
}

/// One client. What each task touches lies in one cache line; beside ten thousand clients it is seldom at hand.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Account {
    /// Virtual time in each class.
    pub(crate) time: [Virtual; 2],
    pub(crate) weight: u32,
    /// Tasks that wait in each class.
    waiting: [u32; 2],
    /// Tasks of the client that wait or are not settled. The account is not forgotten while there are any.
    uses: u32,
    usual: UsualOutput,
    /// A task has come since the hand passed by.
    seen: bool,
    /// The place of `id` among all, as a number.
    pub(crate) rank: u64,
    // ---- beyond the first line
    pub(crate) id: ClientId,
}

const _: () = assert!(size_of::<Account>() == 128 && std::mem::offset_of!(Account, id) <= 64);

/// No slot.
const NIL: u32 = u32::MAX;

/// The clients without a task. When there are too many, a hand goes round over all clients and forgets the first
/// without a task that it has not seen one of since it last passed ("second chance"): a task that comes or goes touches
/// no list.
#[derive(Debug, Default)]
struct Idle {
    count: usize,
    /// The slot that is looked at next.
    hand: usize,
    /// Slots there have ever been.
    slots: usize,
}

/// The accounts of one pool.
#[derive(Debug)]
pub struct Accounts {
    costs: CostWeights,
    /// Weight of each class.
    class_weights: [u32; 2],
    /// Virtual time of one weighted token in each class: the other class's weight, by their greatest common divisor.
    /// The shares are exact in integers, and nothing is divided.
    class_prices: [Virtual; 2],
    /// Virtual time of each class.
    tags: [Virtual; 2],
    /// Tag of the class that was dispatched last, before it was charged: where a class that was empty joins in.
    now: Virtual,
    /// Of each class, the most that a client had when a task of it was dispatched, before it was charged: the start of
    /// what runs now, where a client joins in.
    start: [Virtual; 2],
    pub(in crate::core) accounts: Slab<Account>,
    by_id: HashMap<ClientId, u32>,
    /// The client that came last.
    last: u32,
    ranks: Ranks,
    /// Invariant: counts the accounts whose `uses` is 0.
    idle: Idle,
    charges: SeqMap<Charge>,
    /// The conversations that are kept busy by tasks of `charges`.
    sessions: SeqMap<SessionId>,
    /// What has been charged and corrected since somebody last asked.
    pub(in crate::core) journal: ChargeFeed,
}

impl Accounts {
    /// Accounts of nobody yet.
    pub fn new(costs: CostWeights, class_weights: [u32; 2]) -> Self {
        let [a, b] = class_weights;
        let divisor = gcd(a, b).max(1);
        Accounts {
            costs,
            class_weights,
            class_prices: [(b / divisor).into(), (a / divisor).into()],
            tags: [0; 2],
            now: 0,
            start: [0; 2],
            accounts: Slab::new(),
            by_id: HashMap::new(),
            last: NIL,
            ranks: Ranks::default(),
            idle: Idle::default(),
            charges: SeqMap::default(),
            sessions: SeqMap::default(),
            journal: ChargeFeed::default(),
        }
    }

    /// Weight of each class, by [`Priority::index`].
    pub fn class_weights(&self) -> [u32; 2] {
        self.class_weights
    }

    /// Virtual time of a class.
    pub fn tag(&self, class: Priority) -> Virtual {
        self.tags[class.index()]
    }

    /// Virtual time of a client in a class; `None` when nothing is remembered of it.
    pub fn time(&self, client: &ClientId, class: Priority) -> Option<Virtual> {
        self.slot(client).map(|slot| self.account(slot).time[class.index()])
    }

    /// The client's usual output, once a task of it has run to its end.
    pub fn usual_output(&self, client: &ClientId) -> Option<Tokens> {
        self.slot(client).and_then(|slot| self.account(slot).usual.tokens())
    }

    /// Clients with a task that waits or is not settled: name, weight, tasks that wait in each class, tasks that are
    /// out, those in `ended` left out. In the order of their names; one walk over all that are remembered.
    pub fn busy(&self, ended: &[TaskSeq]) -> Vec<(ClientId, u32, [u32; 2], u32)> {
        let mut over: HashMap<u32, u32> = HashMap::new(); // Looked up by key only.
        for charge in ended.iter().filter_map(|seq| self.charges.get(seq)) {
            *over.entry(charge.client).or_default() += 1;
        }
        let with_tasks = self.accounts.iter().filter(|(_, account)| account.uses > 0);
        let mut busy: Vec<_> = with_tasks
            .map(|(slot, account)| {
                let over = over.get(&(slot as u32)).copied().unwrap_or(0);
                let out = account.uses.saturating_sub(account.waiting.iter().sum::<u32>() + over);
                (account.id.clone(), account.weight, account.waiting, out)
            })
            .collect();
        busy.sort_by(|a, b| a.0.cmp(&b.0));
        busy
    }

    /// Tasks of the client that wait in this class.
    pub fn waiting(&self, client: &ClientId, class: Priority) -> u32 {
        self.slot(client).map_or(0, |slot| self.waiting_in(slot, class))
    }

    pub(crate) fn waiting_in(&self, slot: u32, class: Priority) -> u32 {
        self.account(slot).waiting[class.index()]
    }

    /// Counts a task that waits in (1) or out (-1); returns how many there were and are.
    pub(crate) fn count_waiting(&mut self, slot: u32, class: Priority, change: i32) -> (u32, u32) {
        let waiting = &mut self.accounts[slot as usize].waiting[class.index()];
        let was = *waiting;
        *waiting = was.wrapping_add_signed(change);
        (was, *waiting)
    }

    /// Nothing waits any more: the queue that counted it is gone. What was charged stays.
    pub(crate) fn forget_waiting(&mut self) {
        self.idle.count = 0;
        for (_, account) in &mut self.accounts {
            (account.waiting, account.uses) = ([0; 2], 1);
        }
        for charge in self.charges.values() {
            self.accounts[charge.client as usize].uses += 1;
        }
        let slots: Vec<u32> = self.accounts.iter().map(|(slot, _)| slot as u32).collect();
        slots.into_iter().for_each(|slot| self.leave(slot)); // Each had one use too many, to be found idle here.
    }

    /// Number of tasks that were dispatched and are not settled.
    pub fn charged(&self) -> usize {
        self.charges.len()
    }

    /// Whether this task was dispatched and is not settled.
    pub fn is_charged(&self, seq: TaskSeq) -> bool {
        self.charges.contains_key(&seq)
    }

    /// Tasks that were dispatched and are not settled, in the order of their numbers.
    pub fn unsettled(&self) -> Vec<TaskSeq> {
        let mut found: Vec<TaskSeq> = self.charges.keys().copied().collect();
        found.sort_unstable();
        found
    }

    /// Checks that nobody is remembered in one place and forgotten in another.
    pub(crate) fn invariants(&self) {
        let known = [self.accounts.len(), self.by_id.len(), self.ranks.len()];
        assert!(known.iter().all(|count| *count == known[0]), "accounts, ids and ranks: {known:?}");
        let idle = self.accounts.iter().filter(|(_, account)| account.uses == 0).count();
        assert_eq!(self.idle.count, idle, "those without a task are counted");
    }

    /// Clients that are remembered.
    pub fn clients(&self) -> usize {
        self.accounts.len()
    }

    pub(crate) fn slot(&self, client: &ClientId) -> Option<u32> {
        // Tasks of one client come in rows; the one looked up last needs no hash.
        match self.accounts.get(self.last as usize) {
            Some(account) if account.id == *client => Some(self.last),
            _ => self.by_id.get(client).copied(),
        }
    }

    pub(crate) fn account(&self, slot: u32) -> &Account {
        &self.accounts[slot as usize]
    }

    /// The conversations that have a task out: whose, and which.
    pub(crate) fn busy_sessions(&self) -> impl Iterator<Item = (u32, &SessionId)> {
        self.sessions.iter().filter_map(|(seq, session)| Some((self.charges.get(seq)?.client, session)))
    }

    /// Virtual time of one weighted token in this class.
    pub(crate) fn class_price(&self, class: Priority) -> Virtual {
        self.class_prices[class.index()]
    }

    pub(crate) fn charges(&self) -> impl Iterator<Item = (TaskSeq, &Charge)> {
        self.charges.iter().map(|(seq, charge)| (*seq, charge))
    }

    /// A task of this client comes to wait; `known` is the client's slot, if it has one. A new weight counts as soon as
    /// nothing of the client's is charged at the old.
    pub(crate) fn enter(&mut self, client: &ClientId, known: Option<u32>, weight: u32) -> u32 {
        let slot = known.unwrap_or_else(|| self.open(client));
        if self.accounts[slot as usize].uses == 0 {
            self.accounts[slot as usize].weight = weight;
            self.idle.count -= usize::from(known.is_some());
        }
        let account = &mut self.accounts[slot as usize];
        account.uses += 1;
        account.seen = true;
        self.last = slot;
        slot
    }

    fn open(&mut self, client: &ClientId) -> u32 {
        let (id, usual, time) = (client.clone(), UsualOutput::default(), [Virtual::MIN; 2]);
        let slot = self.accounts.insert(Account {
            id,
            weight: 1,
            time,
            usual,
            rank: 0,
            waiting: [0; 2],
            uses: 0,
            seen: false,
        }) as u32;
        self.idle.slots = self.idle.slots.max(slot as usize + 1);
        self.by_id.insert(client.clone(), slot);
        let version = self.ranks.version();
        self.accounts[slot as usize].rank = self.ranks.insert(client);
        if version != self.ranks.version() {
            self.accounts.iter_mut().for_each(|(_, account)| account.rank = self.ranks.get(&account.id).unwrap_or(0));
        }
        slot
    }

    /// Counts how often the ranks of all accounts have changed.
    pub(crate) fn ranks_version(&self) -> u64 {
        self.ranks.version()
    }

    /// A task of this client neither waits nor is charged any more.
    pub(crate) fn leave(&mut self, slot: u32) {
        let account = &mut self.accounts[slot as usize];
        account.uses -= 1;
        if account.uses == 0 {
            self.idle.count += 1;
            if self.idle.count > IDLE_CLIENTS_MAX {
                self.forget_one();
            }
        }
    }

    /// Forgets a client without a task. The hand goes round twice at most: the first time it clears what the second
    /// finds.
    fn forget_one(&mut self) {
        for _ in 0..2 * self.idle.slots {
            let slot = self.idle.hand;
            self.idle.hand = if slot + 1 < self.idle.slots { slot + 1 } else { 0 };
            let Some(account) = self.accounts.get_mut(slot) else { continue };
            if account.uses > 0 || std::mem::take(&mut account.seen) {
                continue;
            }
            let account = self.accounts.remove(slot);
            self.by_id.remove(&account.id);
            self.ranks.remove(&account.id);
            self.idle.count -= 1;
            return;
        }
    }

    /// A class that had nobody to dispatch has somebody now: it gets no credit for its absence.
    pub(crate) fn lift_class(&mut self, class: Priority) {
        let tag = &mut self.tags[class.index()];
        *tag = (*tag).max(self.now);
    }

    /// A client that had nothing to dispatch has something now: it gets no credit for its absence, and keeps its debt.
    ///
    /// It joins in at the start of what was dispatched last (start-time fair queueing) and not behind that one's
    /// charge, so that beside a flood its first task is next; and no later than `least`, the least time of those who
    /// wait.
    pub(crate) fn catch_up(&mut self, slot: u32, class: Priority, least: Option<Virtual>) {
        let time = &mut self.accounts[slot as usize].time[class.index()];
        let start = self.start[class.index()];
        *time = (*time).max(least.map_or(start, |least| least.min(start)));
    }

    /// What a task of this client is expected to cost.
    pub(crate) fn estimate(&self, slot: u32, size: Size) -> u64 {
        let usual = self.account(slot).usual.tokens().unwrap_or(size.output_guess);
        self.costs.cost(size.prompt, usual.min(size.output_max))
    }

    /// Charges a task that is dispatched now. The task's use of the account passes on to the charge.
    pub(crate) fn charge(&mut self, seq: TaskSeq, slot: u32, class: Priority, size: Size, session: Option<SessionId>) {
        let (cost, index) = (self.estimate(slot, size), class.index());
        self.now = self.tags[index];
        self.tags[index] += Virtual::from(cost) * self.class_prices[index];
        let account = &mut self.accounts[slot as usize];
        self.start[index] = self.start[index].max(account.time[index]);
        account.time[index] += price(cost, account.weight);
        self.charges.insert(seq, Charge { cost, client: slot, class, has_session: session.is_some() });
        self.journal.note(seq, &account.id, class, cost as i64);
        session.map(|session| self.sessions.insert(seq, session));
    }

    /// Replaces a task's estimated charge by what was computed for it; returns the charge and the conversation that it
    /// kept busy. `None` when it has none.
    pub(crate) fn settle(&mut self, seq: TaskSeq, served: Served) -> Option<(Charge, Option<SessionId>)> {
        let charge = self.charges.remove(&seq)?;
        let cost = match served {
            Served::Nothing => 0,
            Served::Part { prompt, output } | Served::Whole { prompt, output } => self.costs.cost(prompt, output),
        };
        let index = charge.class.index();
        let account = &mut self.accounts[charge.client as usize];
        if cost != charge.cost {
            account.time[index] += price(cost, account.weight) - price(charge.cost, account.weight);
            self.tags[index] += (Virtual::from(cost) - Virtual::from(charge.cost)) * self.class_prices[index];
        }
        if let Served::Whole { output, .. } = served {
            account.usual.record(output);
        }
        self.journal.note(seq, &account.id, charge.class, cost as i64 - charge.cost as i64);
        let session = if charge.has_session { self.sessions.remove(&seq) } else { None };
        Some((charge, session))
    }
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_estimated_is_replaced_by_what_was_computed() {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let slot = enter(&mut accounts, "a", 2);
        accounts.catch_up(slot, Priority::Batch, None);
        accounts.charge(TaskSeq(1), slot, Priority::Batch, size(10, 100), None);
        assert_eq!(accounts.time(&client("a"), Priority::Batch), Some(price(210, 2)));
        assert_eq!((accounts.unsettled(), accounts.charged()), (vec![TaskSeq(1)], 1));
        assert_eq!([1, 2].map(|seq| accounts.is_charged(TaskSeq(seq))), [true, false]);
        accounts.settle(TaskSeq(1), Served::Whole { prompt: Tokens(10), output: Tokens(7) });
        assert_eq!((accounts.charged(), accounts.is_charged(TaskSeq(1))), (0, false));
        assert_eq!(accounts.time(&client("a"), Priority::Batch), Some(price(24, 2)));
        assert_eq!(accounts.tag(Priority::Batch), 24 * 9, "nine times the tag of an interactive token");
        assert_eq!(accounts.usual_output(&client("a")), Some(Tokens(7)));
        assert_eq!(accounts.estimate(slot, size(10, 100)), 24, "the next estimate has learned");
        assert_eq!(accounts.estimate(slot, size(10, 5)), 20, "and never exceeds the budget");
    }

    #[test]
    fn class_prices_are_as_small_as_they_can_be() {
        for (weights, prices) in [([9, 1], [1, 9]), ([6, 4], [2, 3]), ([5, 5], [1, 1]), ([7, 3], [3, 7])] {
            let accounts = Accounts::new(CostWeights::default(), weights);
            assert_eq!(Priority::ALL.map(|class| accounts.class_price(class)), prices, "{weights:?}");
        }
    }

    #[test]
    fn a_task_that_comes_back_costs_nobody() {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let slot = enter(&mut accounts, "a", 3);
        accounts.catch_up(slot, Priority::Interactive, None);
        let before = (accounts.time(&client("a"), Priority::Interactive), accounts.tag(Priority::Interactive));
        accounts.charge(TaskSeq(1), slot, Priority::Interactive, size(10, 100), None);
        accounts.settle(TaskSeq(1), Served::Nothing);
        assert_eq!((accounts.time(&client("a"), Priority::Interactive), accounts.tag(Priority::Interactive)), before);
        assert!(accounts.settle(TaskSeq(1), Served::Nothing).is_none(), "once");
        assert!(accounts.usual_output(&client("a")).is_none(), "nothing is learned from it");
    }

    #[test]
    fn what_strangers_can_make_us_remember_is_bounded() {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let busy = enter(&mut accounts, "busy", 1);
        for number in 0..3 * IDLE_CLIENTS_MAX {
            let slot = enter(&mut accounts, &format!("c{number}"), 1);
            accounts.leave(slot);
        }
        assert_eq!(accounts.clients(), IDLE_CLIENTS_MAX + 1);
        assert_eq!(accounts.idle.count, IDLE_CLIENTS_MAX);
        accounts.invariants();
        assert_eq!(accounts.slot(&client("busy")), Some(busy), "never one that has a task");
        assert!(accounts.slot(&client("c0")).is_none() && accounts.slot(&client("c49151")).is_some());
        // However many are busy: one of those that are not goes, the one that just came last of all.
        let mut few_idle = Accounts::new(CostWeights::default(), [9, 1]);
        for number in 0..10 {
            enter(&mut few_idle, &format!("busy{number}"), 1);
        }
        for number in 0..IDLE_CLIENTS_MAX + 1 {
            let slot = enter(&mut few_idle, &format!("c{number}"), 1);
            few_idle.leave(slot);
        }
        few_idle.invariants();
        assert_eq!(few_idle.clients(), IDLE_CLIENTS_MAX + 10);
        assert!(few_idle.slot(&client("c0")).is_none());
        // One that comes and goes makes nobody else be forgotten.
        let mut few = Accounts::new(CostWeights::default(), [9, 1]);
        for number in 0..100 {
            let slot = enter(&mut few, &format!("c{number}"), 1);
            few.leave(slot);
        }
        for _ in 0..2 * IDLE_CLIENTS_MAX {
            let slot = enter(&mut few, "c0", 1);
            few.leave(slot);
        }
        assert_eq!(few.clients(), 100);
    }
}
