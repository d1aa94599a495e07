//! The intake gate: the bound in front of the first mailbox, since ractor's mailboxes have none.
//!
//! A permit is taken before a task touches an actor and lives in the task's record until its log is sealed. So the
//! number of tasks anywhere in the runtime, mailboxes included, never exceeds the gate's limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts the tasks that are anywhere between submission and their end.
pub(crate) struct IntakeGate {
    limit: AtomicUsize,
    used: AtomicUsize,
}

/// One place inside the gate, given back when dropped.
pub(crate) struct Permit(Arc<IntakeGate>);

impl IntakeGate {
    /// A gate with this many places.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(IntakeGate { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    /// Takes a place, or `None` when all are taken. Never waits.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        // Relaxed suffices: the count guards nothing but itself.
        let limit = self.limit();
        let entered = self.used.fetch_update(Relaxed, Relaxed, |used| (used < limit).then_some(used + 1));
        entered.is_ok().then(|| Permit(self.clone()))
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
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_enter_than_there_are_places() {
        let gate = IntakeGate::new(2);
        let first = gate.try_enter().expect("a place");
        let _second = gate.try_enter().expect("a place");
        assert!(gate.try_enter().is_none());
        drop(first);
        assert!(gate.try_enter().is_some());
    }
}
