//! Service that was charged elsewhere, in the order of this queue.

use crate::core::fairness::Accounts;
use crate::core::id::ClientId;
use crate::core::queue::Queue;
use crate::core::task::Priority;

impl<T> Queue<T> {
    /// A client has been served elsewhere: see [`Accounts`]. One that is not known here joins in as anybody does when
    /// it comes.
    pub fn serve_elsewhere(&mut self, accounts: &mut Accounts, client: &ClientId, class: Priority, cost: i64) {
        let Some(slot) = accounts.slot(client) else { return };
        accounts.serve_elsewhere(slot, class, cost);
        if self.classes[class.index()].turns.contains(slot) {
            self.set_turn(accounts, slot, class);
        }
    }
}
