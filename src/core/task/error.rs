//! The error codes that clients see, and the envelope they come in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::task::failure::Cause;
use crate::core::text::line::{Message, Name};
use crate::core::units::millis_ceil;

/// What went wrong, as a stable word of the contract (ORCH-3044). There are no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No room: the intake gate or a queue that rejects is full, or the task was shed for a more important one.
    AdmissionReject,
    /// The task was the oldest of a full queue and made room for a newer one.
    QueueFullDropLru,
    /// The request itself is wrong; sending it again gives the same answer.
    InvalidParams,
    /// The pool has not loaded its model, and is going to try again.
    PoolUnready,
    /// The pool is out: it drains, is stopped, or its breaker is open.
    PoolUnavailable,
    /// Every replica of the set is full or lost.
    ReplicaExhausted,
    /// The watchdog or the task's own deadline ended it.
    DecodeTimeout,
    /// The worker that ran the task died, or its engine did.
    WorkerReset,
    /// A bug of ours.
    Internal,
}

impl ErrorCode {
    /// Every code, in the order of the contract.
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::AdmissionReject,
        ErrorCode::QueueFullDropLru,
        ErrorCode::InvalidParams,
        ErrorCode::PoolUnready,
        ErrorCode::PoolUnavailable,
        ErrorCode::ReplicaExhausted,
        ErrorCode::DecodeTimeout,
        ErrorCode::WorkerReset,
        ErrorCode::Internal,
    ];

    /// The code as it is written in JSON, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::AdmissionReject => "ADMISSION_REJECT",
            ErrorCode::QueueFullDropLru => "QUEUE_FULL_DROP_LRU",
            ErrorCode::InvalidParams => "INVALID_PARAMS",
            ErrorCode::PoolUnready => "POOL_UNREADY",
            ErrorCode::PoolUnavailable => "POOL_UNAVAILABLE",
            ErrorCode::ReplicaExhausted => "REPLICA_EXHAUSTED",
            ErrorCode::DecodeTimeout => "DECODE_TIMEOUT",
            ErrorCode::WorkerReset => "WORKER_RESET",
            ErrorCode::Internal => "INTERNAL",
        }
    }

    /// Whether the same request may succeed when it is sent again.
    pub const fn retriable(self) -> bool {
        !matches!(self, ErrorCode::InvalidParams)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The envelope of every error that a client sees: `{code, message, engine?, retriable, retry_after_ms?, policy?}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
#[non_exhaustive]
pub struct TaskError {
    /// The stable word.
    pub code: ErrorCode,
    /// What happened, where, and what would be right. Lowercase, one line.
    pub message: Message,
    /// The engine that was meant to serve, when one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Name>,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// When to come back, in milliseconds, computed from the state of the queue (ORCH-2007).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The full-queue policy that decided, when one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What the engine failed of whose words the message has. Not part of the envelope.
    #[serde(skip)]
    pub quotes: Option<Cause>,
    /// Tasks that would have been ahead of it, when a queue refused it. Not part of the envelope.
    #[serde(skip)]
    pub queue_position: Option<u64>,
}

impl TaskError {
    /// An error with this code and text, and nothing else known.
    pub fn new(code: ErrorCode, message: impl Into<Message>) -> Self {
        TaskError {
            code,
            message: message.into(),
            engine: None,
            retriable: code.retriable(),
            retry_after_ms: None,
            policy: None,
            quotes: None,
            queue_position: None,
        }
    }

    /// The same error, saying when to come back. At least one millisecond.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after_ms = Some(millis_ceil(wait).max(1));
        self
    }

    /// The same error, naming the engine.
    #[must_use]
    pub fn engine(mut self, engine: impl Into<Name>) -> Self {
        self.engine = Some(engine.into());
        self
    }

    /// The same error, whose message has words of an engine that failed of this.
    #[must_use]
    pub fn quoting(mut self, cause: Cause) -> Self {
        self.quotes = Some(cause);
        self
    }

    /// The same error without what an engine said, which may be a part of the request: for whoever may not see that.
    pub fn hide_words(&mut self) {
        if let Some(cause) = self.quotes {
            self.message = hidden(cause);
        }
    }

    /// The same error, naming the full-queue policy that decided.
    #[must_use]
    pub fn policy(mut self, policy: impl Into<String>) -> Self {
        self.policy = Some(policy.into());
        self
    }
}

/// What stands for the words of an engine that failed of this.
pub fn hidden(cause: Cause) -> Message {
    let cause = cause.as_str();
    format!("the engine failed: {cause}; what it said is for the task's client and for 'admin'").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_spelling() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(&code).expect("serialises");
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(json, format!("\"{code}\""));
        }
    }

    #[test]
    fn only_a_wrong_request_is_final() {
        let finals: Vec<_> = ErrorCode::ALL.into_iter().filter(|code| !code.retriable()).collect();
        assert_eq!(finals, [ErrorCode::InvalidParams]);
    }
}
