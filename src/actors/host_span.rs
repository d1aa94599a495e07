//! The span of the host program that a task was submitted in: its attempts run inside it, until the task has ended. It is open as long as
//! somebody has it, and a record may stay for long.

use tracing::Span;

use crate::actors::record::TaskRecord;

/// A span that somebody records.
pub(super) type HostSpan = Option<Box<Span>>;

/// The span here, if it is recorded.
pub(super) fn current() -> HostSpan {
    let span = Span::current();
    (!span.is_disabled()).then(|| Box::new(span))
}

impl TaskRecord {
    pub(super) fn host_span(&self) -> HostSpan {
        self.state.lock().host_span.clone()
    }

    pub(super) fn leave_host_span(&self) {
        let span = self.state.lock().host_span.take();
        drop(span); // Outside the lock: its subscriber is told.
    }
}
