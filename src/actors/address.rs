//! Where an actor can be reached: a cell that its supervisor fills when it starts the actor, and again after a restart.
//!
//! A sender never holds an actor of an earlier life. What cannot be delivered is dropped, and dropping is safe for each
//! message: a lease gives its slot back, an assignment returns its task to the queue, a reply port tells the caller.

use ractor::{ActorRef, Message};
use tokio::sync::watch;

/// The current incarnation of one actor, if it lives.
pub(crate) struct Address<M: Message>(watch::Sender<Option<ActorRef<M>>>);

impl<M: Message> Default for Address<M> {
    fn default() -> Self {
        Address(watch::Sender::new(None))
    }
}

impl<M: Message> Address<M> {
    /// Announces the actor's newest incarnation.
    pub(crate) fn publish(&self, actor: ActorRef<M>) {
        self.0.send_replace(Some(actor));
    }

    /// The current incarnation.
    pub(crate) fn get(&self) -> Option<ActorRef<M>> {
        self.0.borrow().clone()
    }

    /// Sends, or drops the message when nobody is there. Returns whether it was sent.
    pub(crate) fn cast(&self, message: M) -> bool {
        // The reference is cloned out of the cell: dropping an undelivered message may itself send.
        self.get().is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// Waits until an incarnation other than a dead one is there.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_alive(&self) {
        let alive = |actor: &Option<ActorRef<M>>| {
            actor.as_ref().is_some_and(|actor| actor.get_status() < ractor::ActorStatus::Draining)
        };
        // The sender is ours, so the channel cannot close while we wait.
        let _ = self.0.subscribe().wait_for(alive).await;
    }
}
