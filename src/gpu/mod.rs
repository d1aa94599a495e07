//! Engines and the devices that they run on. Knows no queue, client, admission or actor.
//!
//! An [`Engine`] is one model on one device mask. The simulated one is always there; those reached over HTTP come with
//! the feature `engines-http`.

pub mod devices;
#[doc(hidden)]
pub mod engines;
#[cfg(feature = "engines-http")]
pub(crate) mod http;
pub(crate) mod process;

pub mod blocking;
pub mod dyn_engine;
pub mod engine;
mod engine_error;
pub(crate) mod threads;

pub use blocking::{Blocking, BlockingEngine, BlockingJob, BlockingOutput};
#[cfg(feature = "nvml")]
#[doc(inline)]
pub use devices::nvml;
pub use devices::{DeviceProbe, DeviceSink, SimDevices};
pub use dyn_engine::DynEngine;
pub use engine::{
    Engine, EngineContext, EngineError, EngineInfo, Exit, Finish, Job, OtherError, Repeats, Stopped, Teardown,
    Telemetry, TokenOutput,
};
#[doc(inline)]
pub use engines::registry::{self, EngineRegistry};
#[doc(inline)]
pub use engines::sim::{self, SimEngine};
#[cfg(feature = "engines-http")]
#[doc(inline)]
pub use engines::{llamacpp, openai, tgi, triton, vllm};
