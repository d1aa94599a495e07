//! What one task takes from its client's limits, until it is settled: a value that the task's record owns.

use std::sync::Arc;

use crate::actors::quota::clients::{ClientShared, Waiter};
use crate::core::admission::limits::{Demand, Exceeded};
use crate::core::id::ClientId;
use crate::core::units::{Timestamp, Tokens};

/// A task's part of its client's limits and quotas.
pub(crate) struct Reservation {
    client: Arc<ClientShared>,
    take: Demand,
    /// It counts as running; else as waiting.
    runs: bool,
}

impl Reservation {
    /// Takes a new task's part, to wait.
    pub(crate) fn new(client: Arc<ClientShared>, now: Timestamp, take: Demand) -> Result<Self, Exceeded> {
        client.admit(now, take)?;
        Ok(Reservation { client, take, runs: false })
    }

    /// Counts the task as running, if the client's quotas allow it; else `pool` is told as soon as they may.
    pub(crate) fn start<W: Waiter + 'static>(&mut self, pool: &Arc<W>) -> bool {
        self.runs = self.runs || self.client.start(self.take, pool);
        self.runs
    }

    /// Counts the task as waiting again.
    pub(crate) fn give_back(&mut self, client: &ClientId) {
        if std::mem::take(&mut self.runs) {
            self.client.give_back(client, self.take);
        }
    }

    /// The task has ended; `unused` tokens of its budget come back. One that was never accepted leaves no trace.
    pub(crate) fn settle(self, client: &ClientId, accepted: bool, unused: Tokens) {
        match (accepted, self.runs) {
            (false, runs) => {
                if runs {
                    self.client.give_back(client, self.take);
                }
                self.client.undo(self.take);
            }
            (true, false) => self.client.leave_queue(self.take.tokens),
            (true, true) => self.client.end(client, self.take, unused),
        }
    }
}
