//! Nodes that run each other's tasks, in virtual time, and who is let in as one.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

mod cluster;
mod nodes;
