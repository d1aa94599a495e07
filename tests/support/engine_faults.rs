//! Everything that an engine can do wrong in one answer, in each engine's words.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use orchestrator_core::ErrorCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::fakes::{Kind, Server};

pub const TEXT: &str = "grün 🦀 ok";
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What a run is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole text.
    Whole,
    /// As many tokens as were asked for.
    Budget,
    Fails(ErrorCode),
}

use ErrorCode::{DecodeTimeout, InvalidParams, ReplicaExhausted, WorkerReset};
use Outcome::{Budget, Fails, Whole};

/// Every way, and its outcome for a task that is not to be run again.
pub const WAYS: [(&str, Outcome); 26] = [
    ("well behaved", Whole),
    ("hangs before the first token", Fails(DecodeTimeout)),
    ("hangs in the middle", Fails(DecodeTimeout)),
    ("drips a byte at a time", Fails(DecodeTimeout)),
    ("bytes that are no events", Fails(WorkerReset)),
    ("an event that is no JSON", Fails(WorkerReset)),
    ("text that is no UTF-8", Fails(WorkerReset)),
    ("cut at every byte", Whole),
    ("lines end in CRLF", Whole),
    ("lines end in CR", Whole),
    ("lines end in all ways", Whole),
    ("closes without the last event", Fails(WorkerReset)),
    ("closes at once", Fails(WorkerReset)),
    ("status 500", Fails(WorkerReset)),
    ("status 503", Fails(ReplicaExhausted)),
    ("status 429", Fails(ReplicaExhausted)),
    ("status 400", Fails(InvalidParams)),
    ("status 422", Fails(InvalidParams)),
    ("out of device memory", Fails(WorkerReset)),
    ("200 with an error as its body", Fails(WorkerReset)),
    ("an error in the middle", Fails(WorkerReset)),
    ("never stops", Budget),
    ("a line of 100 MB", Fails(WorkerReset)),
    ("content-length too large", Fails(WorkerReset)),
    ("the last event twice, and [DONE]", Whole),
    ("a flood of headers", Fails(WorkerReset)),
];

/// The outcome of a way for an engine whose protocol differs in it.
pub fn outcome(kind: Kind, way: usize) -> Outcome {
    match (kind, WAYS[way].0) {
        // It has no last event, and an event that is none of its is nonsense.
        (Kind::Triton, "the last event twice, and [DONE]") => Fails(WorkerReset),
        _ => WAYS[way].1,
    }
}

/// Events for the whole text, each a piece of the answer.
fn events(kind: Kind) -> String {
    let pieces = TEXT.split_inclusive(' ').zip(1..);
    pieces.map(|(text, index)| kind.event(text, index)).collect::<String>() + &kind.last("stop", 3)
}

/// One whole answer whose end is told.
fn told(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Does what the way says.
pub async fn misbehave(server: &Server, way: usize, out: &mut TcpStream) -> std::io::Result<()> {
    let kind = server.kind;
    let status = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    let answer = match WAYS[way].0 {
        "hangs before the first token" => {
            out.write_all(HEAD.as_bytes()).await?;
            return until_gone(out).await;
        }
        "hangs in the middle" => {
            out.write_all((HEAD.to_owned() + &kind.event("grün ", 1)).as_bytes()).await?;
            return until_gone(out).await;
        }
        "drips a byte at a time" => return drip(out, Duration::from_millis(50), told(&events(kind))).await,
        "cut at every byte" => return drip(out, Duration::from_micros(300), told(&events(kind))).await,
        "bytes that are no events" => HEAD.to_owned() + &"\u{1}garbage\n\n".repeat(50),
        "an event that is no JSON" => HEAD.to_owned() + &kind.event("grün ", 1) + "data: {\"content\": oops\n\n",
        "text that is no UTF-8" => {
            out.write_all(HEAD.as_bytes()).await?;
            let event = kind.event("XX", 1);
            let (before, behind) = event.split_once("XX").unwrap();
            let mut bytes = before.as_bytes().to_vec();
            bytes.extend(b"\xff\xfe");
            bytes.extend(behind.as_bytes());
            return out.write_all(&bytes).await;
        }
        "lines end in CRLF" => told(&events(kind).replace('\n', "\r\n")),
        "lines end in CR" => told(&events(kind).replace('\n', "\r")),
        "lines end in all ways" => {
            let mut ends = ["\r\n", "\n", "\r", "\r\n"].iter().cycle();
            let lines = events(kind).lines().map(|line| line.to_owned() + ends.next().unwrap()).collect::<String>();
            told(&(lines + "\n"))
        }
        "closes without the last event" => HEAD.to_owned() + &kind.event("grün ", 1),
        "closes at once" => String::new(),
        "status 500" => status("500 Internal Server Error", "oops"),
        "status 503" => status("503 Service Unavailable", "loading"),
        "status 429" => status("429 Too Many Requests", "slow down"),
        "status 400" => status("400 Bad Request", "the prompt is not to our liking"),
        "status 422" => {
            status("422 Unprocessable Entity", r#"{"error":"not to our liking","error_type":"validation"}"#)
        }
        "out of device memory" => status(
            "500 Internal Server Error",
            r#"{"error":{"message":"CUDA out of memory. Tried to allocate 2 GiB"}}"#,
        ),
        "200 with an error as its body" => status("200 OK", r#"{"error":{"code":500,"message":"oops"}}"#),
        "an error in the middle" => HEAD.to_owned() + &kind.event("grün ", 1) + &kind.error_event("oops"),
        "never stops" => {
            out.write_all(HEAD.as_bytes()).await?;
            return pour(server, out, kind.event("x ", 1).as_bytes(), u64::MAX).await;
        }
        "a line of 100 MB" => {
            out.write_all((HEAD.to_owned() + "data: ").as_bytes()).await?;
            return pour(server, out, &[b'x'; 65_536], 100 << 20).await;
        }
        "content-length too large" => {
            "HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n".to_owned() + &kind.event("grün ", 1)
        }
        "the last event twice, and [DONE]" => told(&(events(kind) + &kind.last("stop", 3) + "data: [DONE]\n\n")),
        "a flood of headers" => {
            out.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            return pour(server, out, b"x-flood: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100 << 20).await;
        }
        way => panic!("{way} is not written"),
    };
    out.write_all(answer.as_bytes()).await
}

/// Says nothing more, until the other side is gone.
async fn until_gone(out: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0; 1];
    while tokio::io::AsyncReadExt::read(out, &mut byte).await? > 0 {}
    Ok(())
}

/// Writes the same bytes over and over, until so many have gone or the client has had enough.
async fn pour(server: &Server, out: &mut TcpStream, piece: &[u8], most: u64) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < most {
        out.write_all(piece).await?;
        sent += piece.len() as u64;
        server.sent.fetch_max(sent, SeqCst);
    }
    Ok(())
}

async fn drip(out: &mut TcpStream, pause: Duration, text: String) -> std::io::Result<()> {
    out.set_nodelay(true)?;
    for byte in text.as_bytes() {
        out.write_all(&[*byte]).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
