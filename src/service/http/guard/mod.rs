//! What stands in front of every route: a request's head is judged, and a refusal is counted, logged and answered
//! (ORCH-3035).
//!
//! Refusals cost the sender nothing, so lines about them are bounded in number and in length. The counts have them all.

pub(in crate::service) mod origin;
pub(in crate::service) mod refusals;

use std::net::{IpAddr, Ipv4Addr};

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::uri::Authority;

use crate::core::task::error::ErrorCode;
use crate::service::http::app::App;
use crate::service::http::error::ApiError;
use crate::service::http::guard::origin::{Facts, Field, judge};
use crate::service::http::guard::refusals::{Asker, status};
use crate::service::http::listener::Local;
use crate::service::http::rule::Audience;

/// The route that takes YAML.
const CONFIG: &str = "/v1/config";

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
    use crate::service::http::guard::origin::Reason;

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
