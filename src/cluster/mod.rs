//! Nodes: how they find each other worthy, what they say to each other, and how one runs what another has accepted.
//!
//! In reading order: [`transport`] has what a node is known by (`identity`, `x509`), what two nodes say to each other
//! first (`handshake`) and how peers are let in (`acceptor`); `membership` has who may link (`roster`), how nodes are
//! found by a name (`discovery`) and the members actor; [`link`] has what is said on a link (`protocol`) and the actor
//! that says it. `sharing` has the rest: a peer's pools are pools of this runtime (`remote_pools`), whose engine is the
//! link (`remote_engine`); what a peer sends here is an inbound attempt (`inbound`). Nodes tell each other where
//! sessions are warm (`warm`), and keep away from some (`anti_affinity`). What is decided about a peer or a link is
//! decided in [`core::cluster`](crate::core::cluster).

pub mod link;
mod membership;
mod sharing;
pub mod transport;

mod node;
mod shared;

pub use link::protocol;
pub use membership::roster::Roster;
pub use node::{LinkView, Node, NodeArgs, NodeView, PeerView, StartNodeError};
pub use shared::NodePolicy;
pub use transport::acceptor::{self, Acceptor, AcceptorCounts, AcceptorError, AuthenticatedPeer};
pub use transport::handshake::{self, Authenticated, HandshakeError};
pub use transport::identity::{self, Cookie, Ends, Identity};
pub use transport::network::{Caller, Found, Network, Pending};
pub use transport::tls_network::TlsNetwork;
pub use transport::x509::Shown;
