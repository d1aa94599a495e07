//! `/healthz` and `/readyz`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::core::pool::lifecycle::PoolState;
use crate::orchestrator::Orchestrator;

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
