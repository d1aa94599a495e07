//! Engines and devices: servers that are like them, their misbehaviour, and the real ones where they are installed.

mod support;

mod chaos;
#[cfg(feature = "service")]
mod conformance;
#[cfg(feature = "service")]
mod determinism;
#[cfg(feature = "service")]
mod devices;
mod llamacpp;
mod llamareload;
#[cfg(feature = "service")]
mod misbehaving;
#[cfg(feature = "service")]
mod room;
#[cfg(feature = "service")]
mod vllm;
