//! Engines and devices: servers that are like them, their misbehaviour, and the real ones where they are installed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

#[cfg(feature = "service")]
mod back_pressure;
mod chaos;
#[cfg(feature = "service")]
mod conformance;
#[cfg(feature = "service")]
mod determinism;
#[cfg(feature = "service")]
mod devices;
#[cfg(feature = "service")]
mod identity;
#[cfg(feature = "service")]
mod legal_answers;
mod llamacpp;
mod llamareload;
#[cfg(feature = "service")]
mod misbehaving;
#[cfg(feature = "service")]
mod room;
#[cfg(feature = "service")]
mod vllm;
