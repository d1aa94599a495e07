//! `/v1/config`: the configuration that is in force, another one, and the way back.

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::core::text::line::Line;
use crate::service::access::Principal;
use crate::service::config::config_store::{ApplyMode, MayRun, Rejected};
use crate::service::http::app::App;
use crate::service::http::body::{json_body, read_body};
use crate::service::http::error::ApiError;
use crate::service::http::guard::refusals::Asker;

/// The configuration that is in force, and those before it.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, description = "The configuration and its history.")))]
pub(crate) async fn show(State(app): State<App>) -> Response {
    let (config, generation) = (app.orchestrator.config(), app.orchestrator.config_generation());
    let leaving = app.orchestrator.leaving();
    let history = app.store.history();
    Json(json!({ "generation": generation, "config": *config, "leaving": leaving, "history": history })).into_response()
}

/// How to take a configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyQuery {
    /// Say what would change, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Put another configuration in force: YAML or JSON, the whole of it.
///
/// Where requests need no key, pools with a `command`, an `api_key_env` or an environment of their own, and
/// `gpu.library`, must be as they are in force.
#[utoipa::path(post, path = "/v1/config", params(("dry_run" = Option<bool>, Query)),
    request_body(content = String, content_type = "application/yaml"), responses(
    (status = 200, description = "What has changed, or would."),
    (status = 400, description = "Every fault of it; nothing has changed.", body = crate::service::api::ErrorBody),
    (status = 403, description = "Not with this key; or not without keys, since it names what is to be run or loaded.",
        body = crate::service::api::ErrorBody),
))]
pub(crate) async fn apply(
    State(app): State<App>,
    principal: Principal,
    query: Result<Query<ApplyQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) =
        query.map_err(|rejection| ApiError::invalid(format!("query: {}", Line::<200>::new(&rejection.body_text()))))?;
    let asker = Asker::of(&request);
    let body = read_body(&app, &app.operators_bodies, &principal, request).await?;
    let text = std::str::from_utf8(&body).map_err(|_| ApiError::invalid("the configuration is not UTF-8"))?;
    let wish = if query.dry_run { ApplyMode::Compare } else { ApplyMode::Apply };
    let may_run = if app.access.is_on() { MayRun::Anything } else { MayRun::WhatIsInForce };
    let outcome = app.store.take_text(text, wish, may_run).map_err(|rejected| match rejected {
        Rejected::Wrong(faults) => ApiError::invalid(faults.join("; ")),
        Rejected::Executed(faults) => app.refusals.refuse_executed(&asker, faults.join("; ")),
    })?;
    Ok(Json(outcome).into_response())
}

/// Where to go back to.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackBody {
    /// The number of an earlier configuration; the one before when left out.
    pub to: Option<u64>,
}

/// Go back to an earlier configuration.
#[utoipa::path(post, path = "/v1/config/rollback", request_body = RollbackBody, responses(
    (status = 200, description = "What has changed."),
    (status = 400, description = "There is none, or it cannot be any more.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn rollback(
    State(app): State<App>,
    principal: Principal,
    request: Request,
) -> Result<Response, ApiError> {
    let body = read_body(&app, &app.operators_bodies, &principal, request).await?;
    let body: RollbackBody = if body.is_empty() { RollbackBody::default() } else { json_body(&body, "a rollback")? };
    let outcome = app.store.roll_back(body.to).map_err(|faults| ApiError::invalid(faults.join("; ")))?;
    Ok(Json(outcome).into_response())
}
