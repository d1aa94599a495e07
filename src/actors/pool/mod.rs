//! What outlives the actors of one pool: its parts, its replicas, and the slots of each.

pub(in crate::actors) mod abroad;
pub(crate) mod devices;
pub(crate) mod lease;
pub(crate) mod outlier;
pub(crate) mod pools;
pub mod reload;
pub(crate) mod replica;
pub(crate) mod shared;
