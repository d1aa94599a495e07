//! From a connection to an authenticated peer: certificates, the handshake, the network of real nodes.

pub mod door;
pub mod hello;
pub mod identity;
pub(in crate::cluster) mod sessions;
pub(in crate::cluster) mod tls_network;
pub(crate) mod x509;
