//! The intake gate: the bound in front of the first mailbox, since ractor's mailboxes have none.
//!
//! A permit is taken before a task touches an actor and lives in the task's record until its log is sealed. So the
//! number of tasks anywhere in the runtime, mailboxes included, never exceeds the gate's limit, and neither do their
//! texts together, of which each client has a part.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::actors::kit::room::Room;
use crate::core::admission::share::Share;
use crate::core::id::ClientId;

/// Texts of a task that are not counted, in bytes: their number is bounded.
const SMALL: u64 = 4 * 1024;

/// Counts the tasks that are anywhere between submission and their end, and the bytes of their texts.
pub(crate) struct IntakeGate {
    limit: AtomicUsize,
    used: AtomicUsize,
    /// A short lock, for tasks with long texts.
    texts: Mutex<Share>,
    /// Those who wait outside.
    pub(crate) room: Room,
}

/// Most submissions that may wait for room at a time; one client alone gets half of them.
const WAITERS_MAX: u32 = 65_536;

/// One place inside the gate, and the room that the task's texts take; given back when dropped.
pub(crate) struct Permit {
    gate: Arc<IntakeGate>,
    texts: Option<Box<(ClientId, u64)>>,
    /// Its task was accepted: those who wait outside hear of its end. A refusal frees nothing but what it took itself.
    pub(in crate::actors) is_accepted: bool,
}

impl IntakeGate {
    /// A gate with this many places, and room for this many bytes of texts.
    pub(crate) fn new(limit: usize, texts_bytes_max: u64) -> Arc<Self> {
        let texts = Mutex::new(Share::new(texts_bytes_max));
        let room = Room::new(WAITERS_MAX);
        Arc::new(IntakeGate { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0), texts, room })
    }

    /// Takes a place, or `None` when all are taken. Never waits.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        // Relaxed suffices: the count guards nothing but itself.
        let limit = self.limit();
        let entered = self.used.fetch_update(Relaxed, Relaxed, |used| (used < limit).then_some(used + 1));
        entered.is_ok().then(|| Permit { gate: self.clone(), texts: None, is_accepted: false })
    }

    /// Places that are taken.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Places there are.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes how many there are. Who is inside stays.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
        self.room.free();
    }

    /// Changes how many bytes of texts there may be. What is inside stays.
    pub(crate) fn set_texts_bytes_max(&self, texts_bytes_max: u64) {
        self.texts.lock().set_most(texts_bytes_max);
    }
}

impl Permit {
    /// Takes room for a task's texts; returns whether there was some for this client.
    pub(crate) fn hold_texts(&mut self, client: &ClientId, bytes: u64) -> bool {
        if bytes <= SMALL {
            return true;
        }
        let is_held = self.gate.texts.lock().try_take(client, bytes, 0);
        if is_held {
            self.texts = Some(Box::new((client.clone(), bytes)));
        }
        is_held
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(texts) = self.texts.take() {
            self.gate.texts.lock().give(&texts.0, texts.1);
        }
        self.gate.used.fetch_sub(1, Relaxed);
        if self.is_accepted {
            self.gate.room.free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_enter_than_there_are_places() {
        let gate = IntakeGate::new(2, 0);
        let first = gate.try_enter().expect("a place");
        let _second = gate.try_enter().expect("a place");
        assert!(gate.try_enter().is_none());
        drop(first);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn long_texts_have_room_together_and_each_client_a_part_of_it() {
        let gate = IntakeGate::new(100, 10 * SMALL);
        let client = |name: &str| ClientId::parse(name).expect("valid");
        let enter = |name: &str, bytes: u64| {
            let mut permit = gate.try_enter().expect("a place");
            permit.hold_texts(&client(name), bytes).then_some(permit)
        };
        let hog: Vec<_> = std::iter::from_fn(|| enter("hog", 2 * SMALL)).collect();
        assert_eq!(hog.len(), 2, "half and less, and the rest is for others");
        assert!(enter("hog", SMALL).is_some(), "small ones are bounded by their number");
        assert!(enter("polite", 6 * SMALL).is_some() && enter("polite", 7 * SMALL).is_none());
        drop(hog);
        assert!(enter("polite", 10 * SMALL).is_some() && gate.used() == 0, "everything is given back");
    }
}
