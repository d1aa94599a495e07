//! Figures of a pool: counters, samples of ended tasks, and the actor that computes latency percentiles.

pub(crate) mod counters;
pub mod events;
pub(in crate::actors) mod samples;
pub mod view;
