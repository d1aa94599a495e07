//! The service from outside: its API, its access, its commands, its documents.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

mod access;
mod dashboard;
mod documents;
mod fuzz;
mod http;
mod impossible;
mod limits;
#[cfg(feature = "cluster")]
mod membership;
mod operate;
mod orphans;
#[cfg(feature = "otlp")]
mod otlp;
mod specs;
