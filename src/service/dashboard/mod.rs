//! The dashboard: a page, a style sheet and a script that are part of the program. They are the same for everybody and
//! hold no data; what they show they fetch from the API, with the key that whoever looks has typed in.

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use crate::core::text::line::quoted;
use crate::service::http::error::ApiError;

const PAGE: &str = include_str!("index.html");
const SCRIPT: &str = "text/javascript; charset=utf-8";
const FILES: [(&str, &str, &str); 9] = [
    ("dashboard.css", "text/css; charset=utf-8", include_str!("dashboard.css")),
    ("dashboard.js", SCRIPT, include_str!("dashboard.js")),
    ("base.js", SCRIPT, include_str!("base.js")),
    ("history.js", SCRIPT, include_str!("history.js")),
    ("nodes.js", SCRIPT, include_str!("nodes.js")),
    ("panels.js", SCRIPT, include_str!("panels.js")),
    ("quality.js", SCRIPT, include_str!("quality.js")),
    ("tasks.js", SCRIPT, include_str!("tasks.js")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// Nothing but our own files and our own API; in no other page's frame.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

fn answer(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whoever comes with a browser wants the dashboard. As every link of the page, this one is relative: a proxy may have
/// a path in front.
pub(crate) async fn front() -> Redirect {
    Redirect::to("dashboard")
}

/// The page.
pub(crate) async fn page() -> Response {
    answer("text/html; charset=utf-8", PAGE)
}

/// What the page is made of.
pub(crate) async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|(known, _, _)| *known == name);
    let (_, kind, text) =
        file.ok_or_else(|| ApiError::not_found(format!("the dashboard has no file {}", quoted(&name))))?;
    Ok((StatusCode::OK, answer(kind, text)).into_response())
}
