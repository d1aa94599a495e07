//! `/v1/tasks`: submit, look, stream, cancel.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::core::id::{ClientId, TaskId};
use crate::core::task::traceparent::TraceParent;
use crate::core::text::line::Line;
use crate::orchestrator::fabric::TaskRecord;
use crate::orchestrator::{CancelOutcome, Orchestrator};
use crate::service::access::Principal;
use crate::service::access::keys::Scope;
use crate::service::api::stream::{event_response, event_stream};
use crate::service::api::{AcceptedBody, SubmitBody};
use crate::service::http::app::App;
use crate::service::http::body::{json_body, read_body, wants_stream};
use crate::service::http::error::ApiError;
use crate::service::http::listener::connections::Seat;

/// Bytes from which on reading a body is work.
const LARGE_BYTES: usize = 256 * 1024;

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
    let seat = request.extensions().get::<Seat>().cloned();
    let traceparent = request.headers().get("traceparent").and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let body = read_body(&app, &app.bodies, &principal, request).await?;
    // Reading a large one takes a while: others go on elsewhere meanwhile.
    let read = || json_body::<SubmitBody>(&body, "a task");
    let body = if body.len() > LARGE_BYTES { tokio::task::block_in_place(read)? } else { read()? };
    let mut request = body.into_request(principal.client_id.clone()).map_err(ApiError::invalid)?;
    (request.pools, request.traceparent) = (principal.pools(), traceparent);
    let submitted = orchestrator.submit(request).await?;
    if submitted.is_repeated() {
        app.request_limits.charge(&principal.client_id); // No limit of tasks counts it.
    }
    let accepted = AcceptedBody::from(&submitted);
    if !wants_stream {
        return Ok((StatusCode::ACCEPTED, Json(accepted)).into_response());
    }
    let mut response = event_stream(&app, (principal, seat), submitted.stream()).await?;
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

/// Whose task is meant, where an id does not say it: several clients may have chosen the same one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Whose {
    client_id: Option<String>,
}

type WhoseQuery = Result<Query<Whose>, QueryRejection>;

/// The client that a query names.
fn whose(query: WhoseQuery) -> Result<Option<ClientId>, ApiError> {
    let Query(Whose { client_id }) =
        query.map_err(|error| ApiError::invalid(format!("query: {}", Line::<200>::new(&error.body_text()))))?;
    let parsed = client_id.as_deref().map(ClientId::parse).transpose();
    parsed.map_err(|error| ApiError::invalid(format!("query, 'client_id': {error}")))
}

/// The task of this id that is meant: of the client that is named, else the own one, else the only one. What may not be
/// seen is as if it were not there.
fn find(
    orchestrator: &Orchestrator,
    principal: &Principal,
    id: &TaskId,
    whose: Option<&ClientId>,
    may: impl Fn(&Principal, &ClientId) -> bool,
) -> Result<Arc<TaskRecord>, ApiError> {
    let mut found = orchestrator.records(id);
    found.retain(|record| may(principal, &record.request.client_id));
    let wanted = whose.unwrap_or(&principal.client_id);
    if let Some(at) = found.iter().position(|record| record.request.client_id == *wanted) {
        return Ok(found.swap_remove(at));
    }
    match (found.len(), whose) {
        (2.., None) => {
            Err(ApiError::invalid(format!("{} clients have a task {id}; name one with ?client_id=", found.len())))
        }
        (_, Some(_)) | (0, None) => Err(unknown(id)),
        (1, None) => found.pop().ok_or_else(|| unknown(id)),
    }
}

fn unknown(id: &TaskId) -> ApiError {
    ApiError::not_found(format!("there is no task {id}, or it has been forgotten"))
}

/// Where a task stands.
#[utoipa::path(get, path = "/v1/tasks/{id}", params(("id" = String, Path), ("client_id" = Option<String>, Query)), responses(
    (status = 200, description = "The task as it stands."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn status(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
    query: WhoseQuery,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let record = find(&orchestrator, &principal, &id, whose(query)?.as_ref(), Principal::sees)?;
    let mut view = record.view();
    if !principal.owns(&view.client_id) {
        view.hide_words();
    }
    Ok(Json(view).into_response())
}

/// A task's events, from the first or from behind `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/tasks/{id}/stream",
    params(("id" = String, Path), ("client_id" = Option<String>, Query), ("Last-Event-ID" = Option<u64>, Header)), responses(
    (status = 200, description = "Events: started, token, metrics, end, error.", content_type = "text/event-stream"),
    (status = 204, description = "Nothing follows behind Last-Event-ID."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn stream(
    State(app): State<App>,
    principal: Principal,
    Path(id): Path<String>,
    query: WhoseQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let orchestrator = &app.orchestrator;
    let id = parse_id(&id)?;
    let record = find(orchestrator, &principal, &id, whose(query)?.as_ref(), Principal::owns)?;
    let from = match request.headers().get("last-event-id") {
        None => 0,
        Some(value) => {
            let last = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
            let last = last.ok_or_else(|| ApiError::invalid("header 'Last-Event-ID': it must be an event's number"))?;
            last as usize + 1
        }
    };
    if request.method() == Method::HEAD {
        return Ok(event_response(Body::empty())); // Who asks for the head alone is no reader who leaves.
    }
    let seat = request.extensions().get::<Seat>().cloned();
    let stream = orchestrator.read(record, from);
    if from > 0 && stream.is_exhausted() {
        return Ok(StatusCode::NO_CONTENT.into_response()); // Tells a browser's EventSource not to come again.
    }
    event_stream(&app, (principal, seat), stream).await
}

/// End a task. No token follows.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", params(("id" = String, Path), ("client_id" = Option<String>, Query)), responses(
    (status = 200, description = "The task has ended: by this call, or before it."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn cancel(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
    query: WhoseQuery,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let record = find(&orchestrator, &principal, &id, whose(query)?.as_ref(), Principal::owns)?;
    match orchestrator.cancel_known(&record) {
        CancelOutcome::Canceled(task) => Ok(Json(json!({ "canceled": true, "task": task })).into_response()),
        CancelOutcome::AlreadyEnded(task) => Ok(Json(json!({ "canceled": false, "task": task })).into_response()),
        CancelOutcome::Unknown => Err(unknown(&id)),
    }
}

/// Why a task stands where it stands: its place in class, client and lane, who is ahead and by how many tokens, which
/// replicas could take it, which limit refused it.
#[utoipa::path(get, path = "/v1/tasks/{id}/explain", params(("id" = String, Path), ("client_id" = Option<String>, Query)), responses(
    (status = 200, description = "Why the task waits, runs where it runs, or was refused."),
    (status = 404, description = "No such task.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn explain(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
    query: WhoseQuery,
) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let whose = whose(query)?;
    let mut explanation = match find(&orchestrator, &principal, &id, whose.as_ref(), Principal::sees) {
        Ok(record) => orchestrator.explain_known(&record).await?,
        Err(not_found) => {
            // Whoever may see everybody's may leave the client out.
            let own = (!principal.has(Scope::Read)).then_some(&principal.client_id);
            let refused = orchestrator.explain_refused(whose.as_ref().or(own), &id);
            refused
                .filter(|refused| refused.client_id.as_ref().is_some_and(|client| principal.sees(client)))
                .ok_or(not_found)?
        }
    };
    if !principal.has(Scope::Read) {
        explanation.hide_others();
    }
    if !explanation.client_id.as_ref().is_some_and(|client| principal.owns(client)) {
        explanation.hide_words();
    }
    Ok(Json(explanation).into_response())
}
