//! The way of a request to its handler: whether it may be served at all, whose it is, whether its client has room for
//! it, and whether its key reaches so far (ORCH-3035).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::core::task::error::ErrorCode;
use crate::core::text::line::Line;
use crate::core::units::millis_ceil;
use crate::service::access::keys::Scope;
use crate::service::access::{Principal, no_key, peer_of, turned_away};
use crate::service::http::app::App;
use crate::service::http::error::ApiError;
use crate::service::http::error::limited;
use crate::service::http::guard as request_guard;
use crate::service::http::listener::connections::Seat;
use crate::service::http::rule::{Audience, Needs};

/// What a request costs that makes an actor work, beside one that does not.
const ACTOR_COST: f64 = 5.0;
/// The pages by which a service is looked after.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// The path that submissions come by: they have limits of their own.
const SUBMISSIONS: &str = "/v1/tasks";

/// What stands in front of a route.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) app: App,
    pub(crate) path: &'static str,
    pub(crate) face: Audience,
    pub(crate) needs: Arc<[(Method, Needs)]>,
}

/// Lets a request in to a route: first whether it may be served at all, then whose it is and whether there is room for
/// it, then whether its key reaches so far.
pub(crate) async fn enter(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = match request_guard::check(&gate.app, gate.path, gate.face, &request) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if gate.face == Audience::Open => for_everybody(&gate, request, next).await,
        Ok(()) => for_client(&gate, request, next).await,
    };
    gate.app.requests.count(gate.path, &method, response.status());
    response
}

/// A page without a key. Health is always answered: whoever asks for it may restart the service when it is not.
async fn for_everybody(gate: &Gate, request: Request, next: Next) -> Response {
    let is_health = HEALTH.contains(&gate.path);
    let (limits, peer) = (&gate.app.request_limits, peer_of(&request));
    if !is_health && let Err(wait) = limits.admit_page(peer) {
        gate.app.limited.count("requests");
        return too_fast("too many pages are asked for from this address", wait);
    }
    next.run(request).await
}

fn too_fast(text: &'static str, wait: Duration) -> Response {
    limited("requests", text).retry_after_ms(millis_ceil(wait)).into_response()
}

async fn for_client(gate: &Gate, mut request: Request, next: Next) -> Response {
    let (app, method) = (&gate.app, request.method().clone());
    let asked = if method == Method::HEAD { &Method::GET } else { &method };
    let needed = gate.needs.iter().find(|(known, _)| known == asked).map_or(&[] as Needs, |(_, scopes)| *scopes);
    let principal = match app.access.principal(&request) {
        Ok(principal) => principal,
        Err(refusal) => return turned_away(refusal),
    };
    let is_submission = gate.path == SUBMISSIONS;
    let seat = request.extensions().get::<Seat>().cloned();
    match make_room(gate, seat, &principal, is_submission).await {
        Err(refusal) => return refusal,
        Ok(has_waited) if has_waited && principal.void().is_some() => return turned_away(no_key()),
        Ok(_) => {}
    }
    let told = Told::of(&request, &principal);
    if !needed.is_empty() && !needed.iter().any(|scope| principal.has(*scope)) {
        return out_of_reach(app, needed, &told);
    }
    request.extensions_mut().insert(principal.clone());
    let response = next.run(request).await;
    if needed == [Scope::Admin] {
        tell_admin(app, &principal, &method, &told, response.status());
    }
    if is_submission && !response.status().is_success() {
        app.request_limits.charge(&principal.client_id);
    }
    response
}

/// Makes sure that the client has a connection for this request and asks no faster than it may. A submission costs
/// nothing here, but it waits for what is owed. Returns whether it waited.
async fn make_room(
    gate: &Gate,
    seat: Option<Seat>,
    principal: &Principal,
    is_submission: bool,
) -> Result<bool, Response> {
    let app = &gate.app;
    if seat.is_some_and(|seat| !seat.claim(&principal.client_id)) {
        app.limited.count("connections");
        let text = "every connection is taken, and no other client holds more of them than this one does";
        let mut response = limited("connections", text).into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Err(response);
    }
    let asks_actor = gate.path.ends_with("/explain") || gate.path.starts_with("/v1/sessions");
    let cost = if is_submission {
        0.0
    } else if asks_actor {
        ACTOR_COST
    } else {
        1.0
    };
    app.request_limits.wait(&principal.client_id, cost).await.map_err(|wait| {
        app.limited.count("requests");
        too_fast("too many requests of this client besides tasks; see http.requests_per_s", wait)
    })
}

/// What a line of the log says of a request with a key.
struct Told {
    key_id: Arc<str>,
    path: Line<200>,
    peer: IpAddr,
}

impl Told {
    fn of(request: &Request, principal: &Principal) -> Self {
        let key_id = principal.key_id().unwrap_or_default().into();
        Told { key_id, path: request.uri().path().into(), peer: peer_of(request) }
    }
}

/// The refusal of a key that does not reach so far.
fn out_of_reach(app: &App, needed: Needs, Told { key_id, path, peer }: &Told) -> Response {
    app.access.denied.count("scope");
    let needed = needed.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join("' or '");
    if let Some(suppressed) = app.request_limits.line(key_id) {
        let (key_id, path) = (&**key_id, path.as_str());
        tracing::warn!(
            target: "audit", event = "scope_refused", key_id, needed, path, %peer, suppressed,
            "a key does not reach so far"
        );
    }
    let text = format!("this needs a key with the scope '{needed}'");
    ApiError::with_status(StatusCode::FORBIDDEN, ErrorCode::InvalidParams, text).into_response()
}

/// The line about an operator's request: each one that was carried out has its own, those that were refused are
/// bounded.
fn tell_admin(app: &App, principal: &Principal, method: &Method, told: &Told, status: StatusCode) {
    let Told { key_id, path, peer } = told;
    let is_refused = status.is_client_error();
    let suppressed = if is_refused { app.request_limits.line(key_id) } else { Some(0) };
    if let Some(suppressed) = suppressed {
        let (client_id, key_id, path, status) = (&principal.client_id, &**key_id, path.as_str(), status.as_u16());
        tracing::info!(
            target: "audit", event = "admin", key_id, %client_id, %method, path, %peer, status, suppressed,
            "an operator's request"
        );
    }
}
