//! Bodies of requests, as what they should be.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::core::task::error::ErrorCode;
use crate::core::text::line::{Line, quoted};
use crate::service::access::{Principal, no_key};
use crate::service::config::config_file::suggestion;
use crate::service::http::app::App;
use crate::service::http::bodies::{Bodies, BodyFault, Received};
use crate::service::http::error::{ApiError, limited};

/// The body of a request, read whole within the limits of size and time. A key that ends while it comes opens nothing
/// any more.
pub(crate) async fn read_body(
    app: &App,
    bodies: &Arc<Bodies>,
    principal: &Principal,
    request: Request,
) -> Result<Received, ApiError> {
    let config = app.orchestrator.config();
    let (bytes_max, limit) = (config.http.body_bytes_max as usize, Duration::from_millis(config.http.body_ms));
    let received = tokio::select! {
        biased;
        _ = principal.until_void() => return Err(no_key()),
        received = bodies.read(principal.client_id.clone(), request.into_body(), bytes_max, limit) => received,
    };
    received.map_err(|fault| {
        let (status, text) = match fault {
            BodyFault::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than http.body_bytes_max, {bytes_max}"))
            }
            BodyFault::Late => (StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {limit:?}")),
            BodyFault::OverLimit => {
                app.limited.count("bodies");
                return limited("bodies", "too much of requests' bodies is under way; send it later");
            }
            BodyFault::Broken(error) => (StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")),
        };
        ApiError::with_status(status, ErrorCode::InvalidParams, text)
    })
}

/// A body as the JSON object that it should be; `wanted` names it in the error.
pub(crate) fn json_body<T: DeserializeOwned>(body: &[u8], wanted: &str) -> Result<T, ApiError> {
    // Else an array would be taken for an object, field by field in their order.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| *byte != b'{') {
        let text = format!("the body is not {wanted}: a JSON object is expected (line 1 column 1)");
        return Err(ApiError::invalid(text));
    }
    serde_json::from_slice(body).map_err(|error| what_is_wrong(&error, wanted))
}

/// What is wrong with a body: where, and the nearest right name for an unknown field.
fn what_is_wrong(error: &serde_json::Error, wanted: &str) -> ApiError {
    let text = error.to_string();
    let (what, place) = text.split_once(" at line ").unwrap_or((&text, "1"));
    let parts: Vec<&str> = what.split('`').collect();
    let message = match parts.as_slice() {
        ["unknown field ", field, _, known @ ..] => {
            let known: Vec<&str> = known.iter().copied().step_by(2).collect();
            format!("unknown field {}{}", quoted(field), suggestion(field, &known))
        }
        _ => Line::<300>::new(what).into(),
    };
    ApiError::invalid(format!("the body is not {wanted}: {message} (line {place})"))
}

/// Whether the client wants the stream itself as the answer.
pub(crate) fn wants_stream(headers: &axum::http::HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/event-stream"))
}
