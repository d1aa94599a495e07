//! What is true of every request and answer of the HTTP API, and the API as a document.

pub(in crate::service) mod app;
pub(in crate::service) mod bodies;
pub(in crate::service) mod connections;
pub(in crate::service) mod entry;
pub(in crate::service) mod error;
pub(in crate::service) mod listener;
pub(in crate::service) mod request_guard;
pub(in crate::service) mod request_origin;
pub mod routes;
pub(in crate::service) mod shortage;
pub(in crate::service) mod tls;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use utoipa::OpenApi;

use crate::core::pool::lifecycle::PoolState;
use crate::core::pool::model::ModelChange;
use crate::core::pool::rollout::RolloutSpec;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::text::line::{Line, quoted};
use crate::orchestrator::Orchestrator;
use crate::service::access::{Principal, no_key};
use crate::service::api;
use crate::service::api::configs;
use crate::service::api::nodes;
use crate::service::api::overview_cache;
use crate::service::api::pools;
use crate::service::api::rollouts;
use crate::service::api::tasks;
use crate::service::config::config_file::suggestion;
use crate::service::host::devices;
use crate::service::http::app::App;
use crate::service::http::bodies::{Bodies, BodyFault, Received};
use crate::service::http::error::ApiError;
use crate::service::telemetry::metrics;

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
        nodes::show,
        nodes::drain,
        pools::session,
        pools::end_session,
        overview_cache::overview,
        overview_cache::events,
        configs::show,
        configs::apply,
        configs::rollback,
        rollouts::list,
        rollouts::begin,
        rollouts::end,
        metrics::scrape,
        alive,
        ready,
    ),
    components(schemas(
        api::SubmitBody,
        api::AcceptedBody,
        api::ErrorBody,
        ModelChange,
        RolloutSpec,
        configs::RollbackBody
    ))
)]
pub struct ApiDoc;

/// The OpenAPI document, as it is kept in `.specs/openapi.json`.
pub fn openapi() -> String {
    let mut document = serde_json::to_value(ApiDoc::openapi()).unwrap_or_default(); // Plain data.
    let paths = document["paths"].as_object_mut();
    for operation in paths.into_iter().flatten().flat_map(|(_, item)| item.as_object_mut()).flatten() {
        let Some(responses) = operation.1["responses"].as_object_mut() else { continue };
        for (status, meaning) in EVERYWHERE {
            let body = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/ErrorBody" } } });
            responses.entry(status).or_insert_with(|| json!({ "description": meaning, "content": body }));
        }
    }
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// What every operation may answer besides its own.
const EVERYWHERE: [(&str, &str); 8] = [
    ("400", "Something of the request is wrong; the message says what and where."),
    ("401", "A valid API key is needed."),
    ("403", "The key does not reach so far, or another site's page asks."),
    ("408", "The body did not come in time."),
    ("413", "The body is too large."),
    ("415", "The body is announced as something that is not taken; the message says as what it is."),
    ("421", "The request is for another host; `http.hosts` names those that are served here."),
    ("429", "Too much: of tasks, of wrong keys, or of what a client may hold; it says when to come back."),
];

/// The process runs.
#[utoipa::path(get, path = "/healthz", responses(
    (status = 200, description = "The process runs."),
    (status = 503, description = "The runtime has ended."),
))]
pub(crate) async fn alive(State(orchestrator): State<Orchestrator>) -> Response {
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
pub(crate) async fn ready(State(orchestrator): State<Orchestrator>) -> Response {
    let pools = orchestrator.pools();
    let any = pools.iter().any(|pool| pool.state == PoolState::Ready);
    let states: serde_json::Map<String, serde_json::Value> =
        pools.iter().map(|pool| (pool.pool_id.to_string(), json!(pool.state))).collect();
    let status = if any { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": any, "pools": states }))).into_response()
}

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

/// How long whoever finds no room should stay away, in milliseconds.
const LIMITED_MS: u64 = 1_000;

/// The refusal of a client that holds its part of something already.
pub(crate) fn limited(policy: &'static str, text: &'static str) -> ApiError {
    let error = TaskError::new(ErrorCode::AdmissionReject, text).policy(policy);
    ApiError::from(error).retry_after_ms(LIMITED_MS)
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
