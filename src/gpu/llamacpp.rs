//! llama.cpp's own HTTP server, reached at a URL or started from a command.
//!
//! Each of our slots is one of the server's: a run names its slot, and after a stop the server's `/slots` says when that
//! slot really computes nothing any more. Runs that must be repeatable do not reuse a prompt's cache, since a partly
//! cached prompt is evaluated in other batches and may round otherwise.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::{Determinism, FinishReason, KvHint, Workload};
use crate::core::units::Tokens;
use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::gpu::figures;
use crate::gpu::http::HttpError;
use crate::gpu::runs::{Busy, Runs};
use crate::gpu::server::{ASK_TIMEOUT, Reading, Server, lost, refusal};
use crate::gpu::vectors;

/// Time between two looks at a slot that is being left.
const SLOT_PERIOD: Duration = Duration::from_millis(5);
/// Idle looks in a row at the slot of a run that was left before its answer had begun: the server may still have had to
/// take the request up. 50 ms, some ten times what it needs for that.
const IDLE_LOOKS_UNANSWERED: u32 = 10;

/// A llama.cpp server.
pub struct LlamaCpp {
    server: Server,
    /// Slots whose run has not been answered yet, by number: the server may begin it after we have left.
    unanswered: Vec<AtomicBool>,
    /// Runs that are no completions: the server takes a slot of its own choice for them.
    elsewhere: Runs,
    /// Completions that run now.
    completions: AtomicU32,
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
struct Piece<'a> {
    #[serde(default, borrow)]
    content: Cow<'a, str>,
    #[serde(default)]
    stop: bool,
    #[serde(default, borrow)]
    stop_type: Cow<'a, str>,
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
        LlamaCpp {
            server: Server::new(context),
            unanswered,
            elsewhere: Runs::new(context),
            completions: AtomicU32::new(0),
        }
    }

    async fn identify(&self) -> Result<EngineInfo, EngineError> {
        let props: Props = self.server.ask("/props").await?;
        if props.total_slots < self.server.context.slots {
            let (have, want) = (props.total_slots, self.server.context.slots);
            return Err(EngineError::Preload(format!(
                "the server has {have} slots, the pool is configured for {want}"
            )));
        }
        // Without it nobody could say when a cancelled run has really ended.
        self.server.client()?.get("/slots", ASK_TIMEOUT).await.map_err(|error| {
            EngineError::Preload(format!("/slots: {error}; start the server with its slots endpoint enabled"))
        })?;
        // The server knows no digest of its file: what the file is made of stands in for it.
        let models: Models = self.server.ask("/v1/models").await?;
        let meta = models.data.into_iter().next().and_then(|model| model.meta).unwrap_or_default();
        let model_digest = format!("llamacpp:{:016x}", xxh3_64(meta.to_string().as_bytes()));
        let mut info = EngineInfo::new(props.build_info, model_digest);
        info.ctx = Some(Tokens(props.default_generation_settings.n_ctx));
        Ok(info)
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

impl LlamaCpp {
    /// Slots of the server that compute beyond those of our completions, which it takes as they are told.
    async fn busy_elsewhere(&self) -> Busy {
        let Ok(client) = self.server.client() else { return Busy::Gone };
        match client.get("/slots", ASK_TIMEOUT).await {
            Ok(body) => {
                let slots: Option<Vec<Slot>> = serde_json::from_slice(&body).ok();
                let busy = slots.map(|slots| slots.iter().filter(|slot| slot.is_processing).count() as u32);
                let completions = self.completions.load(Relaxed);
                busy.map_or(Busy::Unknown, |busy| Busy::Runs(busy.saturating_sub(completions)))
            }
            Err(HttpError::Connect(_)) => Busy::Gone,
            Err(_) => Busy::Unknown,
        }
    }
}

/// Whether the server says that this slot computes nothing.
fn is_idle(slots: &[u8], slot: u32) -> bool {
    let slots: Option<Vec<Slot>> = serde_json::from_slice(slots).ok();
    slots.is_some_and(|slots| slots.iter().all(|known| known.id != slot || !known.is_processing))
}

/// Counts a run while it lasts.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Reads one streamed completion.
pub(super) struct Completing;

impl Reading for Completing {
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError> {
        let piece: Piece<'_> = serde_json::from_slice(data).map_err(|error| EngineError::Garbled(error.to_string()))?;
        if let Some(error) = piece.error {
            let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(refusal(status, &error.message));
        }
        out.push(&piece.content)?;
        if !piece.stop {
            return Ok(None);
        }
        let reason = if piece.stop_type == "limit" { FinishReason::Length } else { FinishReason::Stop };
        Ok(Some(Finish { reason, tokens_in: piece.tokens_evaluated.map(Tokens) }))
    }
}

impl Engine for LlamaCpp {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start("/health").await?;
        Ok(EngineInfo { process_id, ..self.identify().await? })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let model = &self.server.pool().model;
        if job.request.workload != Workload::Completion {
            let run = self.elsewhere.begin(job.slot);
            let result = match job.request.workload {
                Workload::Rerank => vectors::rerank(&self.server, "/v1/rerank", model, &job, out).await,
                _ => vectors::embed(&self.server, "/v1/embeddings", model, &job, out).await,
            };
            run.conclude(&result);
            return result;
        }
        let _counted = Counted::new(&self.completions);
        let unanswered = &self.unanswered[job.slot as usize];
        unanswered.store(true, Relaxed);
        let answered = || unanswered.store(false, Relaxed);
        self.server.stream(("/completion", job.trace()), &Self::body(&job), answered, &mut Completing, out).await
    }

    async fn released(&self, slot: u32) {
        let Ok(client) = self.server.client() else { return };
        self.elsewhere.until_left(slot, || self.busy_elsewhere()).await;
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
        self.server.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        let Some(text) = self.server.figures("/metrics").await else { return Ok(Telemetry::default()) };
        let slots_busy = figures::count(&text, "llamacpp:requests_processing");
        let kv_usage = figures::sum(&text, "llamacpp:kv_cache_usage_ratio");
        Ok(Telemetry { kv_usage, slots_busy, kv_tokens: None })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::engine::Pieces;

    fn read(event: &str) -> (String, Result<Option<Finish>, EngineError>) {
        let mut out = Pieces::default();
        let result = Completing.event(event.as_bytes(), &mut out);
        (out.0.concat(), result)
    }

    #[test]
    fn each_event_of_the_server_is_understood() {
        let text = r#"{"index":0,"content":" think","tokens":[348],"stop":false,"id_slot":-1,"tokens_predicted":2}"#;
        assert_eq!(read(text), (" think".into(), Ok(None)));
        let last = r#"{"content":"","stop":true,"tokens_evaluated":15,"stop_type":"limit"}"#;
        let finish = Finish { reason: FinishReason::Length, tokens_in: Some(Tokens(15)) };
        assert_eq!(read(last), (String::new(), Ok(Some(finish))));
    }

    #[test]
    fn its_errors_are_told_apart() {
        let client = r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#;
        assert!(matches!(read(client).1, Err(EngineError::Refused(text)) if text == "too long"));
        let server = r#"{"error":{"code":500,"message":"oops"}}"#;
        assert!(matches!(read(server).1, Err(EngineError::Lost(_))));
        assert!(matches!(read("{]").1, Err(EngineError::Garbled(_))));
    }

    #[test]
    fn whatever_a_llamacpp_server_says_is_text_or_an_error() {
        crate::gpu::fuzz::feed(|read| read(&mut Completing));
    }
}
