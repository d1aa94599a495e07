//! The way of a request through the HTTP API: listener, guard, entry, route, body, error.

pub(in crate::service) mod app;
pub(in crate::service) mod bodies;
pub(in crate::service) mod body;
pub(in crate::service) mod entry;
pub(in crate::service) mod error;
pub(in crate::service) mod guard;
pub(in crate::service) mod limits;
pub(in crate::service) mod listener;
pub(in crate::service) mod openapi;
pub mod routes;
pub(in crate::service) mod rule;

pub use openapi::{ApiDoc, openapi};
