//! The configuration of a running service: read, compared, changed, taken back.

pub(in crate::service) mod config_diff;
pub mod config_file;
pub(in crate::service) mod config_store;
pub mod engines;
pub(in crate::service) mod executed;
#[cfg(feature = "cluster")]
pub(in crate::service) mod node_rules;
pub(in crate::service) mod watch;
