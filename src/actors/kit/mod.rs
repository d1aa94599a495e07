//! What every actor uses: addresses, the restart rule, the span of the host program.

pub(crate) mod address;
pub(crate) mod children;
pub(crate) mod gate;
pub(in crate::actors) mod host_span;
pub(crate) mod room;
