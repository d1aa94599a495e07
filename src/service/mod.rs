//! The service around the runtime: the HTTP API, the configuration file, the command line of `orchestratord`.
//!
//! It translates the outside into the public handle and back, and knows nothing that an embedder would need.

mod access;
pub mod api;
pub mod cli;
pub mod config;
mod host;
pub mod http;
mod run;
mod telemetry;

mod dashboard;

pub use access::keys;
pub use cli::reference;
pub use config::{config_file, engines};
pub use http::routes;
