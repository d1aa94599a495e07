//! `/v1/rollouts`: a new model by percentage.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::core::id::PoolId;
use crate::core::pool::rollout::{Rollout, RolloutSpec};
use crate::service::access::Principal;
use crate::service::http::app::App;
use crate::service::http::body::{json_body, read_body};
use crate::service::http::error::ApiError;

fn show(rollout: &Rollout) -> serde_json::Value {
    let mut value = json!(rollout);
    value["share_percent"] = json!(rollout.share());
    value
}

/// Every rollout, the newest last.
#[utoipa::path(get, path = "/v1/rollouts", responses((status = 200, description = "Every rollout.")))]
pub(crate) async fn list(State(app): State<App>) -> Response {
    Json(app.orchestrator.rollouts().iter().map(show).collect::<Vec<_>>()).into_response()
}

/// Begin to send a share of the tasks to a pool with a new model.
#[utoipa::path(post, path = "/v1/rollouts", request_body = RolloutSpec, responses(
    (status = 202, description = "The first share goes to the new pool."),
    (status = 400, description = "It cannot be.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn begin(
    State(app): State<App>,
    principal: Principal,
    request: Request,
) -> Result<Response, ApiError> {
    let body = read_body(&app, &app.operators_bodies, &principal, request).await?;
    let spec: RolloutSpec = json_body(&body, "a rollout")?;
    let rollout = app.orchestrator.begin_rollout(spec)?;
    Ok((StatusCode::ACCEPTED, Json(show(&rollout))).into_response())
}

/// End the rollout to a pool: everything goes to the old one.
#[utoipa::path(delete, path = "/v1/rollouts/{pool}", params(("pool" = String, Path)), responses(
    (status = 204, description = "Ended."),
    (status = 404, description = "There is none to this pool.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn end(State(app): State<App>, Path(pool): Path<String>) -> Result<StatusCode, ApiError> {
    let id = PoolId::parse(&pool).map_err(|error| ApiError::invalid(format!("pool id in the path: {error}")))?;
    if app.orchestrator.end_rollout(&id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(format!("there is no rollout to pool {id}")))
    }
}
