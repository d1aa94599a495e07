//! The API as a document.

use serde_json::json;
use utoipa::OpenApi;

use crate::core::pool::model::ModelChange;
use crate::core::pool::rollout::RolloutSpec;
use crate::service::api::{self, configs, health, nodes, overview, pools, rollouts, tasks};
use crate::service::host::devices;
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
        overview::overview,
        overview::events,
        configs::show,
        configs::apply,
        configs::rollback,
        rollouts::list,
        rollouts::begin,
        rollouts::end,
        metrics::scrape,
        health::alive,
        health::ready,
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
