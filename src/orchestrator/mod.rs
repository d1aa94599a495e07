//! The public handle: start a runtime, submit tasks, read and cancel them, look at it, stop it.

mod builder;
mod explain;
#[cfg(any(feature = "cluster", feature = "service"))]
pub(crate) mod fabric;
mod handle;
mod life;
mod reconfigure;
mod reload;
#[cfg(feature = "cluster")]
mod remote;
mod submission;
#[cfg(feature = "tower")]
mod tower;

pub use builder::{Builder, StartError};
pub use explain::{Explanation, PoolConsidered, ReplicaConsidered};
pub use handle::{CancelOutcome, Orchestrator};
pub use submission::Submitted;
