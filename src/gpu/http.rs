//! A small HTTP client for engines: bounded answers, deadlines, connections that are used again.
//!
//! `hyper-util`'s client, since the service stands on hyper already: no second HTTP stack, and no TLS for engines that
//! listen on loopback.

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector, HttpInfo};
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::timeout;

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
    },
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    /// What goes into `Authorization`, if anything.
    authorization: Option<Arc<str>>,
    /// Our ends of connections that have brought an answer, the newest last.
    served: Arc<Mutex<VecDeque<SocketAddr>>>,
}

/// Most connections that are remembered; one that is not is taken for fresh.
const SERVED_MAX: usize = 64;

impl HttpClient {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`, which may want a key.
    pub(crate) fn new(base: &str, api_key: Option<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true); // Else small writes wait for the other side's acknowledgement.
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let authorization = api_key.map(|key| format!("Bearer {key}").into());
        HttpClient { client, base: base.trim_end_matches('/').to_owned(), authorization, served: Arc::default() }
    }

    fn note_served(&self, answer: &Response<Incoming>) {
        let Some(local) = answer.extensions().get::<HttpInfo>().map(HttpInfo::local_addr) else { return };
        let mut served = self.served.lock();
        if served.back() != Some(&local) && !served.contains(&local) {
            if served.len() == SERVED_MAX {
                served.pop_front();
            }
            served.push_back(local);
        }
    }

    fn has_served(&self, error: &hyper_util::client::legacy::Error) -> bool {
        let mut extensions = hyper::http::Extensions::new();
        if let Some(connected) = error.connect_info() {
            connected.get_extras(&mut extensions);
        }
        extensions.get::<HttpInfo>().is_some_and(|info| self.served.lock().contains(&info.local_addr()))
    }

    /// Sends a request and returns the answer's head, its body still to come.
    ///
    /// A server may close a connection that it kept open at the very moment we use it again. So a request on a connection that has
    /// served before, which ended without the head of an answer, is sent once more. On a fresh one it is not: that was its own end.
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
        let body = Bytes::from(body);
        let request = || {
            let mut request = Request::builder().method(method.clone()).uri(uri.clone());
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
        let mut result = self.client.request(request()?).await;
        if result.as_ref().is_err_and(|error| is_hung_up(error) && self.has_served(error)) {
            result = self.client.request(request()?).await;
        }
        if let Ok(answer) = &result {
            self.note_served(answer);
        }
        result.map_err(|error| {
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
    whole_up_to(answer, ANSWER_BYTES_MAX).await
}

/// The same with another bound.
pub(crate) async fn whole_up_to(answer: Response<Incoming>, bytes_max: usize) -> Result<Bytes, HttpError> {
    let status = answer.status();
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
    let body = quoted.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Err(HttpError::Status { status, body })
}

/// Whether the other side closed the connection without the head of an answer.
fn is_hung_up(error: &hyper_util::client::legacy::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let mut source = error.source();
    while let Some(cause) = source {
        let ended = cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        let reset = cause.downcast_ref::<std::io::Error>();
        if ended || reset.is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset))
        {
            return !error.is_connect();
        }
        source = cause.source();
    }
    false
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

    /// A server that answers the first `answers` requests of each connection and closes it at the next one; tells how many
    /// connections there were.
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
