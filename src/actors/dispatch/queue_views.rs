//! What a queue shows of itself: its depth, to admission and to metrics; and where a waiting task stands, to people who
//! ask. However many ask, it draws its picture at most ten times a second.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::actors::dispatch::state::QueueState;
use crate::actors::task::record::TaskRecord;
use crate::core::fairness::Accounts;
use crate::core::id::TaskSeq;
use crate::core::queue::position::{Picture, QueuePosition};
use crate::core::task::Priority;
use crate::core::units::Timestamp;

/// Clients up to which each explanation is of this moment; with more, all that are asked for within [`PICTURE_AGE`] are
/// of one.
const PICTURE_CLIENTS: usize = 256;
const PICTURE_AGE: Duration = Duration::from_millis(100);

impl QueueState {
    /// Shows the depth to admission and to metrics, as of now.
    pub(in crate::actors) fn publish(&self, accounts: &Accounts) {
        for class in Priority::ALL {
            self.pool.waiting.depth[class.index()].store(self.queue.len_of(class), Relaxed);
        }
        *self.pool.waiting.backlog.lock() = self.queue.backlog(accounts);
        let wanted = if self.queue.has_ready() { self.queue.len() } else { 0 };
        self.pool.waiting.wanted.store(wanted, Relaxed);
    }

    /// Why this task was not taken in.
    pub(in crate::actors) fn no_room(&self, accounts: &Accounts, record: &TaskRecord) -> String {
        let (pool, client, depth) = (&self.pool, &record.request.client_id, self.queue.len());
        let (own, bounds) = (accounts.waiting(client, record.priority()), &pool.config.queue);
        let mut text = format!(
            "the queue of pool {} has no room for client {client}: {depth} tasks wait, {own} of its own; its capacity is {}",
            pool.id, bounds.capacity
        );
        if bounds.reserve_percent > 0 {
            let reserve = bounds.reserve_percent;
            text.push_str(&format!(", of which the reserve of {reserve} % is for clients with less than their share"));
        }
        text
    }

    /// Where a task stands.
    pub(in crate::actors) fn explain(&mut self, accounts: &Accounts, seq: TaskSeq) -> Option<QueuePosition> {
        let now = self.pool.env.now();
        let is_good =
            |(at, picture): &(Timestamp, Picture)| picture.clients() > PICTURE_CLIENTS && now.since(*at) < PICTURE_AGE;
        let kept = self.picture.take().filter(is_good);
        let (_, picture) = self.picture.insert(kept.unwrap_or_else(|| (now, self.queue.picture(accounts))));
        self.queue.standing(accounts, picture, seq, |record| record.session().cloned())
    }
}
