//! Requests that are refused whoever sends them: counted, and told in the log.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use parking_lot::Mutex;

use crate::core::admission::line_budget::LineBudget;
use crate::core::task::error::ErrorCode;
use crate::core::text::line::Message;
use crate::env::Env;
use crate::service::access::peer_of;
use crate::service::http::error::ApiError;
use crate::service::http::guard::origin::{Reason, word};
use crate::service::telemetry::named_counts::NamedCounts;

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

pub(in crate::service) fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::Host => StatusCode::BAD_REQUEST,
        Reason::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
        Reason::Origin | Reason::Site | Reason::Executed => StatusCode::FORBIDDEN,
        Reason::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    }
}
