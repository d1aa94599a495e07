//! The deadlines of a queue's waiting tasks: one timer for the earliest, and the end of those whose time is over.

use ractor::ActorRef;

use crate::actors::dispatch::state::QueueState;
use crate::actors::pool::messages::QueueMsg;
use crate::actors::task::record::TaskRecord;
use crate::core::fairness::Accounts;
use crate::core::task::Terminal;
use crate::core::units::Timestamp;

/// Ends the waiting tasks whose deadlines have passed.
pub(in crate::actors) fn on_deadline_due(state: &mut QueueState, accounts: &mut Accounts, at: Timestamp) {
    // A timer that an earlier deadline has overtaken arms no other: there is one that counts.
    if state.armed == Some(at) {
        state.armed = None;
    }
    let now = state.pool.env.now();
    while let Some((_, seq)) = state.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
        state.deadlines.pop_first();
        let Some(record) = state.queue.cancel(accounts, seq) else { continue };
        let _ = state.runtime.ledger.seal(&record, None, Terminal::missed_deadline()); // Cancelled just now.
    }
}

/// One timer, for the earliest deadline.
pub(in crate::actors) fn arm(state: &mut QueueState, myself: &ActorRef<QueueMsg>) {
    let Some((earliest, _)) = state.deadlines.first().copied() else { return };
    if state.armed.is_none_or(|armed| earliest < armed) {
        state.armed = Some(earliest);
        myself.send_after(earliest.since(state.pool.env.now()), move || QueueMsg::DeadlineDue { at: earliest });
    }
}

impl QueueState {
    pub(in crate::actors) fn note_deadline(&mut self, record: &TaskRecord) {
        if let Some(deadline) = record.deadline() {
            self.deadlines.insert((deadline, record.seq));
        }
    }

    pub(in crate::actors) fn forget_deadline(&mut self, record: &TaskRecord) {
        if let Some(deadline) = record.deadline() {
            self.deadlines.remove(&(deadline, record.seq));
        }
    }
}
