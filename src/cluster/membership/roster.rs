//! Who may link now. The acceptor asks it of each peer, and the members actor of each link when it has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::RwLock;

use crate::core::cluster::membership::Membership;

/// The rule that is in force. Clones are one roster.
#[derive(Clone)]
pub struct Roster(Arc<Inner>);

struct Inner {
    /// Read once for each introduction and link, written when the configuration has changed.
    membership: RwLock<Arc<Membership>>,
    /// Goes up behind each change of what decides about links; whoever has read it judges by nothing older.
    changes: AtomicU64,
}

impl Roster {
    /// A roster with this rule.
    pub fn new(membership: Membership) -> Self {
        Roster(Arc::new(Inner { membership: RwLock::new(Arc::new(membership)), changes: AtomicU64::new(0) }))
    }

    /// Every node with a certificate of the authority, for good or until [`Roster::set`].
    pub fn open() -> Self {
        Roster::new(Membership::open())
    }

    /// The rule.
    pub fn membership(&self) -> Arc<Membership> {
        self.0.membership.read().clone()
    }

    /// Puts another rule in force; links that it does not admit are cut within a second or two.
    pub fn set(&self, membership: Membership) {
        *self.0.membership.write() = Arc::new(membership);
        self.note_change();
    }

    /// Something else has changed that decides about links: the authority, or what it has revoked.
    pub(crate) fn note_change(&self) {
        self.0.changes.fetch_add(1, SeqCst);
    }

    /// How often something has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.0.changes.load(SeqCst)
    }
}
