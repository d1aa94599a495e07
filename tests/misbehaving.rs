//! A llama.cpp server that does everything wrong: each way has one documented outcome, takes bounded memory, and leaves the
//! worker fit for the next task.
#![cfg(feature = "engines-http")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::gpu::llamacpp::LlamaCpp;
use orchestrator_core::{ErrorCode, Event, Orchestrator, TaskRequest};
use support::{eventually, is_idle, read_whole};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const IDLE_MS: u64 = 400;
const TEXT: &str = "grün 🦀 ok";
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What a run is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The whole text.
    Whole,
    /// As many tokens as were asked for.
    Budget,
    Fails(ErrorCode),
}

use ErrorCode::{DecodeTimeout, InvalidParams, WorkerReset};
use Outcome::{Budget, Fails, Whole};

/// Every way, and its outcome for a task that is not to be run again.
const WAYS: [(&str, Outcome); 24] = [
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
    ("status 503", Fails(WorkerReset)),
    ("status 429", Fails(WorkerReset)),
    ("status 400", Fails(InvalidParams)),
    ("200 with an error as its body", Fails(WorkerReset)),
    ("an error in the middle", Fails(WorkerReset)),
    ("never stops", Budget),
    ("a line of 100 MB", Fails(WorkerReset)),
    ("content-length too large", Fails(WorkerReset)),
    ("the last event twice, and [DONE]", Whole),
    ("a flood of headers", Fails(WorkerReset)),
];

fn event(text: &str) -> String {
    format!("data: {}\n\n", serde_json::json!({"content": text, "stop": false}))
}

fn last() -> String {
    format!("data: {}\n\n", serde_json::json!({"content": "", "stop": true, "stop_type": "eos", "tokens_evaluated": 3}))
}

fn whole() -> String {
    TEXT.split_inclusive(' ').map(event).collect::<String>() + &last()
}

/// The fake server: which way it goes now, and how many bytes of an answer it got rid of.
#[derive(Default)]
struct Server {
    way: AtomicUsize,
    sent: AtomicU64,
}

impl Server {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Ok((connection, _)) = listener.accept().await {
            let server = self.clone();
            tokio::spawn(async move {
                let _ = server.answer(connection).await; // The client may be gone.
            });
        }
    }

    async fn answer(&self, connection: TcpStream) -> std::io::Result<()> {
        let mut connection = BufReader::new(connection);
        let (mut first, mut length) = (String::new(), 0);
        connection.read_line(&mut first).await?;
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await?;
        let mut out = connection.into_inner();
        let json = match first.split(' ').nth(1).unwrap_or_default() {
            "/health" => r#"{"status":"ok"}"#,
            "/props" => r#"{"total_slots":1,"default_generation_settings":{"n_ctx":4096},"build_info":"fake"}"#,
            "/slots" => r#"[{"id":0,"is_processing":false}]"#,
            "/v1/models" => r#"{"data":[{"meta":{"n_params":1}}]}"#,
            _ => return self.misbehave(out).await,
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", json.len());
        out.write_all((head + json).as_bytes()).await
    }

    async fn misbehave(&self, mut out: TcpStream) -> std::io::Result<()> {
        let status = |status: &str, body: &str| {
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        };
        let answer = match WAYS[self.way.load(SeqCst)].0 {
            "well behaved" => HEAD.to_owned() + &whole(),
            "hangs before the first token" => {
                out.write_all(HEAD.as_bytes()).await?;
                return std::future::pending().await;
            }
            "hangs in the middle" => {
                out.write_all((HEAD.to_owned() + &event("grün ")).as_bytes()).await?;
                return std::future::pending().await;
            }
            "drips a byte at a time" => return drip(out, Duration::from_millis(50), HEAD.to_owned() + &whole()).await,
            "cut at every byte" => return drip(out, Duration::from_micros(300), HEAD.to_owned() + &whole()).await,
            "bytes that are no events" => HEAD.to_owned() + &"\u{1}garbage\n\n".repeat(50),
            "an event that is no JSON" => HEAD.to_owned() + &event("grün ") + "data: {\"content\": oops\n\n",
            "text that is no UTF-8" => {
                out.write_all(HEAD.as_bytes()).await?;
                return out.write_all(b"data: {\"content\": \"\xff\xfe\", \"stop\": false}\n\n").await;
            }
            "lines end in CRLF" => HEAD.to_owned() + &whole().replace('\n', "\r\n"),
            "lines end in CR" => HEAD.to_owned() + &whole().replace('\n', "\r"),
            "lines end in all ways" => {
                let mut ends = ["\r\n", "\n", "\r", "\r\n"].iter().cycle();
                let lines = whole().lines().map(|line| line.to_owned() + ends.next().unwrap()).collect::<String>();
                HEAD.to_owned() + &lines + "\n"
            }
            "closes without the last event" => HEAD.to_owned() + &event("grün "),
            "closes at once" => String::new(),
            "status 500" => status("500 Internal Server Error", "oops"),
            "status 503" => status("503 Service Unavailable", "loading"),
            "status 429" => status("429 Too Many Requests", "slow down"),
            "status 400" => status("400 Bad Request", "the prompt is not to our liking"),
            "200 with an error as its body" => status("200 OK", r#"{"error":{"code":500,"message":"oops"}}"#),
            "an error in the middle" => {
                HEAD.to_owned() + &event("grün ") + "data: {\"error\":{\"code\":500,\"message\":\"oops\"}}\n\n"
            }
            "never stops" => {
                out.write_all(HEAD.as_bytes()).await?;
                return self.pour(out, event("x ").as_bytes(), u64::MAX).await;
            }
            "a line of 100 MB" => {
                out.write_all((HEAD.to_owned() + "data: ").as_bytes()).await?;
                return self.pour(out, &[b'x'; 65_536], 100 << 20).await;
            }
            "content-length too large" => {
                "HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n".to_owned() + &event("grün ")
            }
            "the last event twice, and [DONE]" => HEAD.to_owned() + &whole() + &last() + "data: [DONE]\n\n",
            "a flood of headers" => {
                out.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                return self.pour(out, b"x-flood: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100 << 20).await;
            }
            way => panic!("{way} is not written"),
        };
        out.write_all(answer.as_bytes()).await
    }

    /// Writes the same bytes over and over, until so many have gone or the client has had enough.
    async fn pour(&self, mut out: TcpStream, piece: &[u8], most: u64) -> std::io::Result<()> {
        let mut sent = 0;
        while sent < most {
            out.write_all(piece).await?;
            sent += piece.len() as u64;
            self.sent.fetch_max(sent, SeqCst);
        }
        Ok(())
    }
}

async fn drip(mut out: TcpStream, pause: Duration, text: String) -> std::io::Result<()> {
    out.set_nodelay(true)?;
    for byte in text.as_bytes() {
        out.write_all(&[*byte]).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

async fn run(orchestrator: &Orchestrator) -> (String, Event) {
    let submitted = loop {
        // Behind a misdeed the engine is looked at first.
        match orchestrator.submit(TaskRequest::completion("say something").max_tokens(64)).await {
            Ok(submitted) => break submitted,
            Err(error) => {
                tokio::time::sleep(Duration::from_millis(error.retry_after_ms.expect("says when").min(20))).await;
            }
        }
    };
    read_whole(submitted.stream()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_an_engine_has_one_documented_outcome() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Server::default());
    let serving = tokio::spawn(server.clone().serve(listener));
    let mut pool = PoolConfig { url: Some(url), ..PoolConfig::new("fake", "llamacpp", "fake") };
    (pool.timeouts.idle_ms, pool.resume.on_loss) = (IDLE_MS, Some(OnLoss::Fail));
    let orchestrator = Orchestrator::builder().pool(pool, LlamaCpp::new).start().await.unwrap();
    orchestrator.until_ready().await;
    for (way, (name, want)) in WAYS.into_iter().enumerate() {
        server.way.store(way, SeqCst);
        server.sent.store(0, SeqCst);
        let (text, end) = run(&orchestrator).await;
        match (want, &end) {
            (Whole, Event::End(end)) => {
                assert_eq!((text.as_str(), end.finish_reason), (TEXT, FinishReason::Stop), "{name}")
            }
            (Budget, Event::End(end)) => {
                assert_eq!((end.tokens_out, end.finish_reason), (64, FinishReason::Length), "{name}")
            }
            (Fails(code), Event::Error(error)) => {
                assert_eq!(error.code, code, "{name}: {error}");
                assert_eq!(error.retriable, code != InvalidParams, "{name}: {error}");
                assert!(TEXT.starts_with(&text), "{name}: what was seen is a part of the text: {text:?}");
                println!("{name:36} {code}: {}", error.message.chars().take(110).collect::<String>());
            }
            _ => panic!("{name}: {end:?} instead of {want:?}"),
        }
        // What is read beyond the longest event is what the sockets' own buffers hold.
        let sent = server.sent.load(SeqCst) >> 20;
        assert!(sent <= 32, "{name}: {sent} MiB were taken");
        server.way.store(0, SeqCst);
        let (text, end) = run(&orchestrator).await;
        assert!(text == TEXT && matches!(end, Event::End(_)), "the task behind {name:?} is served: {text:?} {end:?}");
        eventually("the slot is free", || is_idle(&orchestrator)).await;
    }
    println!(
        "{} ways, one outcome each; the worker was restarted {} times",
        WAYS.len(),
        orchestrator.pools()[0].replicas[0].restarts
    );
    serving.abort();
}
