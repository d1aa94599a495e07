//! Order, capacity and fairness through the real actors, in virtual time.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "fairness/flood.rs"]
mod flood;
#[path = "fairness/limits.rs"]
mod limits;
#[path = "fairness/overload.rs"]
mod overload;
#[path = "fairness/priority.rs"]
mod priority;
#[path = "fairness/siblings.rs"]
mod siblings;
