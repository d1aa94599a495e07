//! Pools, replica sets and sessions.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::core::id::{PoolId, SessionId};
use crate::core::pool::lifecycle::PoolState;
use crate::core::pool::model::ModelChange;
use crate::orchestrator::Orchestrator;
use crate::service::access::Principal;
use crate::service::access::keys::Scope;
use crate::service::config::executed;
use crate::service::http::app::App;
use crate::service::http::body::{json_body, read_body};
use crate::service::http::error::ApiError;
use crate::service::http::guard::refusals::Asker;
use crate::views::{PoolView, ReplicaSetView};

fn parse_pool(id: &str) -> Result<PoolId, ApiError> {
    PoolId::parse(id).map_err(|error| ApiError::invalid(format!("pool id in the path: {error}")))
}

fn unknown_pool(orchestrator: &Orchestrator, id: &PoolId) -> ApiError {
    let pools = orchestrator.pools();
    let known: Vec<&str> = pools.iter().map(|pool| pool.pool_id.as_str()).collect();
    ApiError::not_found(format!("there is no pool {id}; there is {}", known.join(", ")))
}

/// Every pool.
#[utoipa::path(get, path = "/v1/pools", responses((status = 200, description = "Every pool as it stands.")))]
pub(crate) async fn list(State(orchestrator): State<Orchestrator>, principal: Principal) -> Json<Vec<PoolView>> {
    let mut pools = orchestrator.pools();
    if !principal.has(Scope::Admin) {
        pools.iter_mut().for_each(PoolView::hide_words);
    }
    Json(pools)
}

/// One pool; the status says whether it is Ready.
#[utoipa::path(get, path = "/v1/pools/{id}/health", params(("id" = String, Path)), responses(
    (status = 200, description = "The pool is Ready."),
    (status = 503, description = "The pool is not Ready."),
    (status = 404, description = "No such pool.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn health(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_pool(&id)?;
    let mut view = orchestrator.pool(&id).ok_or_else(|| unknown_pool(&orchestrator, &id))?;
    if !principal.has(Scope::Admin) {
        view.hide_words();
    }
    let status = if view.state == PoolState::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(view)).into_response())
}

/// Drain a pool: it takes nothing new, finishes what it has, and stops its workers.
#[utoipa::path(post, path = "/v1/pools/{id}/drain", params(("id" = String, Path)), responses(
    (status = 202, description = "The drain is under way, or complete."),
    (status = 404, description = "No such pool.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn drain(
    State(orchestrator): State<Orchestrator>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_pool(&id)?;
    let state = orchestrator.drain(&id).ok_or_else(|| unknown_pool(&orchestrator, &id))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "pool_id": id, "state": state }))).into_response())
}

/// Reload a pool with another model, or the same anew: replica by replica, and undone when the new model does not prove
/// itself.
///
/// The answer says that it has begun; `GET /v1/pools` shows under `reload` how it goes and ends. Waiting tasks keep
/// their places. Where requests need no key, the model of a pool with a command may have letters, digits and
/// `. _ / : @ + -` alone.
#[utoipa::path(post, path = "/v1/pools/{id}/reload", params(("id" = String, Path)), request_body = ModelChange, responses(
    (status = 202, description = "The reload is under way."),
    (status = 400, description = "The change cannot be.", body = crate::service::api::ErrorBody),
    (status = 403, description = "Not with this key; or not without keys, since the model is no plain word.",
        body = crate::service::api::ErrorBody),
    (status = 404, description = "No such pool.", body = crate::service::api::ErrorBody),
    (status = 503, description = "The pool drains, has stopped, or is being reloaded.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn reload(
    State(app): State<App>,
    principal: Principal,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let orchestrator = &app.orchestrator;
    let id = parse_pool(&id)?;
    orchestrator.pool(&id).ok_or_else(|| unknown_pool(orchestrator, &id))?;
    let asker = Asker::of(&request);
    let body = read_body(&app, &app.operators_bodies, &principal, request).await?;
    // No body is no change: the same model, loaded anew.
    let change = if body.is_empty() { ModelChange::default() } else { json_body(&body, "a reload")? };
    if !app.access.is_on() {
        let config = orchestrator.config();
        let pool = config.pools.iter().find(|pool| pool.id == id.as_str());
        if let Some(fault) = pool.and_then(|pool| executed::model_fault(pool, &change)) {
            return Err(app.refusals.refuse_executed(&asker, fault));
        }
    }
    let view = orchestrator.reload(&id, &change)?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "pool_id": id, "reload": view }))).into_response())
}

/// Pools grouped by what makes their output the same.
#[utoipa::path(get, path = "/v1/replicasets", responses((status = 200, description = "Every replica set.")))]
pub(crate) async fn replica_sets(State(orchestrator): State<Orchestrator>) -> Json<Vec<ReplicaSetView>> {
    Json(orchestrator.replica_sets())
}

fn parse_session(id: &str) -> Result<SessionId, ApiError> {
    SessionId::parse(id).map_err(|error| ApiError::invalid(format!("session id in the path: {error}")))
}

/// One of the client's conversations.
#[utoipa::path(get, path = "/v1/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "The conversation."),
    (status = 404, description = "No such conversation.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn session(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_session(&id)?;
    let view = orchestrator.session(&principal.client_id, &id).await?;
    view.map(|view| Json(view).into_response()).ok_or_else(|| no_session(&id))
}

/// Forget one of the client's conversations.
#[utoipa::path(delete, path = "/v1/sessions/{id}", params(("id" = String, Path)), responses(
    (status = 204, description = "Forgotten."),
    (status = 404, description = "No such conversation.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn end_session(
    State(orchestrator): State<Orchestrator>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parse_session(&id)?;
    let view = orchestrator.end_session(&principal.client_id, &id).await?;
    view.map(|_| StatusCode::NO_CONTENT.into_response()).ok_or_else(|| no_session(&id))
}

fn no_session(id: &SessionId) -> ApiError {
    ApiError::not_found(format!("there is no session {id} of this client, or it has been forgotten"))
}
