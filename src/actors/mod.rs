//! Everything with a mailbox, and what they share.
//!
//! An actor decides nothing by itself: it asks `core`, gets a value, and acts on it. What must outlive an actor (a
//! task, a slot, an engine) is owned by the ledger or by `shared`, and only lent.

pub(crate) mod admission;
pub(crate) mod dispatch;
pub(crate) mod kit;
pub(crate) mod ledger;
pub mod metrics;
pub mod pool;
pub(crate) mod quota;
#[cfg(test)]
mod races;
pub mod runtime;
pub mod task;
pub(crate) mod tree;
pub(crate) mod worker;
