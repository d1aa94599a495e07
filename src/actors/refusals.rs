//! The newest refusals of tasks whose clients chose an id, so that one may ask afterwards which limit it was.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use crate::core::error::TaskError;
use crate::core::holders::{Held, Holders};
use crate::core::id::{ClientId, TaskId};

/// Refusals that are remembered; about 300 KiB. Whoever has most makes room.
const REFUSALS_MAX: u64 = 1_024;

/// The newest refusals of each client, oldest first. A short lock for each refusal.
pub(crate) struct Refusals(Mutex<State>);

struct State {
    next: u64,
    holders: Holders,
    /// By number. Never empty for a client.
    by_client: BTreeMap<ClientId, VecDeque<(u64, TaskId, TaskError)>>,
}

impl Default for Refusals {
    fn default() -> Self {
        let holders = Holders::new(REFUSALS_MAX, 0);
        Refusals(Mutex::new(State { next: 0, holders, by_client: BTreeMap::new() }))
    }
}

impl State {
    fn tell(&mut self, client: &ClientId) {
        let own = self.by_client.get(client);
        let (count, first) = own.map_or((0, None), |own| (own.len() as u64, own.front()));
        let oldest = first.map_or(0, |(number, ..)| *number);
        self.holders.set(client, Held { count, bytes: 0, weight: 1, oldest });
    }
}

impl Refusals {
    /// Remembers one; the oldest of whoever has most makes room.
    pub(crate) fn note(&self, client: ClientId, id: TaskId, error: TaskError) {
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.by_client.entry(client.clone()).or_default().push_back((number, id, error));
        state.tell(&client);
        while state.holders.is_over() {
            let Some(largest) = state.holders.largest().cloned() else { return };
            if let Some(own) = state.by_client.get_mut(&largest) {
                own.pop_front();
                if own.is_empty() {
                    state.by_client.remove(&largest);
                }
            }
            state.tell(&largest);
        }
    }

    /// The newest refusal of this id, with whose it was; of this client's alone, if one is named.
    pub(crate) fn find(&self, client: Option<&ClientId>, id: &TaskId) -> Option<(ClientId, TaskError)> {
        let state = self.0.lock();
        let wanted = state.by_client.iter().filter(|(whose, _)| client.is_none_or(|client| client == *whose));
        let all = wanted.flat_map(|(whose, own)| own.iter().map(move |refusal| (whose, refusal)));
        let newest = all.filter(|(_, (_, known, _))| known == id).max_by_key(|(_, (number, ..))| *number);
        newest.map(|(whose, (_, _, error))| (whose.clone(), error.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::error::ErrorCode;

    #[test]
    fn a_neighbours_many_refusals_forget_none_of_mine() {
        let refusals = Refusals::default();
        let client = |name: &str| ClientId::parse(name).expect("valid");
        let id = |name: &str| TaskId::parse(name).expect("valid");
        let error = |text: &str| TaskError::new(ErrorCode::AdmissionReject, text);
        refusals.note(client("alice"), id("t"), error("first"));
        (0..5_000).for_each(|number| refusals.note(client("bob"), id(&format!("b{number}")), error("bobs")));
        refusals.note(client("bob"), id("t"), error("later"));
        let found = |who: Option<&str>| refusals.find(who.map(client).as_ref(), &id("t")).map(|(_, error)| error);
        assert_eq!(found(Some("alice")), Some(error("first")));
        assert_eq!((found(None), found(Some("carol"))), (Some(error("later")), None));
        assert!(refusals.find(None, &id("b0")).is_none() && refusals.find(None, &id("b4999")).is_some());
    }
}
