//! Servers that speak each engine's words, written from its published API. They check every field that they are sent,
//! count what they compute as the real one does, and misbehave when they are told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use orchestrator_core::config::PoolConfig;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::engine_faults;

/// Which engine it speaks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LlamaCpp,
    Vllm,
    Tgi,
    Triton,
    OpenAi,
}

pub const KINDS: [Kind; 5] = [Kind::LlamaCpp, Kind::Vllm, Kind::Tgi, Kind::Triton, Kind::OpenAi];

impl Kind {
    pub fn engine(self) -> &'static str {
        match self {
            Kind::LlamaCpp => "llamacpp",
            Kind::Vllm => "vllm",
            Kind::Tgi => "tgi",
            Kind::Triton => "triton",
            Kind::OpenAi => "openai",
        }
    }

    pub fn stream_path(self) -> &'static str {
        match self {
            Kind::LlamaCpp => "/completion",
            Kind::Vllm | Kind::OpenAi => "/v1/completions",
            Kind::Tgi => "/generate_stream",
            Kind::Triton => "/v2/models/fake/generate_stream",
        }
    }

    /// One token of text; `index` counts from 1.
    pub fn event(self, text: &str, index: u32) -> String {
        let data = match self {
            Kind::LlamaCpp => json!({"content": text, "stop": false, "index": 0}),
            Kind::Vllm => {
                json!({"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": null}],
                "usage": {"prompt_tokens": 3, "completion_tokens": index}})
            }
            Kind::OpenAi => {
                json!({"object": "text_completion", "choices": [{"index": 0, "text": text}], "usage": null})
            }
            Kind::Tgi => json!({"index": index, "generated_text": null, "details": null,
                "token": {"id": 7, "text": text, "logprob": -1.5, "special": false}}),
            Kind::Triton => json!({"model_name": "fake", "model_version": "1", "text_output": text}),
        };
        format!("data: {data}\n\n")
    }

    /// What follows the last token.
    pub fn last(self, reason: &str, tokens: u32) -> String {
        match self {
            Kind::LlamaCpp => {
                let stop_type = if reason == "length" { "limit" } else { "eos" };
                format!(
                    "data: {}\n\n",
                    json!({"content": "", "stop": true, "stop_type": stop_type, "tokens_evaluated": 3})
                )
            }
            Kind::Vllm | Kind::OpenAi => {
                let choice = json!({"choices": [{"index": 0, "text": "", "finish_reason": reason}]});
                let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}});
                format!("data: {choice}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
            }
            Kind::Tgi => {
                let reason = if reason == "length" { "length" } else { "eos_token" };
                let details =
                    json!({"finish_reason": reason, "generated_tokens": tokens, "seed": 7, "input_length": 3});
                let token = json!({"id": 2, "text": "</s>", "logprob": 0.0, "special": true});
                format!(
                    "data: {}\n\n",
                    json!({"index": tokens + 1, "token": token, "generated_text": "…", "details": details})
                )
            }
            Kind::Triton => String::new(), // Its answers have no last event.
        }
    }

    pub fn error_event(self, text: &str) -> String {
        let data = match self {
            Kind::LlamaCpp | Kind::Vllm | Kind::OpenAi => {
                json!({"error": {"message": text, "type": "server", "code": 500}})
            }
            Kind::Tgi => json!({"error": text, "error_type": "generation"}),
            Kind::Triton => json!({"error": text}),
        };
        format!("data: {data}\n\n")
    }

    /// A pool of these servers, one replica each.
    pub fn pool(self, servers: &[&Server]) -> PoolConfig {
        let mut pool = PoolConfig::new("fake", self.engine(), "fake");
        // The port is all that differs: the replica's number picks it.
        pool.url = Some(match servers {
            [one] => format!("http://127.0.0.1:{}", one.port),
            _ => panic!("one server a pool"),
        });
        pool
    }
}

/// Makes another text of an answer.
pub type Twist = Arc<dyn Fn(&str, String) -> String + Send + Sync>;

/// One fake server.
pub struct Server {
    pub kind: Kind,
    pub port: u16,
    /// Which misdeed it does; 0 is none.
    pub way: AtomicUsize,
    /// Bytes of an answer that it got rid of.
    pub sent: AtomicU64,
    pub connections: AtomicU64,
    /// Runs that compute now.
    pub running: AtomicI64,
    pub running_max: AtomicI64,
    ended: AtomicU64,
    /// What was wrong with requests.
    pub complaints: Mutex<Vec<String>>,
    /// The body of the last run.
    pub last_body: Mutex<Value>,
    /// A prompt that it does not take.
    refused: Mutex<Option<String>>,
    /// What becomes of each answer and event on its way out: by the path, or `event` and `last`.
    pub twist: Mutex<Option<Twist>>,
    /// Time between two tokens, in microseconds.
    pub pace_us: AtomicU64,
    serving: Mutex<Option<JoinHandle<()>>>,
}

/// Counts a run while it lasts.
struct Running<'a>(&'a Server);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
        self.0.ended.fetch_add(1, SeqCst);
    }
}

impl Server {
    pub async fn start(kind: Kind) -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Arc::new(Server {
            kind,
            port: listener.local_addr().unwrap().port(),
            way: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            running: AtomicI64::new(0),
            running_max: AtomicI64::new(0),
            ended: AtomicU64::new(0),
            complaints: Mutex::default(),
            last_body: Mutex::default(),
            refused: Mutex::default(),
            twist: Mutex::default(),
            pace_us: AtomicU64::new(0),
            serving: Mutex::default(),
        });
        let serves = server.clone();
        *server.serving.lock() = Some(tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                serves.connections.fetch_add(1, SeqCst);
                let server = serves.clone();
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    while server.exchange(&mut connection).await.is_ok_and(|goes_on| goes_on) {}
                });
            }
        }));
        server
    }

    fn twisted(&self, path: &str, text: String) -> String {
        let twist = self.twist.lock().clone();
        match twist {
            Some(twist) => twist(path, text),
            None => text,
        }
    }

    /// Refuses this prompt from now on.
    pub fn refuse_prompt(&self, prompt: &str) {
        *self.refused.lock() = Some(prompt.to_owned());
    }

    async fn refuse(&self, connection: &mut BufReader<TcpStream>, why: &str) -> std::io::Result<bool> {
        self.ended.fetch_sub(1, SeqCst); // It never reached the model: the end of it is no run's.
        let text = json!({"error": why, "error_type": "validation"}).to_string();
        let head = format!("HTTP/1.1 400 X\r\ncontent-length: {}\r\n\r\n", text.len());
        connection.get_mut().write_all((head + &text).as_bytes()).await?;
        Ok(true)
    }

    pub fn stop(&self) {
        self.serving.lock().take().unwrap().abort();
    }

    async fn exchange(&self, connection: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
        let (mut first, mut length) = (String::new(), 0);
        if connection.read_line(&mut first).await? == 0 {
            return Ok(false);
        }
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
        let path = first.split(' ').nth(1).unwrap_or_default();
        if path == self.kind.stream_path() {
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            return self.run(connection, body).await;
        }
        if let Some(answer) = self.vectors(path, &body) {
            let answer = self.twisted(path, answer);
            let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", answer.len());
            connection.get_mut().write_all((head + &answer).as_bytes()).await?;
            return Ok(true);
        }
        let (status, text) = self.about(path);
        let text = self.twisted(path, text);
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", text.len());
        connection.get_mut().write_all((head + &text).as_bytes()).await?;
        Ok(true)
    }

    /// Embeddings and rankings, of engines that have them; results come in another order than the inputs.
    fn vectors(&self, path: &str, body: &[u8]) -> Option<String> {
        if matches!(self.kind, Kind::Tgi | Kind::Triton) || !["/v1/embeddings", "/v1/rerank"].contains(&path) {
            return None;
        }
        let body: Value = serde_json::from_slice(body).ok()?;
        let wanted: &[&str] = match path {
            "/v1/embeddings" => &["encoding_format", "input", "model"],
            _ => &["documents", "model", "query"],
        };
        let fields: Vec<&String> = body.as_object()?.keys().collect();
        if fields != wanted {
            self.complaints.lock().push(format!("{path}: {body}"));
        }
        let texts = body.get("input").or(body.get("documents"))?.as_array()?.clone();
        let value = |text: &Value| text.as_str().unwrap().len() as f64 / 8.0;
        let results = texts.iter().enumerate().rev();
        Some(match path {
            "/v1/embeddings" => {
                let data: Vec<Value> =
                    results.map(|(index, text)| json!({"index": index, "embedding": [value(text), 0.5]})).collect();
                json!({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).to_string()
            }
            _ => {
                let ranked: Vec<Value> =
                    results.map(|(index, text)| json!({"index": index, "relevance_score": value(text)})).collect();
                json!({"results": ranked, "usage": {"total_tokens": 9}}).to_string()
            }
        })
    }

    /// What it says of itself.
    fn about(&self, path: &str) -> (u16, String) {
        let (running, ended) = (self.running.load(SeqCst), self.ended.load(SeqCst));
        let tensor = |name: &str| json!({"name": name, "datatype": "BYTES", "shape": [1]});
        let inputs = [
            "text_input",
            "max_tokens",
            "random_seed",
            "stream",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "stop_words",
        ];
        let json = match (self.kind, path) {
            (Kind::LlamaCpp | Kind::Vllm | Kind::Tgi, "/health") => json!({"status": "ok"}),
            (Kind::LlamaCpp, "/props") => {
                json!({"total_slots": 4, "default_generation_settings": {"n_ctx": 4096}, "build_info": "fake"})
            }
            (Kind::LlamaCpp, "/slots") => {
                // It gives its slots out by number, and so do we: the lowest are busy.
                Value::from_iter((0..4).map(|id| json!({"id": id, "is_processing": i64::from(id) < running})))
            }
            (Kind::LlamaCpp, "/v1/models") => json!({"data": [{"meta": {"n_params": 1}}]}),
            (Kind::LlamaCpp, "/metrics") => return (200, format!("llamacpp:requests_processing {running}\n")),
            (Kind::Vllm | Kind::OpenAi, "/v1/models") => {
                json!({"object": "list", "data": [{"id": "fake", "object": "model", "max_model_len": 4096}]})
            }
            (Kind::Vllm | Kind::OpenAi, "/version") => json!({"version": "9.9"}),
            (Kind::OpenAi, "/metrics") => {
                return (
                    200,
                    format!("sglang:num_running_reqs{{model_name=\"fake\"}} {running}.0\nsglang:num_queue_reqs 0.0\n"),
                );
            }
            (Kind::Vllm, "/metrics") => {
                let text = format!(
                    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine=\"0\"}} {running}.0\n\
                     vllm:num_requests_waiting{{engine=\"0\"}} 0.0\nvllm:kv_cache_usage_perc{{engine=\"0\"}} 0.25\n\
                     vllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"1024\"}} 1.0\n"
                );
                return (200, text);
            }
            (Kind::Tgi, "/info") => {
                json!({"model_id": "fake/model", "model_sha": "abc", "model_dtype": "f16", "version": "3.3.6", "max_concurrent_requests": 128, "max_total_tokens": 4096})
            }
            (Kind::Tgi, "/metrics") => return (200, format!("tgi_batch_current_size {running}\ntgi_queue_size 0\n")),
            (Kind::Triton, "/v2/health/ready" | "/v2/models/fake/ready") => json!({}),
            (Kind::Triton, "/v2") => json!({"name": "triton", "version": "2.99"}),
            (Kind::Triton, "/v2/models/fake") => json!({"name": "fake", "versions": ["1"], "platform": "ensemble",
                "inputs": inputs.map(tensor), "outputs": [tensor("text_output")]}),
            (Kind::Triton, "/v2/models/fake/config") => json!({"name": "fake"}),
            (Kind::Triton, "/v2/models/fake/stats") => json!({"model_stats": [{"inference_stats": {
                "success": {"count": ended, "ns": 1}, "fail": {"count": 0, "ns": 0}}}]}),
            _ => return (404, json!({"error": "not found"}).to_string()),
        };
        (200, json.to_string())
    }

    async fn run(&self, connection: &mut BufReader<TcpStream>, body: Value) -> std::io::Result<bool> {
        let counted = self.begin();
        let way = self.way.load(SeqCst);
        if way > 0 {
            let out = connection.get_mut();
            engine_faults::misbehave(self, way, out).await?;
            return Ok(false);
        }
        if let Some(complaint) = self.kind.complaint(&body) {
            self.complaints.lock().push(complaint.clone());
            return self.refuse(connection, &complaint).await;
        }
        *self.last_body.lock() = body.clone();
        let (prompt, most, seed) = match self.kind {
            Kind::LlamaCpp => (&body["prompt"], &body["n_predict"], &body["seed"]),
            Kind::Vllm | Kind::OpenAi => (&body["prompt"], &body["max_tokens"], &body["seed"]),
            Kind::Tgi => (&body["inputs"], &body["parameters"]["max_new_tokens"], &body["parameters"]["seed"]),
            Kind::Triton => (&body["text_input"], &body["max_tokens"], &body["random_seed"]),
        };
        if self.refused.lock().as_deref() == prompt.as_str() {
            return self.refuse(connection, "this prompt is not taken").await;
        }
        let most = most.as_u64().unwrap() as u32;
        let mut hash =
            prompt.as_str().unwrap().bytes().fold(seed.as_u64().unwrap() ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        // The other side's going is seen while we wait, as real servers see it.
        connection
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for index in 1..=most {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let text = format!("wörd{} ", hash >> 54);
            let event = self.twisted("event", self.kind.event(&text, index));
            self.chunk(connection, &event).await?;
            let pace = self.pace_us.load(SeqCst);
            if pace > 0 {
                let mut byte = [0; 1];
                tokio::select! {
                    biased;
                    gone = connection.get_mut().read(&mut byte) => {
                        if !gone.is_ok_and(|read| read > 0) { return Ok(false) }
                    }
                    () = tokio::time::sleep(Duration::from_micros(pace)) => {}
                }
            }
        }
        drop(counted); // By the time that the end is heard, the run has ended.
        let last = self.twisted("last", self.kind.last("length", most));
        if !last.is_empty() {
            self.chunk(connection, &last).await?;
        }
        connection.get_mut().write_all(b"0\r\n\r\n").await?;
        Ok(true)
    }

    fn begin(&self) -> Running<'_> {
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.running_max.fetch_max(running, SeqCst);
        Running(self)
    }

    async fn chunk(&self, connection: &mut BufReader<TcpStream>, text: &str) -> std::io::Result<()> {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        connection.get_mut().write_all(chunk.as_bytes()).await
    }
}
