//! Engines and the devices that they run on. Knows no queue, client, admission or actor.
//!
//! An [`Engine`] is one model on one device mask. The simulated one is always there; those reached over HTTP come with
//! the feature `engines-http`.

pub mod blocking;
pub(crate) mod cgroup;
pub mod devices;
pub mod dyn_engine;
pub mod engine;
mod engine_error;
pub(crate) mod host;
#[cfg(feature = "nvml")]
pub mod nvml;
pub mod registry;
pub mod sim;
mod sim_text;
pub(crate) mod threads;

#[cfg(feature = "engines-http")]
pub mod llamacpp;
#[cfg(feature = "engines-http")]
pub mod openai;
#[cfg(feature = "engines-http")]
pub mod tgi;
#[cfg(feature = "engines-http")]
pub mod triton;
#[cfg(feature = "engines-http")]
pub mod vllm;

#[cfg(feature = "engines-http")]
pub(crate) mod account;
#[cfg(feature = "engines-http")]
pub(crate) mod children;
#[cfg(feature = "engines-http")]
pub(crate) mod completions;
#[cfg(feature = "engines-http")]
pub(crate) mod connection;
#[cfg(all(test, feature = "engines-http"))]
mod corpus;
#[cfg(feature = "engines-http")]
pub(crate) mod dial;
#[cfg(feature = "engines-http")]
pub(crate) mod digest;
#[cfg(feature = "engines-http")]
pub(crate) mod engine_group;
#[cfg(feature = "engines-http")]
mod environment;
#[cfg(feature = "engines-http")]
pub(crate) mod figures;
#[cfg(all(test, feature = "engines-http"))]
mod fuzz;
#[cfg(feature = "engines-http")]
pub(crate) mod http;
#[cfg(feature = "engines-http")]
mod identity;
#[cfg(feature = "engines-http")]
pub(crate) mod llamacpp_api;
#[cfg(feature = "engines-http")]
pub(crate) mod memory_kills;
#[cfg(feature = "engines-http")]
pub(crate) mod openai_api;
#[cfg(feature = "engines-http")]
pub(crate) mod ports;
#[cfg(feature = "engines-http")]
pub(crate) mod process;
#[cfg(feature = "engines-http")]
pub(crate) mod refusal;
#[cfg(feature = "engines-http")]
pub(crate) mod runs;
#[cfg(feature = "engines-http")]
pub(crate) mod server;
#[cfg(feature = "engines-http")]
pub(crate) mod sse;
#[cfg(feature = "engines-http")]
pub(crate) mod vectors;

pub use blocking::{Blocking, BlockingEngine, BlockingJob, BlockingOutput};
pub use devices::{DeviceProbe, DeviceSink, SimDevices};
pub use dyn_engine::DynEngine;
pub use engine::{
    Engine, EngineContext, EngineError, EngineInfo, EngineSite, Exit, Finish, Job, OtherError, Repeats, Stopped,
    Telemetry, TokenOutput,
};
pub use registry::EngineRegistry;
pub use sim::SimEngine;
