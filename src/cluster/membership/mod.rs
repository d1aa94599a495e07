//! Which nodes there are, and who is linked with whom.

pub(in crate::cluster) mod discovery;
pub(in crate::cluster) mod members;
pub(in crate::cluster) mod messages;
pub(in crate::cluster) mod roster;
