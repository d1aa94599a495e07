//! `/v1/tasks`: submit, look, stream, cancel.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::actors::reader::TaskStream;
use crate::core::id::TaskId;
use crate::core::traceparent::TraceParent;
use crate::orchestrator::{CancelOutcome, Orchestrator};
use crate::service::access::Principal;
use crate::service::api::{AcceptedBody, SubmitBody};
use crate::service::app::App;
use crate::service::error::ApiError;
use crate::service::http::{body_of, json_body, wants_stream};
use crate::service::keys::Scope;
use crate::service::stream::event_stream;

/// Submit a task. With `Accept: text/event-stream` the answer is the stream itself.
#[utoipa::path(post, path = "/v1/tasks", request_body = SubmitBody, responses(
    (status = 202, description = "Accepted.", body = AcceptedBody),
    (status = 200, description = "Accepted; the task's events follow.", content_type = "text/event-stream"),
    (status = 400, description = "INVALID_PARAMS", body = crate::service::api::ErrorBody),
    (status = 429, description = "ADMISSION_REJECT", body = crate::service::api::ErrorBody),
    (status = 503, description = "POOL_UNREADY, POOL_UNAVAILABLE or REPLICA_EXHAUSTED", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn submit(
    State(app): State<App>,
    principal: Principal,
    request: Request,
) -> Result<Response, ApiError> {
    let orchestrator = &app.orchestrator;
    let wants_stream = wants_stream(request.headers());
    let traceparent = request.headers().get("traceparent").and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let body = body_of(&app, request).await?;
    let body: SubmitBody = json_body(&body, "a task")?;
    let mut request = body.into_request(principal.client_id.clone()).map_err(ApiError::invalid)?;
    (request.pools, request.traceparent) = (principal.pools.clone(), traceparent);
    let submitted = orchestrator.submit(request).await?;
    let accepted = AcceptedBody::from(&submitted);
    if !wants_stream {
        return Ok((StatusCode::ACCEPTED, Json(accepted)).into_response());
    }
    let mut response = event_stream(&app, principal, submitted.stream()).await?;
    let named = [
        ("x-task-id", HeaderValue::from_str(&accepted.task_id).ok()),
        ("x-queue-position", Some(accepted.queue_position.into())),
        ("x-predicted-start-ms", Some(accepted.predicted_start_ms.into())),
    ];
    for (name, value) in named {
        value.map(|value| response.headers_mut().insert(name, value));
    }
    Ok(response)
}

fn parse_id(id: &str) -> Result<TaskId, ApiError> {
    TaskId::parse(id).map_err(|error| ApiError::invalid(format!("task id in the path: {error}")))
}

/// Refuses what is another client's as if it were not there.
fn owned(orchestrator: &Orchestrator, principal: &Principal, id: &TaskId) -> Result<(), ApiError> {
    let task = orchestrator.task(id).filter(|task| principal.owns(&task.client_id));
    task.map(|_| ()).ok_or_else(|| unknown(id))
}

fn unknown(id: &TaskId) -> ApiError {
    ApiError::not_found(format!("there is no task {id}, or it has been forgotten"))
}

/// Where a task stands.
#[utoipa::path(get, path = "/v1/tasks/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "The task as it stands."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn status(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let task = orchestrator.task(&id).filter(|task| principal.sees(&task.client_id));
    task.map(|view| Json(view).into_response()).ok_or_else(|| unknown(&id))
}

/// A task's events, from the first or from behind `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/tasks/{id}/stream",
    params(("id" = String, Path), ("Last-Event-ID" = Option<u64>, Header)), responses(
    (status = 200, description = "Events: started, token, metrics, end, error.", content_type = "text/event-stream"),
    (status = 204, description = "Nothing follows behind Last-Event-ID."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn stream(
    State(app): State<App>,
    principal: Principal,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let orchestrator = &app.orchestrator;
    let id = parse_id(&id)?;
    owned(orchestrator, &principal, &id)?;
    let from = match headers.get("last-event-id") {
        None => 0,
        Some(value) => {
            let last = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
            let last = last.ok_or_else(|| ApiError::invalid("header 'Last-Event-ID': it must be an event's number"))?;
            last as usize + 1
        }
    };
    let stream: TaskStream = orchestrator.stream(&id, from).ok_or_else(|| unknown(&id))?;
    if from > 0 && stream.is_exhausted() {
        return Ok(StatusCode::NO_CONTENT.into_response()); // Tells a browser's EventSource not to come again.
    }
    event_stream(&app, principal, stream).await
}

/// End a task. No token follows.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, description = "The task has ended: by this call, or before it."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn cancel(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    owned(&orchestrator, &principal, &id)?;
    match orchestrator.cancel(&id) {
        CancelOutcome::Canceled(task) => Ok(Json(json!({ "canceled": true, "task": task })).into_response()),
        CancelOutcome::AlreadyEnded(task) => Ok(Json(json!({ "canceled": false, "task": task })).into_response()),
        CancelOutcome::Unknown => Err(unknown(&id)),
    }
}

/// Why a task stands where it stands: its place in class, client and lane, who is ahead and by how many tokens, which
/// replicas could take it, which limit refused it.
#[utoipa::path(get, path = "/v1/tasks/{id}/explain", params(("id" = String, Path)), responses(
    (status = 200, description = "Why the task waits, runs where it runs, or was refused."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn explain(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let explanation = orchestrator.explain(&id).await?;
    // A refusal knows no client.
    let may_see = |explained: &crate::Explanation| {
        explained.client_id.as_ref().map_or(principal.has(Scope::Read), |client| principal.sees(client))
    };
    let mut explanation = explanation.filter(may_see).ok_or_else(|| unknown(&id))?;
    if !principal.has(Scope::Read) {
        explanation.hide_others();
    }
    Ok(Json(explanation).into_response())
}
