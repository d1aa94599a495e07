//! `/v1/overview` and `/v1/events`: an overview of the runtime, once, or every second as server-sent events.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::time::{MissedTickBehavior, interval};

use crate::core::task::error::ErrorCode;
use crate::service::access::Principal;
use crate::service::api::stream::{event_response, over};
use crate::service::http::app::App;
use crate::service::http::listener::connections::Seat;

/// Time between two events.
const PERIOD: Duration = Duration::from_secs(1);

fn json(app: &App, principal: &Principal) -> Bytes {
    app.glance.json(&app.orchestrator, &app.nodes, (app.access.is_on(), principal))
}

/// The runtime at a glance: pools with their percentiles and clients, devices, objectives, the newest failures.
#[utoipa::path(get, path = "/v1/overview", responses((status = 200, description = "The runtime at a glance.")))]
pub(crate) async fn overview(State(app): State<App>, principal: Principal) -> Response {
    let mut response = Response::new(Body::from(json(&app, &principal)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same every second, each as an event `overview`.
#[utoipa::path(get, path = "/v1/events", responses(
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
        let json = json(&app, &principal);
        let piece = Bytes::from([b"event: overview\ndata: ".as_slice(), &json, b"\n\n"].concat());
        Some((Ok(piece), Some((app, principal, ticks))))
    });
    event_response(Body::from_stream(pieces))
}
