//! The span of the host program that a task was submitted in: its attempts run inside it, until the task has ended. It
//! is open as long as somebody has it, and a record may stay for long.

use tracing::Span;
use tracing::dispatcher::has_been_set;

/// A span that somebody records.
pub(in crate::actors) type HostSpan = Option<Box<Span>>;

/// The span here, if it is recorded.
pub(in crate::actors) fn current() -> HostSpan {
    if !has_been_set() {
        return None;
    }
    let span = Span::current();
    (!span.is_disabled()).then(|| Box::new(span))
}
