//! Nodes: how they find each other worthy, what they say to each other, and how one runs what another has accepted.
//!
//! In reading order: [`identity`] is what a node is known by (`x509` is what is read from certificates), the roster who may link, [`hello`] what two nodes say to each other first, and [`door`] lets peers in
//! and knocks at theirs. [`words`] is what is said on a link; the link actor says it, the members actor has one for each peer. A peer's
//! pools are pools of this runtime (`shadows`), whose engine is the link (`remote_engine`); what a peer sends here is a guest (`guests`).
//! Nodes are found by a name (`discovery`), tell each other where conversations are warm (`warm`), and keep away from some (`apart`).
//! What is decided about a peer or a link is decided in [`core::node`](crate::core::node) and [`core::link`](crate::core::link).

mod announce;
mod apart;
mod demand;
mod discovery;
pub mod door;
mod guests;
pub mod hello;
pub mod identity;
mod link_actor;
mod links;
mod members;
mod node;
mod remote_engine;
mod roster;
mod served;
mod sessions;
mod shadows;
mod shared;
mod tls_network;
mod warm;
pub mod words;
pub(crate) mod x509;

pub use door::{Arrived, Door, DoorCounts, DoorError};
pub use hello::{HelloError, Introduced};
pub use identity::{Cookie, Ends, Identity};
pub use node::{LinkView, Node, NodeArgs, NodeView, PeerView, StartNodeError};
pub use roster::Roster;
pub use shared::{Caller, Found, Network, NodePolicy, Pending};
pub use tls_network::TlsNetwork;
pub use x509::Shown;
