//! Engines and the devices that they run on. Knows no queue, client, admission or actor.
//!
//! An [`Engine`] is one model on one device mask. The simulated one is always there; those reached over HTTP come with
//! the feature `engines-http`.

pub mod engine;
#[cfg(feature = "engines-http")]
pub(crate) mod http;
#[cfg(feature = "engines-http")]
pub mod llamacpp;
#[cfg(feature = "engines-http")]
pub(crate) mod process;
pub mod sim;
#[cfg(feature = "engines-http")]
pub(crate) mod sse;

pub use engine::{
    Engine, EngineContext, EngineError, EngineInfo, EngineSite, Exit, Finish, Job, Stopped, Telemetry, TokenOutput,
};
pub use sim::SimEngine;
