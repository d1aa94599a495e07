//! `ractor_cluster`'s sessions: what it says of them, and the name by which each is known.

use ractor::ActorRef;
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription};

use crate::cluster::membership::messages::MembersMsg;

/// Passes on what `ractor_cluster` says of its sessions.
pub(in crate::cluster) struct Sessions(pub(in crate::cluster) ActorRef<MembersMsg>);

impl Sessions {
    fn tell(&self, message: MembersMsg) {
        let _ = self.0.cast(message); // Gone, and the sessions with it.
    }
}

impl NodeEventSubscription for Sessions {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        self.tell(MembersMsg::Opened { label: session.peer_addr, session: session.actor });
    }
    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.tell(MembersMsg::Over { label: session.peer_addr });
    }
    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}
    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.tell(MembersMsg::Ready { label: session.peer_addr, session: session.actor });
    }
}

/// A connection under the name that its session is known by.
pub(in crate::cluster) struct Labelled {
    pub(in crate::cluster) stream: Box<dyn ClusterBidiStream>,
    pub(in crate::cluster) label: String,
}

impl ClusterBidiStream for Labelled {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        self.stream.split()
    }
    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}
