//! What the members actor is told.

use ractor::ActorRef;
use ractor_cluster::node::NodeSessionMessage;

use crate::cluster::transport::network::{Caller, Found};
use crate::core::cluster::node::NodeName;

/// What the actor is told.
pub(crate) enum MembersMsg {
    /// A peer has come, or answered.
    Came(Caller),
    /// A dial has failed.
    DialFailed { peer: NodeName, why: String },
    /// There is a link with a node.
    Linked(NodeName),
    /// A node has said what its pools are.
    Announced(NodeName),
    /// What the name that nodes are found by stands for.
    Listed(Result<Vec<String>, String>),
    /// Who is at one of those addresses.
    FoundAt { address: String, found: Found },
    // ---- from `ractor_cluster`
    /// A session has been opened for the connection of this label.
    Opened { label: String, session: ActorRef<NodeSessionMessage> },
    /// A session knows its peer's actors.
    Ready { label: String, session: ActorRef<NodeSessionMessage> },
    /// A session is over.
    Over { label: String },
    // ---- from itself
    /// A second has passed: limits are divided anew.
    Divide,
    /// It is time to dial a node, if there is no link with it.
    Dial(NodeName),
    /// It is time to look for nodes.
    Search,
}

impl ractor::Message for MembersMsg {}
