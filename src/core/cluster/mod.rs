//! Nodes and the links between them, as values.

#[doc(hidden)]
pub mod link;
#[doc(hidden)]
pub mod membership;
pub mod node;
#[cfg(feature = "cluster")]
#[doc(hidden)]
pub mod wire;
