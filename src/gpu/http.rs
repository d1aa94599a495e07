//! A small HTTP client for engines: bounded answers, deadlines, connections that are used again.
//!
//! `hyper-util`'s client, since the service stands on hyper already: no second HTTP stack, and no TLS for engines that
//! listen on loopback.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// Largest answer that is read whole, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest part of an answer that is quoted in an error, in bytes.
const QUOTE_BYTES_MAX: usize = 300;

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpError {
    /// No connection, or nothing came back on it: the server has not begun to work on it, as far as can be known.
    #[error("{0}")]
    Connect(String),
    /// No answer came in time: the server may be at work on it.
    #[error("{0}")]
    Timeout(String),
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// An answer with a status that is none of success.
    #[error("status {status}: {body}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The begin of the body.
        body: String,
    },
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl HttpClient {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`.
    pub(crate) fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true); // Else small writes wait for the other side's acknowledgement.
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        HttpClient { client, base: base.trim_end_matches('/').to_owned() }
    }

    /// Sends a request and returns the answer's head, its body still to come.
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer before its end, closes the connection.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, HttpError> {
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .map_err(|error| HttpError::Connect(format!("{}{path} is no URL: {error}", self.base)))?;
        let mut request = Request::builder().method(method).uri(uri);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| HttpError::Connect(error.to_string()))?;
        self.client.request(request).await.map_err(|error| {
            let text = causes(&error);
            if error.is_connect() { HttpError::Connect(text) } else { HttpError::Broken(text) }
        })
    }

    /// Gets a whole answer within `limit`.
    pub(crate) async fn get(&self, path: &str, limit: Duration) -> Result<Bytes, HttpError> {
        let answer = async { whole(self.send(Method::GET, path, &[], Vec::new()).await?).await };
        let late = |_| HttpError::Timeout(format!("no answer to {path} within {limit:?}"));
        timeout(limit, answer).await.map_err(late)?
    }
}

/// Reads an answer to its end; one without success becomes an error.
pub(crate) async fn whole(answer: Response<Incoming>) -> Result<Bytes, HttpError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| HttpError::Broken(error.to_string()))?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTE_BYTES_MAX)]);
    // One line, printable: this text ends in logs and in error messages.
    let body = quoted.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Err(HttpError::Status { status, body })
}

/// An error with all that lies behind it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
