//! Everything with a mailbox, and what they share.
//!
//! An actor decides nothing by itself: it asks `core`, gets a value, and acts on it. What must outlive an actor (a task,
//! a slot, an engine) is owned by the ledger or by `shared`, and only lent.

mod abroad;
pub(crate) mod address;
pub(crate) mod admission;
pub(crate) mod attempt;
pub(crate) mod cancel;
pub(crate) mod claim;
pub(crate) mod clients;
pub(crate) mod counters;
mod deadlines;
pub(crate) mod devices;
pub(crate) mod dispatch;
mod ending;
pub(crate) mod engine_life;
mod engine_watch;
pub mod event_log;
pub mod events;
pub(crate) mod failures;
pub(crate) mod gate;
pub(crate) mod gpu_monitor;
mod host_span;
mod identity;
pub(crate) mod latency;
pub(crate) mod lease;
mod leaving;
pub(crate) mod ledger;
pub(crate) mod lingering;
mod load;
mod lost;
pub(crate) mod outlier;
mod output;
pub(crate) mod pool_manager;
pub(crate) mod pool_supervisor;
pub(crate) mod pools;
mod progress;
mod quarantine;
pub(crate) mod queue;
mod queue_views;
#[cfg(test)]
mod races;
pub mod reader;
mod reading;
pub(crate) mod record;
pub(crate) mod refusals;
pub mod reload;
mod reload_walk;
pub(crate) mod replay;
pub(crate) mod replica;
mod retained;
pub(crate) mod rollouts;
pub(crate) mod room;
pub(crate) mod root;
pub(crate) mod route;
pub(crate) mod runtime;
mod sample;
pub mod self_test;
pub(crate) mod sessions;
pub(crate) mod shared;
mod study;
pub(crate) mod submission;
pub(crate) mod supervise;
mod suspicion;
mod task_log;
pub mod task_view;
pub(crate) mod worker;
