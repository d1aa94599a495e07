//! The runtime at a glance, as JSON: once, or every second as server-sent events. It is put together once for all who
//! look.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::core::task::error::ErrorCode;
use crate::core::units::Timestamp;
use crate::service::access::Principal;
use crate::service::access::keys::Scope;
use crate::service::api::stream::{event_response, over};
use crate::service::http::app::App;
use crate::service::http::connections::Seat;
use crate::views::OverviewView;

/// How old what is shown may be.
const AGE_MAX: Duration = Duration::from_millis(500);
/// Time between two events.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Glanced {
    /// Milliseconds since 1970.
    at_ms: u64,
    version: &'static str,
    uptime_s: f64,
    #[serde(flatten)]
    overview: OverviewView,
    /// The service as a node of a cluster, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<serde_json::Value>,
}

/// What was put together last: as JSON for operators, and for those who may only look.
struct Picture {
    at: Timestamp,
    whole: Bytes,
    without_words: Bytes,
}

/// What was put together last.
#[derive(Default)]
pub(crate) struct OverviewCache(Mutex<Option<Picture>>);

impl OverviewCache {
    /// The overview as one line of JSON, as of now or half a second ago.
    fn json(&self, app: &App, principal: &Principal) -> Bytes {
        let is_whole = principal.has(Scope::Admin);
        let part = |picture: &Picture| if is_whole { &picture.whole } else { &picture.without_words }.clone();
        let orchestrator = &app.orchestrator;
        // Some milliseconds with hundreds of replicas, and others wait for it: what waits on this thread goes on
        // elsewhere meanwhile.
        tokio::task::block_in_place(|| {
            let mut last = self.0.lock(); // Held meanwhile: who else looks wants the same.
            let now = orchestrator.env().now();
            if let Some(picture) = last.as_ref().filter(|picture| now.since(picture.at) < AGE_MAX) {
                return part(picture);
            }
            let (at_ms, overview) = (orchestrator.env().unix_ms(), orchestrator.overview());
            let uptime_s = overview.uptime_ms as f64 / 1000.0;
            let mut glanced =
                Glanced { at_ms, version: env!("CARGO_PKG_VERSION"), uptime_s, overview, cluster: app.nodes.view() };
            let json = |glanced: &Glanced| Bytes::from(serde_json::to_vec(glanced).unwrap_or_default()); // No type refuses.
            let whole = json(&glanced);
            // Without keys everybody is an operator.
            let without_words = if app.access.is_on() {
                glanced.overview.hide_words();
                json(&glanced)
            } else {
                whole.clone()
            };
            let picture = Picture { at: now, whole, without_words };
            let json = part(&picture);
            *last = Some(picture);
            json
        })
    }
}

/// The runtime at a glance: pools with their percentiles and clients, devices, objectives, the newest failures.
#[utoipa::path(tag = "overview", get, path = "/v1/overview", responses((status = 200, description = "The runtime at a glance.")))]
pub(crate) async fn overview(State(app): State<App>, principal: Principal) -> Response {
    let mut response = Response::new(Body::from(app.glance.json(&app, &principal)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same every second, each as an event `overview`.
#[utoipa::path(tag = "overview", get, path = "/v1/events", responses(
    (status = 200, description = "An event `overview` every second.", content_type = "text/event-stream"),
))]
pub(crate) async fn events(State(app): State<App>, principal: Principal, seat: Option<Extension<Seat>>) -> Response {
    if let Some(Extension(seat)) = seat {
        let who = principal.clone();
        seat.end_when(move || who.void().is_some());
    }
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip); // A reader that was slow gets the newest only.
    let pieces = futures_util::stream::unfold(Some((app, principal, ticks)), |looking| async move {
        let (app, principal, mut ticks) = looking?;
        tokio::select! {
            biased;
            () = app.orchestrator.until_ended() => return None,
            why = principal.until_void() => {
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from(over(ErrorCode::InvalidParams, why))), None));
            }
            _ = ticks.tick() => {}
        }
        let json = app.glance.json(&app, &principal);
        let piece = Bytes::from([b"event: overview\ndata: ".as_slice(), &json, b"\n\n"].concat());
        Some((Ok(piece), Some((app, principal, ticks))))
    });
    event_response(Body::from_stream(pieces))
}
