//! The engines that are delivered: the simulated one, and those behind HTTP.

#[cfg(feature = "engines-http")]
pub(crate) mod completions;
#[cfg(feature = "engines-http")]
pub mod llamacpp;
#[cfg(feature = "engines-http")]
pub(crate) mod llamacpp_api;
#[cfg(feature = "engines-http")]
pub mod openai;
#[cfg(feature = "engines-http")]
pub(crate) mod openai_api;
pub mod registry;
pub mod sim;
pub(in crate::gpu) mod sim_text;
#[cfg(feature = "engines-http")]
pub mod tgi;
#[cfg(feature = "engines-http")]
pub mod triton;
#[cfg(feature = "engines-http")]
pub mod vllm;
