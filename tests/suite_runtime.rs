//! The runtime on simulated engines, in virtual time wherever that can be; and the rules that sources keep. Needs no feature.

mod support;

mod fairness;
mod replay;
mod restart;
mod runtime;
mod tidy;
