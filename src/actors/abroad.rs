//! A pool of another node, as a pool of this one: what is known of it here.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::actors::shared::PoolShared;
use crate::core::id::PoolId;
use crate::core::node::NodeName;

/// The other node's pool.
pub(crate) struct Abroad {
    node: NodeName,
    /// Its name there.
    pool: PoolId,
    /// What is sent there now would wait. Written by the node's link.
    is_full: AtomicBool,
}

impl PoolShared {
    /// Whether its engine is another node's pool.
    pub(crate) fn is_remote(&self) -> bool {
        self.abroad.get().is_some()
    }

    /// The node whose pool its engine is, if it is another's.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        self.abroad.get().map(|abroad| &abroad.node)
    }

    /// The name by which clients and keys are allowed to use it: a pool of another node goes by its name there.
    pub(crate) fn allowed_as(&self) -> &PoolId {
        self.abroad.get().map_or(&self.id, |abroad| &abroad.pool)
    }

    /// Whether what is sent to its node now would wait there, for all that its slots here are free.
    pub(crate) fn is_full_there(&self) -> bool {
        self.abroad.get().is_some_and(|abroad| abroad.is_full.load(Relaxed))
    }

    /// Notes whether what is sent to its node now would wait there.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_full_there(&self, is_full: bool) {
        self.abroad.get().into_iter().for_each(|abroad| abroad.is_full.store(is_full, Relaxed));
    }

    /// Its engine is this pool of this node.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_node(&self, node: NodeName, pool: PoolId) {
        let is_full = AtomicBool::new(false);
        let _ = self.abroad.set(Abroad { node, pool, is_full }); // Once, by whoever made it.
    }
}
