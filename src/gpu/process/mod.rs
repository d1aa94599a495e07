//! Processes of engines: what they are given of the host, how they are started, and how all of them end.

#[cfg(feature = "engines-http")]
pub(crate) mod account;
pub(crate) mod cgroup;
#[cfg(feature = "engines-http")]
pub(crate) mod child;
#[cfg(feature = "engines-http")]
pub(crate) mod children;
#[cfg(feature = "engines-http")]
pub(crate) mod digest;
#[cfg(feature = "engines-http")]
pub(crate) mod engine_group;
#[cfg(feature = "engines-http")]
pub(in crate::gpu) mod environment;
pub(crate) mod host;
#[cfg(feature = "engines-http")]
pub(crate) mod memory_kills;
#[cfg(feature = "engines-http")]
pub(crate) mod ports;
