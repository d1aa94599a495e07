//! The runtime on simulated engines, in virtual time wherever that can be; and the rules that sources keep. Needs no
//! feature.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

mod embedding;
mod fairness;
mod replay;
mod restart;
mod runtime;
mod tidy;
