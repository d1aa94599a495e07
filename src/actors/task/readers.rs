//! A task's record as its readers use it: they look, wait for more, come and go.

use crate::actors::task::event_log::EventRef;
use crate::actors::task::lingering::LingeringRoom;
use crate::actors::task::record::TaskRecord;
use crate::core::task::Phase;

impl TaskRecord {
    /// Whether its readers are cut off: it was forgotten, and there is no room for it any more.
    pub(crate) fn is_cut(&self) -> bool {
        self.readership.is_cut()
    }

    /// The task is forgotten: whoever still reads it is counted in this room, or cut off.
    pub(in crate::actors) fn linger(&self, room: &LingeringRoom, bytes: u64) {
        if room.take_over(&self.readership, &self.request.client_id, bytes) {
            self.changed.notify_waiters();
        }
    }

    /// Visits at most `most` events from index `from` on; returns the index behind the last, and whether nothing will
    /// follow.
    pub(crate) fn visit(&self, from: usize, most: usize, visitor: impl FnMut(usize, EventRef<'_>)) -> (usize, bool) {
        let state = self.state.lock();
        let next = state.output.log.visit(from, most, visitor);
        (next, state.output.log.is_sealed() && next == state.output.log.len())
    }

    /// Waits until there is an event at index `from`, or the log is sealed without one.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_readable(&self, from: usize) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            {
                let mut state = self.state.lock();
                if state.output.log.len() > from || state.output.log.is_sealed() {
                    return;
                }
                state.reading.reader_waits = true;
                changed.as_mut().enable(); // Under the lock: whoever appends next sees that somebody waits.
            }
            changed.await;
        }
    }

    /// A reader has come.
    pub(crate) fn reader_comes(&self) {
        let mut state = self.state.lock();
        (state.reading.readers, state.reading.visits) = (state.reading.readers + 1, state.reading.visits + 1);
    }

    /// A reader has gone. When it was the last of a task that has not ended, returns how many there have been.
    pub(crate) fn reader_leaves(&self) -> Option<u64> {
        let mut state = self.state.lock();
        state.reading.readers -= 1;
        (state.reading.readers == 0 && state.phase != Phase::Terminal).then_some(state.reading.visits)
    }

    /// Whether no reader is there, and none has come since there had been so many. If so, its end is counted as their
    /// doing.
    pub(crate) fn abandon_if_unread_since(&self, visits: u64) -> bool {
        let mut state = self.state.lock();
        state.reading.abandoned = state.reading.readers == 0 && state.reading.visits == visits;
        state.reading.abandoned
    }
}
