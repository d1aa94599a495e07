//! Where an actor can be reached: a cell that its supervisor fills when it starts the actor, and again after a restart.
//!
//! A sender never holds an actor of an earlier life. What cannot be delivered is dropped, and dropping is safe for each
//! message: a lease gives its slot back, an assignment returns its task to the queue, a reply port tells the caller.

use parking_lot::RwLock;
use ractor::{ActorCell, ActorRef, ActorStatus, Message, MessagingErr};
use tokio::sync::Notify;

/// The current incarnation of one actor, if it lives.
///
/// Not tokio's `watch`: that wakes its waiters in an order of the operating system's chance, and a seed would not give
/// one trace any more.
pub(crate) struct Address<M: Message> {
    /// Read once for each message, written once for each life. Never held while anything is sent or dropped.
    current: RwLock<Option<ActorRef<M>>>,
    changed: Notify,
}

impl<M: Message> Default for Address<M> {
    fn default() -> Self {
        Address { current: RwLock::new(None), changed: Notify::new() }
    }
}

impl<M: Message> Address<M> {
    /// Announces the actor's newest incarnation.
    pub(crate) fn publish(&self, actor: ActorRef<M>) {
        let earlier = self.current.write().replace(actor);
        drop(earlier);
        self.changed.notify_waiters();
    }

    /// The current incarnation.
    pub(crate) fn get(&self) -> Option<ActorRef<M>> {
        self.current.read().clone()
    }

    /// Sends, or drops the message when nobody is there. Returns whether it was sent.
    pub(crate) fn cast(&self, message: M) -> bool {
        // The reference is cloned out of the cell: dropping an undelivered message may itself send.
        self.get().is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// Sends, or gives the message back when nobody is there.
    pub(crate) fn try_cast(&self, message: M) -> Result<(), Option<M>> {
        let Some(actor) = self.get() else { return Err(Some(message)) };
        actor.cast(message).map_err(|error| match error {
            MessagingErr::SendErr(message) => Some(message),
            MessagingErr::ChannelClosed | MessagingErr::InvalidActorType => None,
        })
    }

    /// The current incarnation, without its message type.
    pub(crate) fn cell(&self) -> Option<ActorCell> {
        self.get().map(|actor| actor.get_cell())
    }

    /// Waits until an incarnation other than a dead one is there. Waiters go on in the order in which they came.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_alive(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // Before the look, so that no change is missed.
            if self.get().is_some_and(|actor| actor.get_status() < ActorStatus::Draining) {
                return;
            }
            changed.await;
        }
    }
}
