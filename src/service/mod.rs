//! The service around the runtime: the HTTP API, the configuration file, the command line of `orchestratord`.
//!
//! It translates the outside into the public handle and back, and knows nothing that an embedder would need.

pub mod api;
pub mod cli;
pub mod config_file;
mod device_metrics;
mod devices;
pub mod engines;
mod error;
pub mod http;
mod metrics;
mod pools;
mod serve;
mod stream;
mod submit;
mod tasks;
