//! The newest refusals of tasks whose clients chose an id, so that one may ask afterwards which limit it was.

use parking_lot::Mutex;

use crate::core::admission::kept::Kept;
use crate::core::id::{ClientId, TaskId};
use crate::core::task::error::TaskError;

/// Rejections that are remembered; about 300 KiB. Whoever has most makes room.
const REFUSALS_MAX: u64 = 1_024;

/// The newest refusals of each client, and the number of the next. A short lock for each refusal.
pub(crate) struct RejectionCache(Mutex<(Kept<(TaskId, TaskError)>, u64)>);

impl Default for RejectionCache {
    fn default() -> Self {
        RejectionCache(Mutex::new((Kept::new(REFUSALS_MAX, 0), 0)))
    }
}

impl RejectionCache {
    /// Remembers one; the oldest of whoever has most makes room.
    pub(crate) fn note(&self, client: &ClientId, id: TaskId, error: TaskError) {
        let (kept, next) = &mut *self.0.lock();
        kept.insert(client, 1, *next, (0, (id, error)));
        *next += 1;
        while kept.evict().is_some() {}
    }

    /// The newest refusal of this id, with whose it was; of this client's alone, if one is named.
    pub(crate) fn find(&self, client: Option<&ClientId>, id: &TaskId) -> Option<(ClientId, TaskError)> {
        let state = self.0.lock();
        let wanted =
            state.0.iter().filter(|(whose, _, (known, _))| known == id && client.is_none_or(|client| client == *whose));
        let newest = wanted.max_by_key(|(_, number, _)| *number);
        newest.map(|(whose, _, (_, error))| (whose.clone(), error.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::task::error::ErrorCode;

    #[test]
    fn a_neighbours_many_refusals_forget_none_of_mine() {
        let refusals = RejectionCache::default();
        let client = |name: &str| ClientId::parse(name).expect("valid");
        let id = |name: &str| TaskId::parse(name).expect("valid");
        let error = |text: &str| TaskError::new(ErrorCode::AdmissionReject, text);
        refusals.note(&client("alice"), id("t"), error("first"));
        (0..5_000).for_each(|number| refusals.note(&client("bob"), id(&format!("b{number}")), error("bobs")));
        refusals.note(&client("bob"), id("t"), error("later"));
        let found = |who: Option<&str>| refusals.find(who.map(client).as_ref(), &id("t")).map(|(_, error)| error);
        assert_eq!(found(Some("alice")), Some(error("first")));
        assert_eq!((found(None), found(Some("carol"))), (Some(error("later")), None));
        assert!(refusals.find(None, &id("b0")).is_none() && refusals.find(None, &id("b4999")).is_some());
    }
}
