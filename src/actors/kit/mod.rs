//! What every actor uses: addresses, the restart rule, the span of the host program.

pub(crate) mod address;
pub(in crate::actors) mod host_span;
pub(crate) mod supervise;
