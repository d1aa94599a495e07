//! What the actors of a runtime are told: below them.

use std::sync::Arc;

use ractor::RpcReplyPort;
use serde::Serialize;

use crate::actors::pool::messages::Submission;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::core::device::Observation;
use crate::core::id::{ClientId, DeviceId, ReplicaId, SessionId};

/// What admission is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum AdmissionMsg {
    /// Check a task and send it on.
    Submit(Submission),
}

/// What the sessions actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum SessionsMsg {
    /// Note the conversation's warm replica on this task and pass it on to its queue.
    Locate { session: SessionId, pool: Arc<PoolShared>, submission: Submission },
    /// A replica has served this conversation.
    Served { session: SessionId, client: ClientId, identity: Arc<ReplicaIdentity> },
    /// Replicas of other nodes have served these conversations.
    #[cfg(feature = "cluster")]
    ServedElsewhere(Vec<(ClientId, SessionId, Arc<ReplicaIdentity>)>),
    /// What is known of this client's conversation?
    Observe { session: SessionId, client: ClientId, reply: RpcReplyPort<Option<SessionView>> },
    /// Forget this client's conversation.
    Forget { session: SessionId, client: ClientId, reply: RpcReplyPort<Option<SessionView>> },
}

/// What the rollouts actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum RolloutsMsg {
    /// A rollout has begun.
    Look,
    // ---- from itself
    /// Look at the new sides once more.
    Tick,
}

/// What the root is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum RootMsg {
    /// The wait before a restart is over.
    StartChild { child: RootChild, generation: u64 },
    /// The pools have changed: new ones are to be started.
    PoolsChanged,
    /// Do nothing: the trace shows that it lives, or a planned fault strikes.
    Ping,
}

/// The children, in start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootChild {
    /// Conversations.
    Sessions,
    /// The devices' looker-on.
    GpuMonitor,
    /// Models by percentage.
    Rollouts,
    /// One pool, by position.
    Pool(u16),
    /// The way in: last, so that whatever it sends tasks to is there.
    Admission,
}

/// What the GPU monitor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum GpuMonitorMsg {
    /// Something was seen of a device.
    Seen { device: DeviceId, what: Observation },
    // ---- from itself
    /// A period has passed.
    Tick,
}

/// A conversation as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionView {
    /// Its id.
    pub session_id: SessionId,
    /// The client it belongs to.
    pub client_id: ClientId,
    /// The replica that served it last.
    pub replica_id: Option<ReplicaId>,
    /// Tasks that were submitted in it.
    pub tasks: u64,
    /// Milliseconds until it is forgotten, if no task comes.
    pub expires_in_ms: u64,
}
