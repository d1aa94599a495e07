//! Supervisors: the root, one for each pool, and the monitor of devices.

pub(crate) mod gpu_monitor;
pub(crate) mod pool_supervisor;
pub(in crate::actors) mod reload_walk;
pub(in crate::actors) mod retirement;
pub(crate) mod root;
