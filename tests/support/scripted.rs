//! A server that answers each path as a test tells it to: for unusual answers, and for servers that are exchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use orchestrator_core::config::PoolConfig;
use orchestrator_core::service::engines;
use orchestrator_core::{Config, End, Event, Orchestrator, ReplicaView, TaskRequest};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::fakes::Kind;
use super::read_whole;

/// Slots that it has as a llama.cpp server.
const SLOTS: u64 = 4;
/// Longest wait for a pool to be Ready.
const READY: Duration = Duration::from_secs(60);

type Answering = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;
type Script = Arc<dyn Fn(Asked, Reply) -> Answering + Send + Sync>;

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When its head began.
    pub at: Instant,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// Null where it is no JSON.
    pub body: Value,
}

impl Asked {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn prompt(&self) -> &str {
        self.body["prompt"].as_str().unwrap_or_default()
    }

    /// Tokens that are asked for.
    pub fn budget(&self) -> u32 {
        let most = self.body["max_tokens"].as_u64().or_else(|| self.body["n_predict"].as_u64());
        most.unwrap_or(0) as u32
    }
}

/// The way back to whoever asked.
#[derive(Clone)]
pub struct Reply(Arc<tokio::sync::Mutex<OwnedWriteHalf>>);

impl Reply {
    async fn write(&self, text: &str) -> io::Result<()> {
        self.0.lock().await.write_all(text.as_bytes()).await
    }

    /// A whole answer; each of `headers` ends in CRLF.
    pub async fn whole(&self, status: &str, headers: &str, body: &str) -> io::Result<()> {
        self.write(&format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())).await
    }

    /// The head of an event stream.
    pub async fn begin(&self) -> io::Result<()> {
        self.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await
    }

    /// A piece of the stream.
    pub async fn chunk(&self, text: &str) -> io::Result<()> {
        self.write(&format!("{:x}\r\n{text}\r\n", text.len())).await
    }

    /// An event with this data.
    pub async fn event(&self, data: &Value) -> io::Result<()> {
        self.chunk(&format!("data: {data}\n\n")).await
    }

    /// The end of the stream, as HTTP tells it.
    pub async fn end(&self) -> io::Result<()> {
        self.write("0\r\n\r\n").await
    }
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<BTreeMap<String, Script>>,
    asked: Mutex<Vec<Asked>>,
    /// Slots that compute, by what stands before the path.
    busy: Mutex<BTreeSet<(String, u64)>>,
    /// Tokens of their prompts that are evaluated, as `/slots` shows them.
    prompt_done: AtomicU64,
    open: AtomicUsize,
}

/// A slot computes while this lives.
struct Busy(Arc<Shared>, (String, u64));

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.lock().remove(&self.1);
    }
}

/// A connection is open while this lives.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl Shared {
    fn answer(self: &Arc<Self>, asked: Asked, reply: Reply) -> Answering {
        self.asked.lock().push(asked.clone());
        let scripts = self.scripts.lock();
        let script = scripts.get(asked.path()).or_else(|| scripts.get("*")).cloned();
        drop(scripts);
        let busy = asked.body["id_slot"].as_u64().map(|slot| {
            let place = (asked.path().trim_end_matches("/completion").to_owned(), slot);
            self.busy.lock().insert(place.clone());
            Busy(self.clone(), place)
        });
        Box::pin(async move {
            let _busy = busy;
            match script {
                Some(script) => script(asked, reply).await,
                None => reply.whole("404 Not Found", "", r#"{"error":"it is not here"}"#).await,
            }
        })
    }
}

/// The server.
pub struct Scripted {
    pub port: u16,
    shared: Arc<Shared>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl Scripted {
    pub async fn start() -> Self {
        Self::at(0).await
    }

    /// At this port, which an earlier one may have left just now.
    pub async fn at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let serves = shared.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serves.open.fetch_add(1, SeqCst);
                connections.spawn(serve(Open(serves.clone()), stream));
            }
        });
        Scripted { port, shared, serving: Mutex::new(Some(serving)) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it, and waits until all its connections are closed.
    pub async fn stop(&self) {
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.abort();
            let _ = serving.await; // Aborted.
        }
        while self.shared.open.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// From now on requests for this path are answered so; `*` is every path without a script of its own.
    pub fn on<F>(&self, path: &str, script: impl Fn(Asked, Reply) -> F + Send + Sync + 'static)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let script: Script = Arc::new(move |asked, reply| -> Answering { Box::pin(script(asked, reply)) });
        self.shared.scripts.lock().insert(path.to_owned(), script);
    }

    /// The same answer to each request for this path.
    pub fn gives(&self, path: &str, status: &'static str, headers: &'static str, body: String) {
        self.on(path, move |_, reply| {
            let body = body.clone();
            async move { reply.whole(status, headers, &body).await }
        });
    }

    /// Requests for this path so far.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.shared.asked.lock().iter().filter(|asked| asked.path() == path).cloned().collect()
    }

    /// All requests so far.
    pub fn asked_at_all(&self) -> Vec<Asked> {
        self.shared.asked.lock().clone()
    }

    /// How many tokens of their prompts its busy slots have evaluated, as it says from now on.
    pub fn set_prompt_done(&self, tokens: u64) {
        self.shared.prompt_done.store(tokens, SeqCst);
    }

    /// A server of this kind below `prefix`, with one model, that says `name0 name1 …`.
    pub fn be(&self, prefix: &str, kind: Kind, name: &str, ctx: u32) {
        self.describe(prefix, kind, name, ctx);
        self.say(prefix, kind, name, Duration::ZERO);
    }

    /// What it says of itself.
    pub fn describe(&self, prefix: &str, kind: Kind, name: &str, ctx: u32) {
        let ok = |path: &str, body: Value| self.gives(&format!("{prefix}{path}"), "200 OK", "", body.to_string());
        if kind == Kind::OpenAi {
            return ok("/v1/models", json!({"data": [{"id": name, "object": "model", "max_model_len": ctx}]}));
        }
        assert_eq!(kind, Kind::LlamaCpp, "the others are not written");
        let file = format!("/models/{name}.gguf");
        ok("/health", json!({"status": "ok"}));
        ok("/v1/models", json!({"data": [{"id": file, "meta": {"n_params": 7, "n_ctx": ctx}}]}));
        let mut props = json!({"total_slots": SLOTS, "build_info": "b1", "model_path": file});
        props["default_generation_settings"] = json!({"n_ctx": ctx});
        ok("/props", props);
        let (shared, place) = (self.shared.clone(), prefix.to_owned());
        self.on(&format!("{prefix}/slots"), move |_, reply| {
            let (busy, done) = (shared.busy.lock().clone(), shared.prompt_done.load(SeqCst));
            let slot = |id: u64| {
                let is_processing = busy.contains(&(place.clone(), id));
                json!({"id": id, "is_processing": is_processing, "n_prompt_tokens_processed": done})
            };
            let slots = Value::from_iter((0..SLOTS).map(slot)).to_string();
            async move { reply.whole("200 OK", "", &slots).await }
        });
    }

    /// It says `name0 name1 …` up to the budget, with so much time between two.
    pub fn say(&self, prefix: &str, kind: Kind, name: &str, pace: Duration) {
        let name = name.to_owned();
        self.on(&format!("{prefix}{}", kind.stream_path()), move |asked, reply| {
            let name = name.clone();
            async move { say(kind, &name, pace, &asked, &reply).await }
        });
    }
}

/// One whole answer that says `name0 name1 …`.
pub async fn say(kind: Kind, name: &str, pace: Duration, asked: &Asked, reply: &Reply) -> io::Result<()> {
    reply.begin().await?;
    for number in 0..asked.budget() {
        reply.chunk(&kind.event(&format!("{name}{number} "), number + 1)).await?;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
    }
    reply.chunk(&kind.last("length", asked.budget())).await?;
    reply.end().await
}

/// What [`say`] says.
pub fn said(name: &str, tokens: u32) -> String {
    (0..tokens).map(|number| format!("{name}{number} ")).collect()
}

async fn serve(open: Open, stream: TcpStream) {
    let _ = stream.set_nodelay(true); // It only makes waits shorter.
    let (reader, writer) = stream.into_split();
    let (mut reader, reply) = (BufReader::new(reader), Reply(Arc::new(tokio::sync::Mutex::new(writer))));
    while let Ok(Some(asked)) = read(&mut reader).await {
        let mut answering = open.0.answer(asked, reply.clone());
        tokio::select! {
            biased;
            done = &mut answering => {
                if done.is_err() {
                    return;
                }
            }
            () = until_gone(&mut reader) => return,
        }
    }
}

async fn read(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Asked>> {
    let mut first = String::new();
    if reader.read_line(&mut first).await? == 0 {
        return Ok(None);
    }
    let (at, mut headers) = (Instant::now(), Vec::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut asked = Asked { at, target, headers, body: Value::Null };
    let length = asked.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    asked.body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(asked))
}

/// Returns when the other side has closed the connection.
async fn until_gone(reader: &mut BufReader<OwnedReadHalf>) {
    if reader.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
        std::future::pending::<()>().await; // It has sent its next request already.
    }
}

/// A pool of such a server. It has no self-test, so that each run that the server sees is a task's.
pub fn pool_at(kind: Kind, url: String) -> PoolConfig {
    let mut pool = PoolConfig::new("p", kind.engine(), "m");
    (pool.url, pool.slots, pool.self_test) = (Some(url), SLOTS as u32, false);
    (pool.restart.intensity, pool.restart.backoff_ms, pool.restart.backoff_max_ms) = (1_000, 50, 100);
    pool
}

/// A runtime of this pool, which may be not Ready yet.
pub async fn start(pool: PoolConfig) -> Orchestrator {
    engines::builder(Config { pools: vec![pool], ..Config::default() }).start().await.unwrap()
}

/// A runtime of this pool, which is Ready.
pub async fn ready(pool: PoolConfig) -> Orchestrator {
    let orchestrator = start(pool).await;
    tokio::time::timeout(READY, orchestrator.until_ready()).await.expect("the pool becomes Ready");
    orchestrator
}

/// The first replica of the only pool, as it stands now.
pub fn replica(orchestrator: &Orchestrator) -> ReplicaView {
    orchestrator.pools()[0].replicas[0].clone()
}

/// Runs a task to its end.
pub async fn run(orchestrator: &Orchestrator, request: TaskRequest) -> (String, Event) {
    read_whole(orchestrator.submit(request).await.unwrap().stream()).await
}

/// Runs a task that is to end well.
pub async fn run_well(orchestrator: &Orchestrator, request: TaskRequest) -> (String, End) {
    match run(orchestrator, request).await {
        (text, Event::End(end)) => (text, end),
        (text, other) => panic!("{text:?}, then {other:?}"),
    }
}
