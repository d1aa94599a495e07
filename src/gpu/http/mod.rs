//! A small HTTP client for engines: bounded answers, deadlines, connections that are used again.
//!
//! It stands on `hyper`, as the service does: no second HTTP stack, and no TLS for engines that listen on loopback.

#[cfg(feature = "engines-http")]
pub(crate) mod connection;
#[cfg(all(test, feature = "engines-http"))]
pub(in crate::gpu) mod corpus;
#[cfg(feature = "engines-http")]
pub(crate) mod dial;
#[cfg(feature = "engines-http")]
pub(crate) mod embeddings;
#[cfg(all(test, feature = "engines-http"))]
pub(in crate::gpu) mod fuzz;
#[cfg(feature = "engines-http")]
pub(in crate::gpu) mod identity;
#[cfg(feature = "engines-http")]
pub(crate) mod in_flight;
#[cfg(feature = "engines-http")]
pub(crate) mod prometheus_text;
#[cfg(feature = "engines-http")]
pub(crate) mod refusal;
#[cfg(feature = "engines-http")]
pub(crate) mod server;
#[cfg(feature = "engines-http")]
pub(crate) mod sse;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, HOST, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};

use crate::env::timeout_awake;
use crate::gpu::http::connection::{Answer, Gaps, Idle, Link};
use crate::gpu::http::refusal::retry_after;

/// Largest answer that is read whole, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest part of a refusal that is kept, in bytes: room for an error in JSON with the request in it.
const QUOTE_BYTES_MAX: usize = 4096;

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
    /// The answer is longer than so many bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// An answer with a status that is none of success.
    #[error("status {status}: {body}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The begin of the body.
        body: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct HttpClient {
    base: Arc<str>,
    /// Where it is; `None` when the base is no URL.
    place: Option<Arc<Place>>,
    /// What goes into `Authorization`, if anything.
    authorization: Option<Arc<str>>,
    idle: Idle,
}

/// The parts of a URL, taken apart once.
struct Place {
    host: String,
    port: u16,
    /// As it stands in `Host`.
    authority: String,
    /// What every path begins with.
    prefix: String,
    /// What stands behind every path: the URL's own query, with its mark.
    query: String,
    /// User and password of the URL, as they go into `Authorization`.
    authorization: Option<Arc<str>>,
}

impl Place {
    fn of(uri: &Uri) -> Option<Place> {
        let authority = uri.authority()?;
        let (user, server) = match authority.as_str().rsplit_once('@') {
            Some((user, server)) => (Some(user), server),
            None => (None, authority.as_str()),
        };
        Some(Place {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: server.to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map_or(String::new(), |query| format!("?{query}")),
            authorization: user.map(|user| {
                // A password without a user, and a user without a password, are told as such.
                let user: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
                let user = if user.contains(&b':') { user } else { [user, b":".to_vec()].concat() };
                format!("Basic {}", STANDARD.encode(user)).into()
            }),
        })
    }
}

/// A URL as it may be shown: without user, password and query, which may be secrets.
fn shown(base: &str) -> String {
    let base = base.split(['?', '#']).next().unwrap_or_default();
    match base.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => base.to_owned(),
    }
}

impl HttpClient {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`, which may want a key.
    pub(crate) fn new(base: &str, api_key: Option<String>) -> Self {
        let base = base.trim_end_matches('/');
        let place = base.parse::<Uri>().ok().and_then(|uri| Place::of(&uri)).map(Arc::new);
        let of_url = || place.as_ref().and_then(|place| place.authorization.clone());
        let authorization = api_key.map(|key| format!("Bearer {key}").into()).or_else(of_url);
        HttpClient { base: shown(base).into(), place, authorization, idle: Idle::default() }
    }

    async fn connect(&self, place: &Place) -> Result<Link, HttpError> {
        let link = Link::open(&place.host, place.port, CONNECT_TIMEOUT, self.gaps()).await;
        link.map_err(|error| HttpError::Connect(format!("{}: {error}", self.base)))
    }

    /// Where another server may have come in this one's place.
    pub(crate) fn gaps(&self) -> &Arc<Gaps> {
        &self.idle.1
    }

    /// Makes sure that a connection is at hand, so that the next request does not have to make one.
    pub(crate) async fn reserve(&self) -> Result<(), HttpError> {
        let no_url = || HttpError::Connect(format!("{} is no URL", self.base));
        let link = match self.idle.take() {
            Some(link) => link,
            None => self.connect(self.place.as_ref().ok_or_else(no_url)?).await?,
        };
        self.idle.keep(link);
        Ok(())
    }

    /// Sends a request and returns the answer's head, its body still to come.
    ///
    /// A server may close a connection that it kept open at the very moment we use it again. So a request on a
    /// connection that has served before, which ended without the head of an answer, is sent once more. On a fresh one
    /// it is not: that was its own end.
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer before its end, closes the connection.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Response<Answer>, HttpError> {
        let body = Bytes::from(body);
        let no_url = || HttpError::Connect(format!("{} is no URL", self.base));
        let place = self.place.as_ref().ok_or_else(no_url)?;
        let uri = format!("{}{path}{}", place.prefix, place.query);
        let request = || {
            let mut request = Request::builder().method(method.clone()).uri(&uri).header(HOST, &place.authority);
            if !body.is_empty() {
                request = request.header("content-type", "application/json");
            }
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, &**authorization);
            }
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(Full::new(body.clone())).map_err(|error| HttpError::Connect(error.to_string()))
        };
        if let Some(link) = self.idle.take() {
            match link.request(request()?, &self.idle).await {
                Err(error) if is_hung_up(&error) => self.gaps().note(),
                result => return result.map_err(|error| HttpError::Broken(causes(&error))),
            }
        }
        let result = self.connect(place).await?.request(request()?, &self.idle).await;
        result.map_err(|error| HttpError::Broken(causes(&error)))
    }

    /// Gets a whole answer within `limit`.
    pub(crate) async fn get(&self, path: &str, limit: Duration) -> Result<Bytes, HttpError> {
        let answer = async { whole(self.send(Method::GET, path, &[], Vec::new()).await?).await };
        let late = || HttpError::Timeout(format!("no answer to {path} within {limit:?}"));
        timeout_awake(limit, answer).await.ok_or_else(late)?
    }
}

/// Reads an answer to its end; one without success becomes an error.
pub(crate) async fn whole<B>(answer: Response<B>) -> Result<Bytes, HttpError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    whole_up_to(answer, ANSWER_BYTES_MAX).await
}

/// The same with another bound.
pub(crate) async fn whole_up_to<B>(answer: Response<B>, bytes_max: usize) -> Result<Bytes, HttpError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
    let leads_to = answer.headers().get(LOCATION).filter(|_| status.is_redirection());
    let leads_to = leads_to.map(|to| format!("it redirects to {} ", String::from_utf8_lossy(to.as_bytes())));
    let body = Limited::new(answer.into_body(), bytes_max).collect().await.map_err(|error| {
        match error.is::<LengthLimitError>() {
            true => HttpError::TooLong(bytes_max),
            false => HttpError::Broken(error.to_string()),
        }
    });
    let body = body?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTE_BYTES_MAX)]);
    // One line, printable: this text ends in logs and in error messages.
    let body = leads_to.unwrap_or_default() + &quoted;
    let body = body.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Err(HttpError::Status { status, body, retry_after })
}

/// Whether the other side closed the connection without the head of an answer.
fn is_hung_up(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let reset = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let is_reset = reset.is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset));
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_reset
}

/// An error with all that lies behind it, in one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers the first `answers` requests of each connection and closes it at the next one; tells how
    /// many connections there were.
    async fn serve(answers: usize) -> (HttpClient, Arc<AtomicUsize>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = HttpClient::new(&format!("http://{}", listener.local_addr().unwrap()), None);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                let mut request = [0; 4096];
                for _ in 0..answers {
                    if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                }
                let _ = stream.read(&mut request).await; // The next one arrives, and the connection ends.
            }
        });
        (client, count)
    }

    #[test]
    fn every_part_of_a_url_is_used_and_no_secret_of_it_is_shown() {
        let base = "http://us%65r:p%3Aw@[::1]:8080/openai/?api-version=1";
        let place = Place::of(&base.parse().unwrap()).unwrap();
        assert_eq!((place.host.as_str(), place.port, place.authority.as_str()), ("::1", 8080, "[::1]:8080"));
        assert_eq!((place.prefix.as_str(), place.query.as_str()), ("/openai", "?api-version=1"));
        assert_eq!(place.authorization.as_deref(), Some("Basic dXNlcjpwOnc="), "user:p:w");
        assert_eq!(shown(base), "http://[::1]:8080/openai/");
        assert_eq!(shown("http://a@b"), "http://b");
        let plain = Place::of(&"http://host".parse().unwrap()).unwrap();
        assert_eq!((plain.port, plain.authorization, plain.query.as_str(), plain.prefix.as_str()), (80, None, "", ""));
    }

    #[tokio::test]
    async fn a_kept_connection_that_the_server_closes_under_a_request_costs_nothing() {
        let (client, connections) = serve(1).await;
        for _ in 0..5 {
            assert_eq!(client.get("/", Duration::from_secs(5)).await.unwrap(), "ok");
        }
        assert_eq!(connections.load(Relaxed), 5);
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_on_a_fresh_connection_does_not_get_the_request_again() {
        let (client, connections) = serve(0).await;
        let error = client.get("/", Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, HttpError::Broken(_)), "{error}");
        assert_eq!(connections.load(Relaxed), 1);
    }
}
