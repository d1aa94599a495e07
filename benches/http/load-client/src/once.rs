//! One request: send, read its events, say how it ended.
use crate::Args;
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1, Request};
use hyper_util::rt::TokioIo;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;

pub type Conn = http1::SendRequest<Full<Bytes>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// Every token in order, and the end mark.
    Ok,
    /// The end mark, with tokens missing, repeated or out of order.
    Garbled,
    /// The stream ended in good order at the HTTP level, with no end mark.
    Truncated,
    /// The connection broke inside the stream.
    Broken,
    /// An `error` event inside the stream.
    ErrorEvent,
    /// No answer head: connection refused, reset or closed.
    NoAnswer,
    Status(u16),
    /// Nothing more within the time limit.
    Hung,
    /// We closed it ourselves.
    Aborted,
}

#[derive(Debug)]
pub struct Outcome {
    pub rid: u64,
    pub end: End,
    pub tokens: u64,
    pub ttft: Option<Duration>,
    pub total: Duration,
    /// Longest silence between two tokens.
    pub gap: Duration,
    /// For an abort: when, in microseconds since the epoch.
    pub aborted_at_us: u64,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        self.end == End::Ok
    }
}

pub struct Target {
    to: String,
    path: String,
    headers: Vec<(String, String)>,
    body_head: String,
    body_tail: String,
    want: u64,
    timeout: Duration,
    abort_after: u64,
}

#[derive(Default)]
struct Seen {
    tokens: u64,
    in_order: bool,
    done: bool,
    error: bool,
    last: Option<Instant>,
    ttft: Option<Duration>,
    gap: Duration,
    aborted_at_us: u64,
}

impl Target {
    pub fn new(a: &Args) -> Self {
        let pad = "x".repeat(a.prompt);
        let (m, n) = (&a.model, a.tokens);
        let (body_head, body_tail) = if a.path.ends_with("/chat/completions") {
            (
                format!(
                    r#"{{"model":"{m}","stream":true,"max_tokens":{n},"messages":[{{"role":"user","content":"{pad} rid="#
                ),
                r#" go"}]}"#.to_string(),
            )
        } else if a.path.ends_with("/tasks") {
            (format!(r#"{{"max_tokens":{n},"prompt":"{pad} rid="#), r#" go"}"#.to_string())
        } else {
            (
                format!(r#"{{"model":"{m}","stream":true,"max_tokens":{n},"n_predict":{n},"prompt":"{pad} rid="#),
                r#" go"}"#.to_string(),
            )
        };
        Target {
            to: a.to.clone(),
            path: a.path.clone(),
            headers: a.header.iter().filter_map(|h| h.split_once(": ")).map(|(a, b)| (a.into(), b.into())).collect(),
            body_head,
            body_tail,
            want: a.tokens,
            timeout: Duration::from_secs_f64(a.timeout),
            abort_after: a.abort_after,
        }
    }

    /// Sends request `rid` on `conn` (made if absent, dropped if unusable after).
    pub async fn once(&self, conn: &mut Option<Conn>, rid: u64, t0: Instant) -> Outcome {
        let mut seen = Seen { in_order: true, ..Seen::default() };
        let end = match tokio::time::timeout(self.timeout, self.drive(conn, rid, t0, &mut seen)).await {
            Ok(end) => end,
            Err(_) => End::Hung,
        };
        if !matches!(end, End::Ok | End::Garbled | End::Status(_)) {
            *conn = None;
        }
        Outcome {
            rid,
            end,
            tokens: seen.tokens,
            ttft: seen.ttft,
            total: t0.elapsed(),
            gap: seen.gap,
            aborted_at_us: seen.aborted_at_us,
        }
    }

    async fn drive(&self, conn: &mut Option<Conn>, rid: u64, t0: Instant, seen: &mut Seen) -> End {
        let body = Bytes::from(format!("{}{rid}{}", self.body_head, self.body_tail));
        let mut req = Request::post(self.path.as_str())
            .header("host", self.to.as_str())
            .header("content-type", "application/json")
            .header("accept", "text/event-stream");
        for (k, v) in &self.headers {
            req = req.header(k.as_str(), v.as_str());
        }
        let req = req.body(Full::new(body)).expect("the parts are well formed");
        // A kept connection that the server closed in between is replaced.
        if let Some(c) = conn {
            if c.ready().await.is_err() {
                *conn = None;
            }
        }
        if conn.is_none() {
            *conn = connect(&self.to).await;
        }
        let Some(c) = conn else { return End::NoAnswer };
        let Ok(res) = c.send_request(req).await else { return End::NoAnswer };
        let status = res.status().as_u16();
        if status != 200 {
            let _ = res.into_body().collect().await;
            return End::Status(status);
        }
        self.read(res.into_body(), t0, seen).await
    }

    async fn read(&self, mut body: Incoming, t0: Instant, seen: &mut Seen) -> End {
        let mut buf: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return End::Broken };
            let Ok(data) = frame.into_data() else { continue };
            let now = Instant::now();
            // Whole lines straight from the frame; a cut line waits in `buf`.
            let mut rest = data.chunk();
            while let Some(nl) = rest.iter().position(|&b| b == b'\n') {
                let (line, after) = (&rest[..nl], &rest[nl + 1..]);
                rest = after;
                if buf.is_empty() {
                    seen.line(line, t0, now);
                } else {
                    buf.extend_from_slice(line);
                    let whole = std::mem::take(&mut buf);
                    seen.line(&whole, t0, now);
                }
            }
            buf.extend_from_slice(rest);
            if self.abort_after > 0 && seen.tokens >= self.abort_after {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
                seen.aborted_at_us = at.as_micros() as u64;
                return End::Aborted;
            }
        }
        match (seen.error, seen.done) {
            (true, _) => End::ErrorEvent,
            (_, false) => End::Truncated,
            _ if seen.in_order && seen.tokens == self.want => End::Ok,
            _ => End::Garbled,
        }
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

impl Seen {
    fn line(&mut self, line: &[u8], t0: Instant, now: Instant) {
        let Some(data) = line.strip_prefix(b"data:") else {
            self.error |= line.starts_with(b"event: error");
            self.done |= line == b"event: end";
            return;
        };
        if data.trim_ascii() == b"[DONE]" || find(data, b"\"stop\":true").is_some() {
            self.done = true;
            return;
        }
        // The engine's tokens read "t<number> "; several may share an event.
        let mut rest = data;
        let mut any = false;
        while let Some(p) = find(rest, b"t") {
            let digits = rest[p + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
            let end = p + 1 + digits;
            let opens = p == 0 || matches!(rest[p - 1], b'"' | b' ');
            if digits > 0 && opens && rest.get(end) == Some(&b' ') {
                let n = rest[p + 1..end].iter().fold(0u64, |a, b| a * 10 + (b - b'0') as u64);
                self.in_order &= n == self.tokens;
                self.tokens += 1;
                any = true;
            }
            rest = &rest[end..];
        }
        if any {
            if let Some(last) = self.last {
                self.gap = self.gap.max(now - last);
            }
            self.last = Some(now);
            self.ttft.get_or_insert(now - t0);
        } else if find(data, b"\"error\"").is_some() {
            self.error = true;
        }
    }
}

async fn connect(to: &str) -> Option<Conn> {
    let sock = TcpStream::connect(to).await.ok()?;
    let _ = sock.set_nodelay(true);
    let (send, conn) = http1::handshake(TokioIo::new(sock)).await.ok()?;
    tokio::spawn(async move {
        let _ = conn.await;
    });
    Some(send)
}

/// The engine's list of cancels: (rid, when in us, tokens sent by then).
pub async fn cancels(engine: &str) -> Vec<(u64, u64, u64)> {
    let get = async {
        let mut c = connect(engine).await?;
        let req = Request::get("/_mock/cancels").header("host", engine).body(Full::default()).ok()?;
        let b = c.send_request(req).await.ok()?.into_body().collect().await.ok()?.to_bytes();
        serde_json::from_slice(&b).ok()
    };
    get.await.unwrap_or_default()
}
