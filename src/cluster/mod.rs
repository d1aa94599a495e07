//! Nodes: how they find each other worthy, what they say to each other, and how one runs what another has accepted.
//!
//! In reading order: [`identity`] is what a node is known by (`x509` is what is read from certificates), the roster who
//! may link, [`hello`] what two nodes say to each other first, and [`door`] lets peers in and knocks at theirs.
//! [`words`] is what is said on a link; the link actor says it, the members actor has one for each peer. A peer's pools
//! are pools of this runtime (`shadows`), whose engine is the link (`remote_engine`); what a peer sends here is a guest
//! (`guests`). Nodes are found by a name (`discovery`), tell each other where conversations are warm (`warm`), and keep
//! away from some (`apart`). What is decided about a peer or a link is decided in
//! [`core::node`](crate::core::cluster::node) and [`core::link`](crate::core::cluster::link).

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
