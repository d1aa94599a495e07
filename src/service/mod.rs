//! The service around the runtime: the HTTP API, the configuration file, the command line of `orchestratord`.
//!
//! It translates the outside into the public handle and back, and knows nothing that an embedder would need.

mod access;
pub mod api;
mod app;
mod bodies;
mod borders;
pub mod cli;
#[cfg(feature = "cluster")]
mod cluster_authority;
#[cfg(feature = "cluster")]
mod cluster_command;
mod config_command;
mod config_diff;
pub mod config_file;
mod config_store;
mod configs;
mod connections;
mod dashboard;
mod devices;
mod doctor;
pub mod engines;
mod entry;
mod error;
mod executed;
mod file_limit;
mod file_write;
mod folder;
mod glance;
pub mod http;
pub mod keys;
mod keys_command;
mod keys_lock;
mod listener;
mod log_throttle;
mod log_writer;
mod logging;
mod metrics;
mod named_counts;
#[cfg(feature = "cluster")]
mod node_metrics;
#[cfg(feature = "cluster")]
mod node_rules;
mod nodes;
mod notify;
#[cfg(feature = "otlp")]
mod otlp;
mod output;
mod own_metrics;
mod plain_text;
mod pools;
mod reaper;
pub mod reference;
mod remote;
mod request_guard;
mod request_origin;
mod rollouts;
pub mod routes;
mod serve;
mod shortage;
mod signals;
mod stream;
mod submit;
mod tasks;
mod throttle;
mod tls;
mod top;
mod top_view;
mod watch;
