//! The host that the service runs on: its files, its processes, its devices.

pub(in crate::service) mod borders;
pub(in crate::service) mod devices;
pub(in crate::service) mod file_limit;
pub(in crate::service) mod file_write;
pub(in crate::service) mod folder;
pub(in crate::service) mod reaper;
