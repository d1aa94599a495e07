//! Where sessions were served, for other nodes.

use std::collections::BTreeSet;

use crate::actors::task::event_log::ReplicaIdentity;
use crate::core::id::{ClientId, PoolId, SessionId};

/// A conversation that a replica has served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionLocation {
    pub(crate) pool: PoolId,
    pub(crate) client: ClientId,
    pub(crate) session: SessionId,
}

/// Conversations that replicas have served since somebody last asked; `None` while nobody asks. For other nodes.
#[derive(Default)]
pub(crate) struct SessionLocations(parking_lot::Mutex<Option<BTreeSet<SessionLocation>>>);

impl SessionLocations {
    /// Most that are kept. Nobody asks for them any more when there are so many.
    const MAX: usize = 16_384;

    pub(in crate::actors) fn note(&self, identity: &ReplicaIdentity, client: &ClientId, session: &SessionId) {
        let mut kept = self.0.lock();
        let Some(set) = &mut *kept else { return };
        let pool = identity.replica.pool.clone();
        set.insert(SessionLocation { pool, client: client.clone(), session: session.clone() });
        if set.len() > Self::MAX {
            *kept = None;
        }
    }

    /// What has come since the last call. The first call begins to keep it.
    pub(crate) fn take(&self) -> BTreeSet<SessionLocation> {
        std::mem::take(self.0.lock().get_or_insert_default())
    }
}
