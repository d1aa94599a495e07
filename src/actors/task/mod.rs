//! One task: its record, its event log, and those who read it.

pub(in crate::actors) mod ending;
pub mod event_log;
pub(in crate::actors) mod progress;
#[cfg(test)]
pub(in crate::actors) mod races;
pub mod reader;
pub(in crate::actors) mod reading;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod route;
pub(in crate::actors) mod task_log;
pub mod task_view;
