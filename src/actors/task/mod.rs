//! One task: its record, its event log, and those who read it.

pub mod event_log;
pub(crate) mod home;
pub(crate) mod lingering;
pub(in crate::actors) mod log;
pub(in crate::actors) mod progress;
pub(in crate::actors) mod readers;
pub(crate) mod record;
pub(crate) mod route;
pub(in crate::actors) mod seal;
pub(in crate::actors) mod state;
pub mod view;
