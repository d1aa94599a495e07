//! A task on its way in, and what it is answered with.

use std::sync::Arc;
use std::time::Duration;

use ractor::RpcReplyPort;

use crate::actors::task::record::TaskRecord;
use crate::core::task::error::TaskError;

/// What a submission is answered with.
pub(crate) type Verdict = Result<Accepted, TaskError>;

/// The queue has taken a task in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Tasks that will be started before it.
    pub(crate) queue_position: u64,
    /// Predicted time until it starts.
    pub(crate) predicted_start: Duration,
}

/// A task on its way in, with the caller who waits for the verdict.
pub(crate) struct Submission {
    pub(crate) record: Arc<TaskRecord>,
    pub(crate) reply: RpcReplyPort<Verdict>,
}
