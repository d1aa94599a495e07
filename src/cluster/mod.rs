//! Nodes: how they find each other worthy.
//!
//! In reading order: [`identity`] is what a node is known by, [`hello`] what two nodes say to each other first, and [`door`] lets peers in
//! and knocks at theirs. What is decided about a peer is decided in [`core::node`](crate::core::node).

pub mod door;
pub mod hello;
pub mod identity;

pub use door::{Arrived, Door, DoorCounts, DoorError};
pub use hello::{HelloError, Introduced};
pub use identity::{Cookie, Identity};
