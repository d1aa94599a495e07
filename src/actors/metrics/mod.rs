//! Figures of a pool: counters, samples of ended tasks, and the actor that computes latency percentiles.

pub(crate) mod counters;
pub(crate) mod latency;
pub(in crate::actors) mod samples;
