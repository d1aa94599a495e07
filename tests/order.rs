//! The order of a pool's queue against a naive model, and its bounds F1 to F13 with what was measured beside each.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::needless_range_loop)]

#[path = "order/bounds.rs"]
mod bounds;
#[path = "order/model.rs"]
mod model;
#[path = "order/programs.rs"]
mod programs;
