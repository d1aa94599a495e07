//! What a pool is and serves: its states, its model, where a task runs in it, and when its workers are started again.

pub mod lifecycle;
#[doc(hidden)]
pub mod memory;
pub mod model;
#[doc(hidden)]
pub mod outlier;
#[doc(hidden)]
pub mod placement;
#[doc(hidden)]
pub mod reload;
#[doc(hidden)]
pub mod restart;
pub mod rollout;
#[doc(hidden)]
pub mod self_test;
