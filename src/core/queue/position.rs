//! Why a task waits: where it stands in class, client and lane, and who is ahead by how many tokens.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::fairness::{Accounts, SCALE, Virtual};
use crate::core::id::{ClientId, SessionId, TaskSeq};
use crate::core::queue::Queue;
use crate::core::queue::class::Candidate;
use crate::core::queue::linked_list::{List, NIL};
use crate::core::queue::predict::Backlog;
use crate::core::task::Priority;

/// Most clients that are named in one answer. The nearest ones say enough, and the answer stays small.
pub const CLIENTS_NAMED_MAX: usize = 16;

/// Most tasks of a lane that are counted for one answer; beyond them the count is a lower bound.
pub const LANE_COUNTED_MAX: u32 = 10_000;

/// Where a waiting task stands, as of now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueuePosition {
    /// Why it is not dispatched this moment, in one line.
    pub why: String,
    /// Its class.
    pub class: Priority,
    /// The class whose turn it is; `None` when nobody can be dispatched.
    pub class_next: Option<Priority>,
    /// Tokens by weight that the other class may be served before this one is next; 0 when this one is.
    pub class_behind_tokens: u64,
    /// Tasks that wait: interactive, batch.
    pub depth: [u32; 2],
    /// Its client.
    pub client_id: ClientId,
    /// The client's weight.
    pub client_weight: u32,
    /// Tasks of this client that wait in this class.
    pub client_queued: u32,
    /// The client's tasks that run now or were sent to run.
    pub client_running: u32,
    /// Clients of this class whose turn comes before this one's.
    pub clients_ahead: u32,
    /// Those whose turn is nearest, at most [`CLIENTS_NAMED_MAX`].
    pub clients_ahead_first: Vec<ClientAhead>,
    /// Tasks before it in its own lane; a lower bound from [`LANE_COUNTED_MAX`] on.
    pub lane_ahead: u32,
    /// The conversation that it waits for: a task of it is out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for_session: Option<SessionId>,
    /// Whether its client runs as much as its quota allows.
    pub client_at_quota: bool,
    /// Tasks that are expected to be started before it.
    pub queue_position: u64,
}

/// A client whose turn comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientAhead {
    /// Who.
    pub client_id: ClientId,
    /// Weighted tokens that it is served before the turn passes on.
    pub tokens: u64,
    /// Its tasks that wait in this class.
    pub queued: u32,
}

/// Whose turn comes when, as of some moment: what explanations are read from, so that those who ask cost nobody else
/// anything.
#[derive(Debug)]
pub struct Picture {
    /// Turns by class, the next one first.
    order: [Vec<Candidate>; 2],
    /// Where each client's place in the accounts is in that order.
    places: [Vec<(u32, usize)>; 2],
    /// The nearest of them, with their names.
    first: [Vec<Nearest>; 2],
    /// Tasks that are out, by the client's place in the accounts.
    running: BTreeMap<u32, u32>,
}

impl Picture {
    /// Clients whose turn comes at some time: what a new picture costs goes by it.
    pub fn clients(&self) -> usize {
        self.order.iter().map(Vec::len).sum()
    }
}

#[derive(Debug)]
struct Nearest {
    id: ClientId,
    weight: u32,
    turn: Candidate,
    queued: u32,
}

/// Weighted tokens that a span of virtual time is worth at this weight.
fn tokens(span: Virtual, weight: u32) -> u64 {
    u64::try_from((span * Virtual::from(weight) / SCALE).max(0)).unwrap_or(u64::MAX)
}

impl<T> Queue<T> {
    /// The task of this number, if it waits here.
    pub fn get(&self, seq: TaskSeq) -> Option<&T> {
        let key = *self.index.get(&seq)?;
        Some(&self.nodes[key as usize].item)
    }

    /// The numbers of all that wait, ascending. For when a queue is turned out or built anew.
    pub fn numbers(&self) -> Vec<TaskSeq> {
        let mut numbers: Vec<TaskSeq> = self.index.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// Who waits, in numbers.
    pub fn backlog(&self, accounts: &Accounts) -> Backlog {
        Backlog {
            count: self.classes.each_ref().map(|class| class.count),
            weights: self.classes.each_ref().map(|class| class.weights),
            class_weights: accounts.class_weights(),
        }
    }

    /// Whose turn comes when, as of now. O(clients log clients): whoever asks often keeps it for a while.
    pub fn picture(&self, accounts: &Accounts) -> Picture {
        let mut running = BTreeMap::new();
        accounts.charges().for_each(|(_, charge)| *running.entry(charge.client).or_default() += 1);
        let order = self.classes.each_ref().map(|class| {
            let mut turns: Vec<Candidate> = class.turns.iter().collect();
            turns.sort_unstable();
            turns
        });
        let first = Priority::ALL.map(|class| {
            // One more than are named: whoever asks may be among them.
            let nearest = order[class.index()].iter().take(CLIENTS_NAMED_MAX + 1);
            nearest
                .map(|turn| {
                    let (id, weight) = (accounts.account(turn.slot).id.clone(), accounts.account(turn.slot).weight);
                    Nearest { id, weight, turn: *turn, queued: accounts.waiting_in(turn.slot, class) }
                })
                .collect()
        });
        let places = order.each_ref().map(|turns| {
            let mut places: Vec<(u32, usize)> =
                turns.iter().enumerate().map(|(place, turn)| (turn.slot, place)).collect();
            places.sort_unstable();
            places
        });
        Picture { order, places, first, running }
    }

    /// Where this task stands, by a picture of a moment ago; `None` when it does not wait here. O(log clients), and
    /// what is before it in its own lane is counted: for people who ask, not for the task path.
    pub fn standing(
        &self,
        accounts: &Accounts,
        picture: &Picture,
        seq: TaskSeq,
        session_of: impl Fn(&T) -> Option<SessionId>,
    ) -> Option<QueuePosition> {
        let key = *self.index.get(&seq)?;
        let node = &self.nodes[key as usize];
        let (slot, class) = (node.client, node.class);
        let (account, lane) = (accounts.account(slot), self.lane(slot, class));
        let own_turn = (account.time[class.index()], account.rank);
        let order = &picture.order[class.index()];
        let before = order.partition_point(|turn| (turn.time, turn.rank) < own_turn);
        let places = &picture.places[class.index()];
        let own_place = places.binary_search_by_key(&slot, |(slot, _)| *slot).map(|at| places[at].1);
        let ahead = before - usize::from(own_place.is_ok_and(|place| place < before)); // Its turn of a moment ago.
        let nearest = picture.first[class.index()].iter();
        let nearest = nearest.filter(|other| other.id != account.id && (other.turn.time, other.turn.rank) < own_turn);
        let named = nearest.take(CLIENTS_NAMED_MAX).map(|other| ClientAhead {
            client_id: other.id.clone(),
            tokens: tokens(own_turn.0 - other.turn.time, other.weight),
            queued: other.queued,
        });
        let clients_ahead_first: Vec<ClientAhead> = named.collect();
        let class_next = self.next_class(accounts);
        let class_behind_tokens = class_next.filter(|next| *next != class).map_or(0, |next| {
            let behind = (accounts.tag(class) - accounts.tag(next)) / accounts.class_price(next);
            u64::try_from(behind.max(0)).unwrap_or(u64::MAX)
        });
        let (lane_ahead, queued) = (self.lane_ahead(key), accounts.waiting_in(slot, class));
        let running = picture.running.get(&slot).copied().unwrap_or_default();
        let mut standing = QueuePosition {
            why: String::new(),
            class,
            class_next,
            class_behind_tokens,
            depth: Priority::ALL.map(|class| self.len_of(class)),
            client_id: account.id.clone(),
            client_weight: account.weight,
            client_queued: queued,
            client_running: running,
            clients_ahead: ahead as u32,
            clients_ahead_first,
            lane_ahead,
            waits_for_session: node.stands_aside.then(|| session_of(&node.item)).flatten(),
            client_at_quota: lane.held,
            queue_position: self.backlog(accounts).ahead(lane_ahead.min(queued - 1), queued, account.weight, class),
        };
        standing.why = standing.reason();
        Some(standing)
    }

    /// Tasks before this one in its lane, or in its conversation when it stands aside.
    fn lane_ahead(&self, key: u32) -> u32 {
        let node = &self.nodes[key as usize];
        let list =
            if node.stands_aside { self.gate.chain_of(node.session) } else { self.lane(node.client, node.class).ready };
        let (mut count, mut at) = (0, key);
        while at != list.head && count < LANE_COUNTED_MAX {
            (count, at) = (count + 1, self.nodes[at as usize].order.prev);
        }
        count
    }

    /// Checks what must always hold, by full scans. For tests and simulation.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn invariants(&self, accounts: &Accounts) {
        assert_eq!(self.nodes.len(), self.index.len(), "every node is indexed");
        let mut seen = 0;
        for (slot, lanes) in self.lanes.iter().enumerate() {
            for class in Priority::ALL {
                let (lane, slot) = (&lanes[class.index()], slot as u32);
                let ready = self.chain(lane.ready, false);
                let aside = self.chain(lane.aside, true);
                let waiting = ready.len() + aside.len();
                if waiting > 0 {
                    assert_eq!(accounts.waiting_in(slot, class) as usize, waiting, "the count is what waits");
                }
                for key in ready.iter().chain(&aside) {
                    let node = &self.nodes[*key as usize];
                    assert_eq!((node.client, node.class), (slot, class), "a task is in its own lane");
                    assert_eq!(self.index.get(&node.seq), Some(key), "the index finds the task");
                    assert!(node.session == NIL || !node.stands_aside || self.gate.will_let_go(node.session));
                }
                let present = self.classes[class.index()].turns.contains(slot);
                assert_eq!(present, !ready.is_empty() && !lane.held, "who can be dispatched has a turn");
                assert!(!lane.held || waiting > 0, "nobody is held without a task");
                seen += waiting as u32;
            }
        }
        assert_eq!(seen, self.len(), "every task is in one lane");
        accounts.invariants();
        for (session, waiting, closed) in self.gate.conversations() {
            let of_it = self.nodes.iter().filter(|(_, node)| node.session == session).count();
            assert_eq!(waiting as usize, of_it, "a conversation counts its tasks");
            assert!(closed || waiting > 0, "one without a task is forgotten");
        }
        self.gate.invariants();
        for class in Priority::ALL {
            self.classes[class.index()].turns.invariants();
            for Candidate { time, slot, rank } in self.classes[class.index()].turns.iter() {
                let account = accounts.account(slot);
                assert_eq!((time, rank), (account.time[class.index()], account.rank), "turns follow the accounts");
            }
        }
    }

    fn chain(&self, list: List, aside: bool) -> Vec<u32> {
        let (mut at, mut found) = (list.head, Vec::new());
        while at != NIL {
            let node = &self.nodes[at as usize];
            let links = if aside { node.aside } else { node.order };
            assert_eq!(node.stands_aside, aside, "a task is where it says");
            assert!(found.last().is_none_or(|prev| *prev == links.prev), "links agree");
            found.push(at);
            at = if at == list.tail { NIL } else { links.next };
        }
        assert_eq!(found.last().copied().unwrap_or(NIL), list.tail, "the chain ends at its tail");
        found
    }
}

impl QueuePosition {
    fn reason(&self) -> String {
        if let Some(session) = &self.waits_for_session {
            return format!("another task of session {session} is out; one runs at a time");
        }
        if self.client_at_quota {
            return format!("client {} runs as much as its quota allows", self.client_id);
        }
        if self.lane_ahead > 0 {
            return format!("{} tasks of client {} are before it", self.lane_ahead, self.client_id);
        }
        if self.clients_ahead > 0 {
            return format!("{} clients have been served less and come first", self.clients_ahead);
        }
        match self.class_next {
            Some(next) if next != self.class => format!("it is the turn of the {} class", next.as_str()),
            _ => "it is next; no slot is free".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fairness::{CostWeights, Served, Size};
    use crate::core::queue::Arrival;
    use crate::core::queue::overflow::{Bounds, FullPolicy};
    use crate::core::units::Tokens;

    struct Lab {
        queue: Queue<Option<SessionId>>,
        accounts: Accounts,
    }

    impl Lab {
        fn new() -> Self {
            let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
            Lab { queue: Queue::new(Bounds::of(100_000, FullPolicy::Reject), &mut accounts), accounts }
        }
        fn add(&mut self, number: u64, name: &str, session: Option<&str>, class: Priority) {
            let client = ClientId::parse(name).expect("valid");
            let session = session.map(|session| SessionId::parse(session).expect("valid"));
            let size = Size::new(Tokens(100), Tokens(50), None);
            let seq = TaskSeq(number);
            let arrival = Arrival { seq, class, client: &client, weight: 1, session: session.as_ref(), size };
            self.queue.enqueue(&mut self.accounts, arrival, session.clone());
        }
        fn dispatch(&mut self) -> Option<TaskSeq> {
            self.queue.dispatch(&mut self.accounts, |_| true).map(|(seq, _)| seq)
        }
        fn standing(&self, number: u64) -> QueuePosition {
            self.queue
                .standing(&self.accounts, &self.queue.picture(&self.accounts), TaskSeq(number), Clone::clone)
                .expect("it waits")
        }
    }

    #[test]
    fn it_says_who_is_ahead_and_by_how_many_tokens() {
        let mut lab = Lab::new();
        lab.add(0, "a", None, Priority::Batch);
        lab.add(1, "a", None, Priority::Batch);
        lab.add(2, "b", None, Priority::Batch);
        lab.add(3, "b", None, Priority::Batch);
        lab.dispatch();
        // The first of a was charged 100 + 2 * 50.
        let standing = lab.standing(1);
        let ahead = ClientAhead { client_id: ClientId::parse("b").expect("valid"), tokens: 200, queued: 2 };
        assert_eq!((standing.clients_ahead, standing.clients_ahead_first), (1, vec![ahead]));
        assert_eq!((standing.lane_ahead, standing.client_running), (0, 1));
        let last = lab.standing(3);
        assert_eq!((last.clients_ahead, last.lane_ahead), (0, 1));
        assert!(last.why.contains("1 tasks of client b are before it"), "{}", last.why);
    }

    #[test]
    fn it_says_when_a_conversation_or_another_class_holds_it_up() {
        let mut lab = Lab::new();
        lab.add(0, "a", Some("s"), Priority::Batch);
        lab.add(1, "a", Some("s"), Priority::Batch);
        assert_eq!((lab.dispatch(), lab.dispatch()), (Some(TaskSeq(0)), None));
        assert!(lab.standing(1).why.contains("another task of session s is out"));
        lab.queue.settle(&mut lab.accounts, TaskSeq(0), Served::Whole { prompt: Tokens(100), output: Tokens(50) });
        lab.add(2, "b", None, Priority::Interactive);
        let standing = lab.standing(1);
        assert_eq!((standing.class_next, standing.class_behind_tokens), (Some(Priority::Interactive), 9 * 200));
        assert!(standing.why.contains("turn of the interactive class"), "{}", standing.why);
        assert_eq!(lab.standing(2).why, "it is next; no slot is free");
    }

    #[test]
    fn a_picture_of_a_moment_ago_still_answers_for_who_came_went_and_was_served_since() {
        let mut lab = Lab::new();
        (0..10).for_each(|number| lab.add(number, &format!("c{number}"), None, Priority::Batch));
        (10..20).for_each(|number| lab.add(number, &format!("c{}", number - 10), None, Priority::Batch));
        let picture = lab.queue.picture(&lab.accounts);
        assert_eq!(picture.clients(), 10);
        let old = |lab: &Lab, number| lab.queue.standing(&lab.accounts, &picture, TaskSeq(number), Clone::clone);
        assert_eq!(old(&lab, 19), Some(lab.standing(19)), "nothing has happened");
        assert_eq!(lab.dispatch(), Some(TaskSeq(0)));
        let served = old(&lab, 10).expect("it waits");
        assert_eq!(served.clients_ahead, 9, "its own turn of before is not ahead of it");
        assert!(served.clients_ahead_first.iter().all(|ahead| ahead.client_id.as_str() != "c0"));
        lab.add(20, "new", None, Priority::Batch);
        assert!(old(&lab, 20).is_some() && old(&lab, 0).is_none());
    }

    #[test]
    fn the_answer_is_bounded_however_long_the_queue_is() {
        let mut lab = Lab::new();
        for number in 0..50_000 {
            lab.add(number, &format!("c{}", number % 100), None, Priority::Batch);
        }
        for number in 50_000..70_000 {
            lab.add(number, "z", None, Priority::Batch);
        }
        let standing = lab.standing(69_999);
        assert_eq!((standing.clients_ahead, standing.clients_ahead_first.len()), (100, CLIENTS_NAMED_MAX));
        assert_eq!(standing.lane_ahead, LANE_COUNTED_MAX);
    }
}
