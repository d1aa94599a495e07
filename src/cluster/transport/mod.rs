//! From a connection to an authenticated peer: certificates, the handshake, the network of real nodes.

pub mod acceptor;
pub mod handshake;
pub mod identity;
pub(in crate::cluster) mod network;
pub(in crate::cluster) mod sessions;
pub(in crate::cluster) mod tls_network;
pub(crate) mod x509;
