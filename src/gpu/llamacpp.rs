//! llama.cpp's own HTTP server, reached at a URL or started from a command.
//!
//! Each of our slots is one of the server's: a run names its slot, and after a stop the server's `/slots` says when that
//! slot really computes nothing any more. Runs that must be repeatable do not reuse a prompt's cache, since a partly
//! cached prompt is evaluated in other batches and may round otherwise.

use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::CTX_DEFAULT;
use crate::core::task::{Determinism, FinishReason, KvHint};
use crate::core::units::Tokens;
use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::gpu::http::{HttpClient, HttpError, whole};
use crate::gpu::process::EngineProcess;
use crate::gpu::sse::SseParser;

/// How long the last process may take to be gone: a killed one must give its device's memory back first.
const LAST_END_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two looks at a server that is loading.
const HEALTH_PERIOD: Duration = Duration::from_millis(50);
/// Time between two looks at a slot that is being left.
const SLOT_PERIOD: Duration = Duration::from_millis(5);
/// How long figures may take; less than a probe has.
const METRICS_TIMEOUT: Duration = Duration::from_millis(500);
/// Idle looks in a row at the slot of a run that was left before its answer had begun: the server may still have had to
/// take the request up. 50 ms, some ten times what it needs for that.
const IDLE_LOOKS_UNANSWERED: u32 = 10;
/// How long a small question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A llama.cpp server.
pub struct LlamaCpp {
    context: EngineContext,
    /// Set by a successful start.
    client: OnceLock<HttpClient>,
    /// The process that we started; `None` for a server at a URL. An async lock, since waiting for its end holds it.
    process: Mutex<Option<EngineProcess>>,
    /// Slots whose run has not been answered yet, by number: the server may begin it after we have left.
    unanswered: Vec<AtomicBool>,
}

/// `/props`, as far as it matters.
#[derive(Deserialize)]
struct Props {
    total_slots: u32,
    build_info: String,
    default_generation_settings: Settings,
}

#[derive(Deserialize)]
struct Settings {
    n_ctx: u32,
}

/// One entry of `/slots`.
#[derive(Deserialize)]
struct Slot {
    id: u32,
    is_processing: bool,
}

/// `/v1/models`, as far as it matters: what the loaded file is made of.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    meta: Option<serde_json::Value>,
}

/// What we send to `/completion`.
#[derive(Serialize)]
struct Completion<'a> {
    prompt: &'a str,
    n_predict: u32,
    seed: u64,
    stream: bool,
    cache_prompt: bool,
    id_slot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

/// One event of the answer.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    content: String,
    #[serde(default)]
    stop: bool,
    #[serde(default)]
    stop_type: String,
    tokens_evaluated: Option<u32>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl LlamaCpp {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        let unanswered = (0..context.pool.slots).map(|_| AtomicBool::new(false)).collect();
        LlamaCpp { context: context.clone(), client: OnceLock::new(), process: Mutex::new(None), unanswered }
    }

    fn client(&self) -> Result<&HttpClient, EngineError> {
        self.client.get().ok_or_else(|| EngineError::Unreachable("the server has not been started".into()))
    }

    /// Where the server listens, and the process if we start it.
    fn launch(&self) -> Result<(String, Option<EngineProcess>), EngineError> {
        let pool = &self.context.pool;
        let index = self.context.replica.index.to_string();
        if let Some(url) = &pool.url {
            return Ok((url.replace("{index}", &index), None));
        }
        let command = pool.command.as_ref().ok_or_else(|| EngineError::Preload("neither url nor command".into()))?;
        let port = free_port().map_err(|error| EngineError::Preload(format!("no free port: {error}")))?;
        let values = [
            ("{port}", port.to_string()),
            ("{slots}", pool.slots.to_string()),
            ("{ctx}", u64::from(pool.ctx.unwrap_or(CTX_DEFAULT)).saturating_mul(pool.slots.into()).to_string()),
            ("{model}", pool.model.clone()),
            ("{index}", index),
        ];
        let fill = |part: &String| values.iter().fold(part.clone(), |part, (name, value)| part.replace(name, value));
        let command: Vec<String> = command.iter().map(fill).collect();
        let process = EngineProcess::start(&command, &self.context)
            .map_err(|error| EngineError::Preload(format!("{:?} cannot be started: {error}", command[0])))?;
        Ok((format!("http://127.0.0.1:{port}"), Some(process)))
    }

    async fn identify(&self, client: &HttpClient) -> Result<EngineInfo, EngineError> {
        let props: Props = ask(client, "/props").await?;
        if props.total_slots < self.context.pool.slots {
            let (have, want) = (props.total_slots, self.context.pool.slots);
            return Err(EngineError::Preload(format!(
                "the server has {have} slots, the pool is configured for {want}"
            )));
        }
        // Without it nobody could say when a cancelled run has really ended.
        client.get("/slots", ASK_TIMEOUT).await.map_err(|error| {
            EngineError::Preload(format!("/slots: {error}; start the server with its slots endpoint enabled"))
        })?;
        // The server knows no digest of its file: what the file is made of stands in for it.
        let models: Models = ask(client, "/v1/models").await?;
        let meta = models.data.into_iter().next().and_then(|model| model.meta).unwrap_or_default();
        let model_digest = format!("llamacpp:{:016x}", xxh3_64(meta.to_string().as_bytes()));
        let ctx = Some(Tokens(props.default_generation_settings.n_ctx));
        Ok(EngineInfo { engine_version: props.build_info, model_digest, ctx, process_id: None })
    }

    fn body<'a>(job: &'a Job<'a>) -> Completion<'a> {
        let request = job.request;
        let repeatable = request.determinism == Determinism::Strict || request.kv_hint == KvHint::Cold;
        Completion {
            prompt: &request.prompt,
            n_predict: request.max_tokens.0,
            seed: job.seed,
            stream: true,
            cache_prompt: !repeatable,
            id_slot: job.slot,
            temperature: request.parameters.temperature,
            top_p: request.parameters.top_p,
            top_k: request.parameters.top_k,
            min_p: request.parameters.min_p,
            repeat_penalty: request.parameters.repeat_penalty,
            stop: &request.parameters.stop,
        }
    }
}

/// A port that was free a moment ago. Whoever takes it in between makes the start fail, and the next start takes another.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

async fn ask<T: serde::de::DeserializeOwned>(client: &HttpClient, path: &str) -> Result<T, EngineError> {
    let body = client.get(path, ASK_TIMEOUT).await.map_err(lost)?;
    serde_json::from_slice(&body).map_err(|error| EngineError::Garbled(format!("{path}: {error}")))
}

fn lost(error: HttpError) -> EngineError {
    match error {
        HttpError::Connect(text) => EngineError::Unreachable(text),
        HttpError::Broken(text) | HttpError::Timeout(text) => EngineError::Lost(text),
        HttpError::Status { status: StatusCode::BAD_REQUEST, body } => EngineError::Refused(body),
        // Busy or still loading: it has not begun.
        HttpError::Status { status: StatusCode::SERVICE_UNAVAILABLE, body } => EngineError::Unreachable(body),
        HttpError::Status { status, body } => EngineError::Lost(format!("status {status}: {body}")),
    }
}

/// Whether the server says that this slot computes nothing.
fn is_idle(slots: &[u8], slot: u32) -> bool {
    let slots: Option<Vec<Slot>> = serde_json::from_slice(slots).ok();
    slots.is_some_and(|slots| slots.iter().all(|known| known.id != slot || !known.is_processing))
}

/// What one event of the answer amounts to.
enum Step {
    Text(String),
    Done { text: String, finish: Finish },
}

fn step(data: &[u8]) -> Result<Step, EngineError> {
    let piece: Piece = serde_json::from_slice(data).map_err(|error| EngineError::Garbled(error.to_string()))?;
    if let Some(error) = piece.error {
        return Err(match error.code {
            400 => EngineError::Refused(error.message),
            _ => EngineError::Lost(error.message),
        });
    }
    if !piece.stop {
        return Ok(Step::Text(piece.content));
    }
    let reason = if piece.stop_type == "limit" { FinishReason::Length } else { FinishReason::Stop };
    Ok(Step::Done { text: piece.content, finish: Finish { reason, tokens_in: piece.tokens_evaluated.map(Tokens) } })
}

impl Engine for LlamaCpp {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        self.context.site.until_clear(LAST_END_TIMEOUT).await;
        let (base, process) = self.launch()?;
        let client = HttpClient::new(&base);
        let process_id = process.as_ref().and_then(EngineProcess::id);
        let mut place = self.process.lock().await;
        *place = process;
        {
            // One future for all looks: its end takes a moment to be told whole.
            let ended = async {
                match place.as_mut() {
                    Some(process) => process.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(ended);
            while client.get("/health", ASK_TIMEOUT).await.is_err() {
                tokio::select! {
                    biased;
                    ended = &mut ended => return Err(ended),
                    () = sleep(HEALTH_PERIOD) => {}
                }
            }
        }
        drop(place);
        let info = EngineInfo { process_id, ..self.identify(&client).await? };
        self.client.set(client).map_err(|_| EngineError::Preload("loaded twice".into()))?;
        Ok(info)
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let body = serde_json::to_vec(&Self::body(&job)).map_err(|error| EngineError::Refused(error.to_string()))?;
        let unanswered = &self.unanswered[job.slot as usize];
        unanswered.store(true, Relaxed);
        let answer = self.client()?.send(Method::POST, "/completion", &[], body).await.map_err(lost)?;
        unanswered.store(false, Relaxed);
        if !answer.status().is_success() {
            return Err(whole(answer).await.map_or_else(lost, |_| EngineError::Garbled("an empty refusal".into())));
        }
        let mut body = answer.into_body();
        let mut parser = SseParser::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| EngineError::Lost(error.to_string()))?;
            let Ok(bytes) = frame.into_data() else { continue };
            // Several events may come in one piece; the first that ends or fails the run decides.
            let mut steps = Vec::new();
            parser
                .push(&bytes, |data| steps.push(step(data)))
                .map_err(|error| EngineError::Garbled(error.to_string()))?;
            for step in steps {
                match step? {
                    Step::Text(text) => out.push(&text)?,
                    Step::Done { text, finish } => {
                        out.push(&text)?;
                        return Ok(finish);
                    }
                }
            }
        }
        Err(EngineError::Lost("the answer ended without its last event".into()))
    }

    async fn released(&self, slot: u32) {
        let Ok(client) = self.client() else { return };
        let unanswered = self.unanswered[slot as usize].swap(false, Relaxed);
        let mut looks_left = if unanswered { IDLE_LOOKS_UNANSWERED } else { 1 };
        while looks_left > 0 {
            match client.get("/slots", ASK_TIMEOUT).await.map(|body| is_idle(&body, slot)) {
                Ok(true) => looks_left -= 1,
                Err(HttpError::Connect(_)) => return, // It is gone, and computes nothing anywhere.
                // Busy, or not answering because it is: it looks at its slots between two batches only.
                Ok(false) | Err(_) => {}
            }
            if looks_left > 0 {
                sleep(SLOT_PERIOD).await;
            }
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        // `/health` is answered beside the computation, `/metrics` only between two batches, and by servers that were
        // told to have it: the one says whether the server lives, the other adds figures when it can.
        self.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        let Ok(text) = self.client()?.get("/metrics", METRICS_TIMEOUT).await else {
            return Ok(Telemetry::default());
        };
        let text = String::from_utf8_lossy(&text);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse::<f64>().ok())
        };
        let slots_busy = value("llamacpp:requests_processing").map(|busy| busy as u32);
        Ok(Telemetry { kv_usage: value("llamacpp:kv_cache_usage_ratio"), slots_busy })
    }

    async fn failure(&self) -> EngineError {
        let mut place = self.process.lock().await;
        match place.as_mut() {
            Some(process) => process.ended().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_of_the_server_is_understood() {
        let text = br#"{"index":0,"content":" think","tokens":[348],"stop":false,"id_slot":-1,"tokens_predicted":2}"#;
        assert!(matches!(step(text), Ok(Step::Text(text)) if text == " think"));
        let last = br#"{"content":"","stop":true,"tokens_evaluated":15,"stop_type":"limit"}"#;
        let Ok(Step::Done { finish, .. }) = step(last) else { panic!("the last event ends the run") };
        assert_eq!(finish, Finish { reason: FinishReason::Length, tokens_in: Some(Tokens(15)) });
    }

    #[test]
    fn its_errors_are_told_apart() {
        let client = br#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#;
        assert!(matches!(step(client), Err(EngineError::Refused(text)) if text == "too long"));
        let server = br#"{"error":{"code":500,"message":"oops"}}"#;
        assert!(matches!(step(server), Err(EngineError::Lost(_))));
        assert!(matches!(step(b"{]"), Err(EngineError::Garbled(_))));
    }
}
