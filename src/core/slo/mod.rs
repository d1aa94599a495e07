//! What is wanted of the service, and how far it is met.

pub mod objectives;
#[doc(hidden)]
pub mod rolling;
