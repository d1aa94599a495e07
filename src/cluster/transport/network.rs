//! Where connections between nodes come from.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ractor_cluster::ClusterBidiStream;

use crate::cluster::transport::handshake::{Authenticated, HandshakeError, Role};
use crate::cluster::transport::x509::Shown;
use crate::core::cluster::node::NodeName;

/// A peer that has been introduced, and the connection to it.
pub struct Caller {
    /// Who it is, and what was decided.
    pub peer: Authenticated,
    /// What it has to show with everything that it says.
    pub token: [u8; 16],
    /// Which side this is.
    pub role: Role,
    /// The connection, behind the introduction.
    pub stream: Box<dyn ClusterBidiStream>,
    /// Where it is, for people.
    pub address: String,
    /// The certificate that it has shown; `None` on a network without any.
    pub shown: Option<Arc<Shown>>,
}

/// What is at an address.
pub enum Found {
    /// A node with which there is no link yet, and the connection to it.
    Node(Caller),
    /// This one, which needs no connection: it is linked, it dials by itself, or it is this node.
    Known(NodeName),
    /// No node of the cluster, and why.
    Nobody(String),
}

impl Found {
    /// What an introduction at an address has come to.
    pub fn of(introduced: Result<Caller, HandshakeError>) -> Self {
        match introduced {
            Ok(caller) => Found::Node(caller),
            Err(HandshakeError::Refused(refusal)) => {
                refusal.found().cloned().map_or_else(|| Found::Nobody(refusal.to_string()), Found::Known)
            }
            Err(error) => Found::Nobody(error.to_string()),
        }
    }
}

/// A future of a [`Network`].
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What connections between nodes come from. Each of them is authenticated and introduced before it gets here.
pub trait Network: Send + Sync + 'static {
    /// Makes a connection to the node of this name.
    ///
    /// # Cancel safety
    /// Dropped, it leaves nothing of the connection.
    fn dial<'a>(&'a self, name: &'a NodeName, address: &'a str) -> Pending<'a, Result<Caller, String>>;

    /// The addresses that a name of the domain name system, with a port, stands for now.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    fn resolve<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Vec<String>, String>>;

    /// Makes a connection to whichever node is at this address.
    ///
    /// # Cancel safety
    /// Dropped, it leaves nothing of the connection.
    fn find<'a>(&'a self, address: &'a str) -> Pending<'a, Found>;

    /// The next peer that has made a connection to us; `None` when none will come any more.
    ///
    /// # Cancel safety
    /// Dropped, it loses no peer.
    fn accept(&self) -> Pending<'_, Option<Caller>>;

    /// What speaks now against the certificate that a linked peer has shown, such as that it has been revoked since.
    fn objection(&self, peer: &NodeName, shown: &Shown) -> Option<String> {
        let _ = (peer, shown);
        None
    }
}
