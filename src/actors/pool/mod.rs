//! What outlives the actors of one pool: its parts, its replicas, and the slots of each.

pub(crate) mod devices;
pub(in crate::actors) mod home;
pub(crate) mod lease;
pub(crate) mod messages;
pub(in crate::actors) mod parts;
pub(crate) mod pools;
pub mod reload;
pub(in crate::actors) mod remote;
pub(crate) mod replica;
pub mod revision;
pub(crate) mod shared;
pub(crate) mod slots;
