//! The crate's own door into a runtime: what a node of a cluster and the service use of it beside the public handle.
//!
//! `cluster` and `service` stand on this module and on the handle alone, and know no actor.

use std::sync::Arc;

#[cfg(feature = "service")]
pub(crate) use crate::actors::task::event_log::Started;
#[cfg(feature = "cluster")]
pub(crate) use crate::actors::{
    kit::address::Address, pool::shared::PoolShared, quota::clients::ClientShared,
    runtime::session_feed::SessionLocation, task::event_log::End,
};
pub(crate) use crate::actors::{
    runtime::stream::TaskStream, task::event_log::EventRef, task::lingering::Cut, task::record::TaskRecord,
};
#[cfg(feature = "service")]
use crate::core::id::TaskId;
use crate::orchestrator::Orchestrator;

#[cfg(feature = "cluster")]
mod of_a_node {
    use std::collections::BTreeSet;

    use super::*;
    use crate::actors::pool::messages::QueueMsg;
    use crate::actors::pool::pools::Table;
    use crate::actors::quota::clients::Clients;
    use crate::actors::runtime::cancel::cancel;
    use crate::actors::runtime::messages::SessionsMsg;
    use crate::actors::task::event_log::ReplicaIdentity;
    use crate::core::id::{ClientId, SessionId};
    use crate::core::task::Priority;

    impl Orchestrator {
        /// The pools as of now.
        pub(crate) fn pool_table(&self) -> Arc<Table> {
            self.shared().pools.table()
        }

        /// The limits of clients.
        pub(crate) fn client_limits(&self) -> &Clients {
            &self.shared().clients
        }

        /// Cancels a task by its record, whoever's it is.
        pub(crate) fn cancel_record(&self, record: &TaskRecord) {
            cancel(self.shared(), record);
        }

        /// Sessions that replicas here have served since this was asked last.
        pub(crate) fn take_session_locations(&self) -> BTreeSet<SessionLocation> {
            self.shared().warmed.take()
        }

        /// Sessions that replicas of other nodes have served. A hint: while nobody takes it, they start cold.
        pub(crate) fn note_sessions_elsewhere(&self, served: Vec<(ClientId, SessionId, Arc<ReplicaIdentity>)>) {
            self.shared().actors.sessions.cast(SessionsMsg::ServedElsewhere(served));
        }
    }

    impl PoolShared {
        /// What another gateway has served of these clients, in virtual time. While nobody takes it, it is forgotten.
        pub(crate) fn note_served_elsewhere(&self, served: Arc<[(ClientId, Priority, i64)]>) {
            self.actors.queue.cast(QueueMsg::ServedElsewhere(served));
        }
    }
}

#[cfg(feature = "service")]
impl Orchestrator {
    /// Every task of this id, one for each client that has one.
    pub(crate) fn records(&self, id: &TaskId) -> Vec<Arc<TaskRecord>> {
        self.shared().ledger.every(id)
    }

    /// A stream of a task's events, from this one on.
    pub(crate) fn read(&self, record: Arc<TaskRecord>, from: usize) -> TaskStream {
        TaskStream::new(record, from, self.shared())
    }
}
