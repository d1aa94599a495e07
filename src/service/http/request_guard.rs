//! What stands in front of every route: a request's head is judged, and a refusal is counted, logged and answered
//! (ORCH-3035).
//!
//! Refusals cost the sender nothing, so lines about them are bounded in number and in length. The counts have them all.

use std::net::{IpAddr, Ipv4Addr};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use parking_lot::Mutex;

use crate::core::admission::line_budget::LineBudget;
use crate::core::task::error::ErrorCode;
use crate::core::text::line::Message;
use crate::env::Env;
use crate::service::access::peer_of;
use crate::service::http::app::App;
use crate::service::http::error::ApiError;
use crate::service::http::listener::Local;
use crate::service::http::request_origin::{Facts, Field, Reason, judge, word};
use crate::service::http::routes::Audience;
use crate::service::telemetry::named_counts::NamedCounts;

/// The route that takes YAML.
const CONFIG: &str = "/v1/config";

/// Requests that are refused whoever sends them.
pub(crate) struct Refusals {
    env: Env,
    /// By reason.
    pub(crate) counts: NamedCounts<{ Reason::NAMES.len() }>,
    /// A short lock for each refusal.
    lines: Mutex<LineBudget>,
}

impl Refusals {
    pub(crate) fn new(env: Env) -> Self {
        let lines = Mutex::new(LineBudget::new(env.now()));
        Refusals { env, counts: NamedCounts::new(Reason::NAMES), lines }
    }

    /// Counts a refusal, and writes a line about it unless there were too many.
    pub(crate) fn note(&self, reason: Reason, asker: &Asker) {
        self.counts.count(reason.as_str());
        let Some(suppressed) = self.lines.lock().take(self.env.now()) else { return };
        let (reason, peer) = (reason.as_str(), asker.peer);
        let (host, origin, path) = (asker.host.as_str(), asker.origin.as_str(), asker.path.as_str());
        tracing::warn!(
            target: "audit", event = "request_refused", reason, host, origin, path, %peer, suppressed,
            "a request was refused"
        );
    }

    /// Notes the refusal of what a request wants to be run or loaded, and answers it.
    pub(crate) fn refuse_executed(&self, asker: &Asker, message: impl Into<Message>) -> ApiError {
        self.note(Reason::Executed, asker);
        ApiError::with_status(status(Reason::Executed), ErrorCode::InvalidParams, message)
    }
}

/// What a line of the log says of a request.
pub(crate) struct Asker {
    host: String,
    origin: String,
    path: String,
    peer: IpAddr,
}

impl Asker {
    /// By the head of a request.
    pub(crate) fn of(request: &Request) -> Self {
        let first =
            |name: HeaderName| request.headers().get(name).map_or("", |value| value.to_str().unwrap_or("\u{fffd}"));
        Asker {
            host: word(first(header::HOST)),
            origin: word(first(header::ORIGIN)),
            path: word(request.uri().path()),
            peer: peer_of(request),
        }
    }
}

fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::Host => StatusCode::BAD_REQUEST,
        Reason::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
        Reason::Origin | Reason::Site | Reason::Executed => StatusCode::FORBIDDEN,
        Reason::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    }
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> Field<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Field::Absent,
        (Some(value), None) => Field::One(value.to_str().unwrap_or("\u{fffd}")),
        (Some(_), Some(_)) => Field::Many,
    }
}

/// Lets a request through to a route.
///
/// # Errors
/// It is refused; that has been counted and logged.
pub(crate) fn check(app: &App, route: &str, face: Audience, request: &Request) -> Result<(), ApiError> {
    let config = app.orchestrator.config();
    let headers = request.headers();
    // Without a listener nothing is known of the connection, and only loopback's own names are.
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let local = request.extensions().get::<Local>().copied().unwrap_or(Local { address: loopback, bound: loopback });
    let facts = Facts {
        method: request.method().as_str(),
        target: request.uri().authority().map(Authority::as_str),
        host: field(headers, "host"),
        origin: field(headers, "origin"),
        site: field(headers, "sec-fetch-site"),
        mode: field(headers, "sec-fetch-mode"),
        dest: field(headers, "sec-fetch-dest"),
        content_type: field(headers, "content-type"),
        face,
        takes_yaml: route == CONFIG,
        local: local.address,
        bound: local.bound,
        hosts: &config.http.hosts,
        has_keys: app.access.is_on(),
    };
    judge(&facts).map_err(|refusal| {
        app.refusals.note(refusal.reason, &Asker::of(request));
        ApiError::with_status(status(refusal.reason), ErrorCode::InvalidParams, refusal.message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_status() {
        let statuses = [
            (Reason::Host, 400),
            (Reason::UnknownHost, 421),
            (Reason::Origin, 403),
            (Reason::Site, 403),
            (Reason::ContentType, 415),
            (Reason::Executed, 403),
        ];
        assert_eq!(statuses.len(), Reason::NAMES.len());
        assert!(statuses.into_iter().all(|(reason, code)| status(reason).as_u16() == code));
    }
}
