//! Every route of the HTTP API, with who may use it and on which listener it is: the one list that the router is built
//! from.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};

use crate::core::task::error::ErrorCode;
use crate::core::text::line::{Line, quoted};
use crate::service::access::keys::Scope::{self, Admin, Read, Submit};
use crate::service::api::configs;
use crate::service::api::health;
use crate::service::api::nodes;
use crate::service::api::overview;
use crate::service::api::pools;
use crate::service::api::rollouts;
use crate::service::api::tasks;
use crate::service::dashboard;
use crate::service::host::devices;
use crate::service::http::app::App;
use crate::service::http::entry::{Gate, enter};
use crate::service::http::error::ApiError;
pub use crate::service::http::rule::Audience;
pub(crate) use crate::service::http::rule::Needs;
use crate::service::telemetry::metrics;

/// One route.
pub struct Route {
    /// Its path, as the router has it.
    pub path: &'static str,
    /// Who is served.
    pub face: Audience,
    /// Its methods, each with the scopes of which a key needs one. HEAD goes by GET.
    pub needs: Vec<(Method, &'static [Scope])>,
    handler: MethodRouter<App>,
}

const OWN: Needs = &[Submit];
const LOOK: Needs = &[Submit, Read];
const SEE: Needs = &[Read];
const RULE: Needs = &[Admin];

fn route(
    path: &'static str,
    face: Audience,
    handler: MethodRouter<App>,
    needs: impl IntoIterator<Item = (Method, Needs)>,
) -> Route {
    Route { path, face, needs: needs.into_iter().collect(), handler }
}

/// Every route.
pub fn routes() -> Vec<Route> {
    use Audience::{Open, Operator, Public};
    let reads = |path, handler| route(path, Operator, get(handler), [(Method::GET, SEE)]);
    let open = |path, handler: MethodRouter<App>| route(path, Open, handler, [(Method::GET, &[] as Needs)]);
    vec![
        route("/v1/tasks", Public, post(tasks::submit), [(Method::POST, OWN)]),
        route("/v1/tasks/{id}", Public, get(tasks::status), [(Method::GET, LOOK)]),
        route("/v1/tasks/{id}/stream", Public, get(tasks::stream), [(Method::GET, OWN)]),
        route("/v1/tasks/{id}/cancel", Public, post(tasks::cancel), [(Method::POST, OWN)]),
        route("/v1/tasks/{id}/explain", Public, get(tasks::explain), [(Method::GET, LOOK)]),
        route(
            "/v1/sessions/{id}",
            Public,
            get(pools::session).delete(pools::end_session),
            [(Method::GET, OWN), (Method::DELETE, OWN)],
        ),
        route("/v1/pools", Operator, get(pools::list), [(Method::GET, SEE)]),
        route("/v1/pools/{id}/health", Operator, get(pools::health), [(Method::GET, SEE)]),
        route("/v1/pools/{id}/drain", Operator, post(pools::drain), [(Method::POST, RULE)]),
        route("/v1/pools/{id}/reload", Operator, post(pools::reload), [(Method::POST, RULE)]),
        route("/v1/replicasets", Operator, get(pools::replica_sets), [(Method::GET, SEE)]),
        route("/v1/devices", Operator, get(devices::devices), [(Method::GET, SEE)]),
        route("/v1/overview", Operator, get(overview::overview), [(Method::GET, SEE)]),
        route("/v1/events", Operator, get(overview::events), [(Method::GET, SEE)]),
        route(
            "/v1/config",
            Operator,
            get(configs::show).post(configs::apply),
            [(Method::GET, RULE), (Method::POST, RULE)],
        ),
        route("/v1/config/rollback", Operator, post(configs::rollback), [(Method::POST, RULE)]),
        route(
            "/v1/rollouts",
            Operator,
            get(rollouts::list).post(rollouts::begin),
            [(Method::GET, SEE), (Method::POST, RULE)],
        ),
        route("/v1/rollouts/{pool}", Operator, axum::routing::delete(rollouts::end), [(Method::DELETE, RULE)]),
        route("/v1/cluster", Operator, get(nodes::show), [(Method::GET, SEE)]),
        route("/v1/cluster/drain", Operator, post(nodes::drain), [(Method::POST, RULE)]),
        reads("/metrics", metrics::scrape),
        open("/healthz", get(health::alive)),
        open("/readyz", get(health::ready)),
        open("/", get(dashboard::front)),
        open("/dashboard", get(dashboard::page)),
        open("/dashboard/{file}", get(dashboard::file)),
    ]
}

/// The router of a listener: its own routes and the open ones. Every request passes [`enter`], whatever it asks for.
pub(crate) fn router(app: App, serves: impl Fn(Audience) -> bool) -> Router {
    let mut router = Router::new();
    for Route { path, face, needs, handler } in routes() {
        if face != Audience::Open && !serves(face) {
            continue;
        }
        let gate = Gate { app: app.clone(), path, face, needs: needs.into() };
        router = router.route(path, handler.fallback(unknown_method).layer(from_fn_with_state(gate, enter)));
    }
    let gate = Gate { app: app.clone(), path: "unknown", face: Audience::Public, needs: Arc::from([]) };
    let fallback = get(unknown_path).fallback(unknown_path).layer(from_fn_with_state(gate, enter));
    router.fallback_service(fallback.with_state(app.clone())).layer(from_fn(secure)).with_state(app)
}

/// What every answer says to browsers: it is for the service's own page, in nobody's frame, and depends on who asks.
const SECURE: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("cross-origin-resource-policy", "same-origin"),
    ("vary", "origin, sec-fetch-site, sec-fetch-mode, sec-fetch-dest"),
];

async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in SECURE {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // A page that has a policy of its own says this in it.
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("frame-ancestors 'none'"));
    response
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no path {}; tasks go to POST /v1/tasks", quoted(uri.path())))
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {}", quoted(uri.path()), Line::<20>::new(method.as_str()));
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidParams, text)
}
