//! One connection between two nodes, and what is said on it.

pub(in crate::cluster) mod link_actor;
pub(in crate::cluster) mod links;
pub(in crate::cluster) mod messages;
pub mod protocol;
