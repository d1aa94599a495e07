//! `/v1/cluster`: this node of a cluster, and its drain.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::service::http::app::App;
use crate::service::http::error::ApiError;

fn no_node() -> ApiError {
    ApiError::not_found("the service is no node of a cluster: its configuration has no section 'cluster'".to_owned())
}

/// This node and its links.
#[utoipa::path(get, path = "/v1/cluster", responses(
    (status = 200, description = "The node, its peers and its links."),
    (status = 404, description = "The service is no node of a cluster.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn show(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    app.nodes.view().map(Json).ok_or_else(no_node)
}

/// Drain this node: its pools take nothing new and finish what they have; what waits goes to other nodes.
#[utoipa::path(post, path = "/v1/cluster/drain", responses(
    (status = 202, description = "The drain is under way."),
    (status = 404, description = "The service is no node of a cluster.", body = crate::service::api::ErrorBody),
))]
pub(crate) async fn drain(State(app): State<App>) -> Result<Response, ApiError> {
    if !app.nodes.drain() {
        return Err(no_node());
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "draining": true }))).into_response())
}
