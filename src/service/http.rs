//! The HTTP API: which path goes where, and what is true of every request.

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::json;
use utoipa::OpenApi;

use crate::core::error::ErrorCode;
use crate::core::id::ClientId;
use crate::core::lifecycle::PoolState;
use crate::core::model::ModelChange;
use crate::orchestrator::Orchestrator;
use crate::service::config_file::suggestion;
use crate::service::error::ApiError;
use crate::service::{api, devices, metrics, pools, tasks};

/// The header that names the client while authentication is off.
const CLIENT_HEADER: &str = "x-client-id";

/// The API as a document.
#[derive(OpenApi)]
#[openapi(
    info(title = "OrchQueue", version = "1", description = "Tasks in, tokens out: the HTTP API of orchestratord."),
    paths(
        tasks::submit,
        tasks::status,
        tasks::stream,
        tasks::cancel,
        tasks::explain,
        pools::list,
        pools::health,
        pools::drain,
        pools::reload,
        pools::replica_sets,
        devices::devices,
        pools::session,
        pools::end_session,
        metrics::scrape,
        alive,
        ready,
    ),
    components(schemas(api::SubmitBody, api::AcceptedBody, api::ErrorBody, ModelChange))
)]
pub struct ApiDoc;

/// The OpenAPI document, as it is kept in `.specs/openapi.json`.
pub fn openapi() -> String {
    ApiDoc::openapi().to_pretty_json().unwrap_or_default() + "\n"
}

/// Every route of the API, over this runtime.
pub fn router(orchestrator: Orchestrator) -> Router {
    let body_bytes_max = orchestrator.config().http.body_bytes_max as usize;
    Router::new()
        .route("/v1/tasks", post(tasks::submit))
        .route("/v1/tasks/{id}", get(tasks::status))
        .route("/v1/tasks/{id}/stream", get(tasks::stream))
        .route("/v1/tasks/{id}/cancel", post(tasks::cancel))
        .route("/v1/tasks/{id}/explain", get(tasks::explain))
        .route("/v1/sessions/{id}", get(pools::session).delete(pools::end_session))
        .route("/v1/pools", get(pools::list))
        .route("/v1/pools/{id}/health", get(pools::health))
        .route("/v1/pools/{id}/drain", post(pools::drain))
        .route("/v1/pools/{id}/reload", post(pools::reload))
        .route("/v1/replicasets", get(pools::replica_sets))
        .route("/v1/devices", get(devices::devices))
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .with_state(orchestrator)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no path {:?}; tasks go to POST /v1/tasks", uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{:?} does not take {method}", uri.path());
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidParams, text)
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "The process runs.")))]
async fn alive(State(orchestrator): State<Orchestrator>) -> Response {
    match orchestrator.has_ended() {
        false => "ok\n".into_response(),
        true => (StatusCode::SERVICE_UNAVAILABLE, "the runtime has ended\n").into_response(),
    }
}

/// A pool is Ready.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "At least one pool is Ready."),
    (status = 503, description = "No pool is Ready."),
))]
async fn ready(State(orchestrator): State<Orchestrator>) -> Response {
    let pools = orchestrator.pools();
    let any = pools.iter().any(|pool| pool.state == PoolState::Ready);
    let states: serde_json::Map<String, serde_json::Value> =
        pools.iter().map(|pool| (pool.pool_id.to_string(), json!(pool.state))).collect();
    let status = if any { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": any, "pools": states }))).into_response()
}

/// Who the client is: while authentication is off, what it says in `X-Client-Id`.
pub(crate) struct Client(pub(crate) ClientId);

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(CLIENT_HEADER) else {
            return Ok(Client(ClientId::anonymous()));
        };
        let text = value.to_str().unwrap_or("\u{fffd}");
        let client = ClientId::parse(text).map_err(|error| format!("header 'X-Client-Id': {error}"));
        client.map(Client).map_err(ApiError::invalid)
    }
}

/// A body that has been read whole, or why it could not be.
pub(crate) fn body_bytes(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let text = "the body is larger than http.body_bytes_max";
            ApiError::with_status(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::InvalidParams, text)
        }
        _ => ApiError::invalid(format!("the body cannot be read: {}", rejection.body_text())),
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
            format!("unknown field {field:?}{}", suggestion(field, &known))
        }
        _ => what.to_owned(),
    };
    ApiError::invalid(format!("the body is not {wanted}: {message} (line {place})"))
}

/// Whether the client wants the stream itself as the answer.
pub(crate) fn wants_stream(headers: &axum::http::HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/event-stream"))
}
