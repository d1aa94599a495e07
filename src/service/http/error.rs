//! Errors as HTTP answers: the envelope as the body, its advice as headers too.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::core::admission::NOT_ALLOWED;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::text::line::Message;

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    error: TaskError,
}

impl ApiError {
    /// An error with a status of its own.
    pub(crate) fn with_status(status: StatusCode, code: ErrorCode, message: impl Into<Message>) -> Self {
        ApiError { status, error: TaskError::new(code, message) }
    }

    /// The same error, with when to come back.
    pub(crate) fn retry_after_ms(mut self, ms: u64) -> Self {
        (self.error.retry_after_ms, self.error.retriable) = (Some(ms), true);
        self
    }

    /// A request that is wrong.
    pub(crate) fn invalid(message: impl Into<Message>) -> Self {
        Self::with_status(StatusCode::BAD_REQUEST, ErrorCode::InvalidParams, message)
    }

    /// A thing that is not there.
    pub(crate) fn not_found(message: impl Into<Message>) -> Self {
        Self::with_status(StatusCode::NOT_FOUND, ErrorCode::InvalidParams, message)
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        let status = match error.code {
            ErrorCode::InvalidParams if error.policy.as_deref() == Some(NOT_ALLOWED) => StatusCode::FORBIDDEN,
            ErrorCode::InvalidParams => StatusCode::BAD_REQUEST,
            ErrorCode::AdmissionReject | ErrorCode::QueueFullDropLru => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::PoolUnready | ErrorCode::PoolUnavailable | ErrorCode::ReplicaExhausted => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorCode::DecodeTimeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::WorkerReset => StatusCode::BAD_GATEWAY,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError { status, error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let advice = [
            (header::RETRY_AFTER.as_str(), self.error.retry_after_ms.map(|ms| ms.div_ceil(1000))),
            ("x-backoff-ms", self.error.retry_after_ms),
            ("x-queue-position", self.error.queue_position),
        ];
        let policy = self.error.policy.as_deref().and_then(|policy| HeaderValue::from_str(policy).ok());
        let mut response = (self.status, Json(self.error)).into_response();
        for (name, value) in advice {
            if let Some(value) = value {
                response.headers_mut().insert(name, HeaderValue::from(value));
            }
        }
        if let Some(policy) = policy {
            response.headers_mut().insert("x-policy", policy);
        }
        response
    }
}

/// How long whoever finds no room should stay away, in milliseconds.
const LIMITED_MS: u64 = 1_000;

/// The refusal of a client that holds its part of something already.
pub(crate) fn limited(policy: &'static str, text: &'static str) -> ApiError {
    let error = TaskError::new(ErrorCode::AdmissionReject, text).policy(policy);
    ApiError::from(error).retry_after_ms(LIMITED_MS)
}
