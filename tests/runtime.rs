//! The embedded runtime, through its public handle, in virtual time on one thread.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "runtime/admission.rs"]
mod admission;
#[path = "runtime/cancel.rs"]
mod cancel;
#[path = "runtime/causes.rs"]
mod causes;
#[path = "runtime/devices.rs"]
mod devices;
#[path = "runtime/drain.rs"]
mod drain;
#[path = "runtime/panics.rs"]
mod panics;
#[path = "runtime/percentiles.rs"]
mod percentiles;
#[path = "runtime/quarantine.rs"]
mod quarantine;
#[path = "runtime/queue_policies.rs"]
mod queue_policies;
#[path = "runtime/reconfigure.rs"]
mod reconfigure;
#[path = "runtime/reload.rs"]
mod reload;
#[path = "runtime/resume.rs"]
mod resume;
#[path = "runtime/self_test.rs"]
mod self_test;
#[path = "runtime/sessions.rs"]
mod sessions;
#[path = "runtime/streams.rs"]
mod streams;
#[path = "runtime/threads.rs"]
mod threads;
#[path = "runtime/workers.rs"]
mod workers;
