//! Nodes that run each other's tasks, in virtual time, and who is let in as one.

mod support;

mod cluster;
mod nodes;
