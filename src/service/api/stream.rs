//! A task's events as server-sent events (ORCH-2002).
//!
//! `id:` is the event's index in the log, `event:` its type, `data:` one line of JSON. Events that are there go out as
//! one piece, copied once from the log, and the next piece is made when the connection has taken the last. `metrics`
//! events come in between and have no id, since the log has none.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::core::id::{PoolId, TaskId};
use crate::core::task::error::{ErrorCode, TaskError};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::fabric::Cut;
use crate::orchestrator::fabric::TaskStream;
use crate::orchestrator::fabric::{EventRef, Started};
use crate::service::access::Principal;
use crate::service::http::app::App;
use crate::service::http::error::ApiError;
use crate::service::http::error::limited;
use crate::service::http::listener::connections::Seat;

#[derive(Serialize)]
struct StartedData<'a> {
    task_id: &'a TaskId,
    #[serde(flatten)]
    started: &'a Started,
}

#[derive(Serialize)]
struct TokenData<'a> {
    t: &'a str,
    i: u32,
}

#[derive(Serialize)]
struct MetricsData {
    queue_depth: u32,
    tokens_per_s: f64,
    kv_warmth: bool,
}

/// Writes one event.
fn frame(buffer: &mut Vec<u8>, id: Option<usize>, kind: &str, data: &impl Serialize) {
    use std::io::Write;
    // Writing into memory does not fail, nor does any of these types refuse to be JSON.
    if let Some(id) = id {
        let _ = writeln!(buffer, "id: {id}");
    }
    let _ = write!(buffer, "event: {kind}\ndata: ");
    let _ = serde_json::to_writer(&mut *buffer, data);
    buffer.extend_from_slice(b"\n\n");
}

/// Most events of one piece, some 16 KiB: what a reader that does not read makes us hold beside its connection's
/// buffers.
const EVENTS_MAX: usize = 256;

/// One reader's connection.
struct Connection {
    orchestrator: Orchestrator,
    /// Who reads: the stream ends with the key.
    principal: Principal,
    stream: TaskStream,
    open: bool,
    /// Tokens since the last `metrics` event.
    tokens: u32,
    started: Option<(PoolId, bool)>,
    metrics_period: Duration,
    /// When the last `metrics` event went out, or the task started.
    measured_at: Instant,
    keep_alive: Duration,
}

/// How often the head of an answer lets everything else that can run go first, to take the first event along. Not a
/// timer: one that is due sooner than all others costs a system call to wake the driver.
const FIRST_PIECE_YIELDS: u32 = 3;

/// What a connection was woken for.
enum Due {
    Events,
    Metrics,
    Comment,
    /// The stream ends before its task's log does.
    Over(ErrorCode, &'static str),
}

#[expect(clippy::disallowed_methods, reason = "the pace of a connection, which decides nothing")]
impl Connection {
    fn new(orchestrator: &Orchestrator, principal: Principal, stream: TaskStream) -> Self {
        let http = &orchestrator.config().http;
        let view = stream.view();
        Connection {
            orchestrator: orchestrator.clone(),
            principal,
            stream,
            open: true,
            tokens: 0,
            // A reader that comes back does not see `started` again.
            started: view.replica_id.map(|replica| (replica.pool, view.kv_warmth)),
            metrics_period: Duration::from_millis(http.metrics_ms),
            measured_at: Instant::now(),
            keep_alive: Duration::from_millis(http.keep_alive_ms),
        }
    }

    /// The next piece to send, or `None` when nothing will follow.
    async fn next_piece(&mut self) -> Option<Bytes> {
        if !self.open {
            return None;
        }
        let mut buffer = Vec::with_capacity(256);
        let task_id = self.stream.task_id().clone();
        let silence = tokio::time::sleep(self.keep_alive);
        let has_started = self.started.is_some();
        let metrics_at = self.measured_at + self.metrics_period;
        let (tokens, started, measured_at) = (&mut self.tokens, &mut self.started, &mut self.measured_at);
        let due = tokio::select! {
            biased;
            why = self.principal.until_void() => Due::Over(ErrorCode::InvalidParams, why), // First: a stream that always has more is asked too.
            open = self.stream.visit_next(EVENTS_MAX, |index, event| match event {
                EventRef::Started(event) => {
                    *started = Some((event.identity.replica.pool.clone(), event.kv_warmth));
                    *measured_at = Instant::now();
                    frame(&mut buffer, Some(index), "started", &StartedData { task_id: &task_id, started: event });
                }
                EventRef::Token { text, index: i } => {
                    *tokens += 1;
                    frame(&mut buffer, Some(index), "token", &TokenData { t: text, i });
                }
                EventRef::End(end) => frame(&mut buffer, Some(index), "end", end),
                EventRef::Error(error) => frame(&mut buffer, Some(index), "error", error),
            }) => {
                self.open = open.unwrap_or_default();
                open.map_or(Due::Over(ErrorCode::AdmissionReject, Cut::WHY), |_| Due::Events)
            }
            () = sleep_until(metrics_at), if has_started => Due::Metrics,
            () = silence => Due::Comment,
        };
        match due {
            Due::Events => {}
            Due::Metrics => self.metrics(&mut buffer),
            Due::Comment => buffer.extend_from_slice(b": waiting\n\n"),
            Due::Over(code, why) => {
                self.open = false;
                buffer.extend_from_slice(&over(code, why));
            }
        }
        Some(Bytes::from(buffer))
    }

    fn metrics(&mut self, buffer: &mut Vec<u8>) {
        let elapsed = self.measured_at.elapsed();
        self.measured_at = Instant::now();
        let Some((pool, kv_warmth)) = &self.started else { return };
        let queue_depth = self.orchestrator.pool_shared(pool).map_or(0, |pool| pool.depth_total());
        let tokens_per_s = f64::from(std::mem::take(&mut self.tokens)) / elapsed.as_secs_f64().max(1e-3);
        frame(buffer, None, "metrics", &MetricsData { queue_depth, tokens_per_s, kv_warmth: *kv_warmth });
    }
}

/// What comes as soon as all that can run now has run, if it does.
async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(future);
    for _ in 0..FIRST_PIECE_YIELDS {
        if let Some(output) = future.as_mut().now_or_never() {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    future.as_mut().now_or_never()
}

/// A task's events as the body of an answer.
///
/// # Errors
/// `ADMISSION_REJECT` when as many connections read the task as may.
pub(crate) async fn event_stream(
    app: &App,
    (principal, seat): (Principal, Option<Seat>),
    stream: TaskStream,
) -> Result<Response, ApiError> {
    let orchestrator = &app.orchestrator;
    if stream.readers() > orchestrator.config().http.readers_max {
        app.limited.count("readers");
        return Err(limited("readers", "as many connections read this task as may, see http.readers_max"));
    }
    if let Some(seat) = seat {
        let (who, record) = (principal.clone(), stream.record().clone());
        seat.end_when(move || who.void().is_some() || record.is_cut());
    }
    let mut connection = Connection::new(orchestrator, principal, stream);
    // A task that starts at once has its first event in a moment: head and event then go out together.
    let first = soon(connection.next_piece()).await.flatten();
    let first = futures_util::stream::iter(first.map(Ok::<_, std::convert::Infallible>));
    let pieces = futures_util::stream::unfold(connection, |mut connection| async move {
        connection.next_piece().await.map(|piece| (Ok::<_, std::convert::Infallible>(piece), connection))
    });
    Ok(event_response(Body::from_stream(first.chain(pieces))))
}

/// The last event of an answer that has to end before what it is about.
pub(crate) fn over(code: ErrorCode, why: &'static str) -> Vec<u8> {
    let mut buffer = Vec::new();
    frame(&mut buffer, None, "error", &TaskError::new(code, why));
    buffer
}

/// Server-sent events as an answer.
pub(crate) fn event_response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no")); // nginx would hold events back.
    response
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::*;
    use crate::config::{Config, PoolConfig, RetentionConfig};
    use crate::core::task::TaskRequest;
    use crate::env::Env;
    use crate::gpu::SimEngine;
    use crate::service::access::open_principal;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_cut_off_says_so_and_ends() {
        let retention = RetentionConfig { bytes: 1, ..RetentionConfig::default() };
        let builder = Orchestrator::builder().config(Config { retention, ..Config::default() }).env(Env::simulated(1));
        let orchestrator = builder.pool(PoolConfig::new("a", "sim", "m"), SimEngine::new).start().await.unwrap();
        let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(3)).await.unwrap();
        let principal = open_principal(&HeaderMap::new()).ok().unwrap();
        let mut connection = Connection::new(&orchestrator, principal, submitted.stream());
        let _ = submitted.stream().collect().await; // Until the task ends, which is when it is forgotten.
        assert!(connection.stream.record().is_cut());
        let piece = connection.next_piece().await.expect("it says why");
        let text = std::str::from_utf8(&piece).unwrap();
        assert!(text.starts_with("event: error\n") && text.contains("ADMISSION_REJECT"), "{text}");
        assert!(text.contains("the task is forgotten"), "{text}");
        assert!(connection.next_piece().await.is_none());
    }
}
