//! llama.cpp's own HTTP server, reached at a URL or started from a command.
//!
//! Each of our slots is one of the server's: a run names its slot, and after a stop the server's `/slots` says when
//! that slot really computes nothing any more. Runs that must be repeatable do not reuse a prompt's cache, since a
//! partly cached prompt is evaluated in other batches and may round otherwise.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::sleep;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::Workload;
use crate::core::task::resume::DeterminismClass;
use crate::core::units::Tokens;
use crate::gpu::engine::{
    Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Repeats, Telemetry, TokenOutput,
};
use crate::gpu::engines::llamacpp_api::{
    Completion, CompletionDecoder, HAS_TEXT, Models, OF_THE_FILE, Props, Slot, is_idle,
};
use crate::gpu::http::HttpError;
use crate::gpu::http::embeddings;
use crate::gpu::http::in_flight::{Busy, InFlight};
use crate::gpu::http::prometheus_text;
use crate::gpu::http::refusal::lost;
use crate::gpu::http::server::{ASK_TIMEOUT, Server};

/// Time between the first looks at a slot that is being left.
const SLOT_PERIOD: Duration = Duration::from_millis(5);
/// Looks after which a slot that is still busy is given time. The server notices that a client has left only when it
/// has had no result of any request for one second, and each look is a request.
const QUICK_LOOKS: u32 = 20;
/// Time between the looks behind those: a second for the server, and some for the batch that it is at.
const PATIENT_PERIOD: Duration = Duration::from_millis(1_500);
/// Idle looks in a row at the slot of a run that was left before its answer had begun: the server may still have had to
/// take the request up. 50 ms, some ten times what it needs for that.
const IDLE_LOOKS_UNANSWERED: u32 = 10;
/// Shortest time between two looks at the progress of a prompt, and the share of the idle timeout that it is else.
const PROGRESS_PERIOD_MIN: Duration = Duration::from_millis(1_250);
const PROGRESS_SHARE: u32 = 4;

/// A llama.cpp server.
pub struct LlamaCpp {
    server: Server,
    /// Slots whose run has not been answered yet, by number: the server may begin it after we have left.
    unanswered: Vec<AtomicBool>,
    /// Runs that are no completions: the server takes a slot of its own choice for them.
    elsewhere: InFlight,
    /// Completions that run now.
    completions: AtomicU32,
    /// Slots that are being left now. Meanwhile the server is not asked for anything that is not needed.
    leaving: AtomicU32,
    /// Tokens that each slot's context has; 0 before a load.
    ctx: AtomicU32,
    /// The server has said that its slots share one context.
    shares_context: AtomicBool,
}

impl LlamaCpp {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        let unanswered = (0..context.pool.slots).map(|_| AtomicBool::new(false)).collect();
        LlamaCpp {
            server: Server::new(context),
            unanswered,
            elsewhere: InFlight::new(context),
            completions: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
            ctx: AtomicU32::new(0),
            shares_context: AtomicBool::new(false),
        }
    }

    /// What the server is, and its slots.
    async fn identify(&self) -> Result<(EngineInfo, u32), EngineError> {
        let props: Props = self.server.ask("/props").await?;
        if props.role.as_deref() == Some("router") {
            let text = "the server is a router of several models; a pool needs a server of its own: start one with --model, or give the url of one";
            return Err(EngineError::Preload(text.into()));
        }
        let missing = |what: &str| EngineError::Garbled(format!("/props has no {what}").into());
        let slots = props.total_slots.ok_or_else(|| missing("total_slots"))?;
        let settings = props.default_generation_settings.ok_or_else(|| missing("default_generation_settings"))?;
        let models: Models = self.server.ask("/v1/models").await?;
        let model = models.data.into_iter().next();
        let (id, mut meta) = model.map(|model| (model.id, model.meta.unwrap_or_default())).unwrap_or_default();
        meta.retain(|name, _| OF_THE_FILE.contains(&name.as_str()));
        // The server knows no digest of its file: its name, what it is made of, and its template stand in for it.
        let meta = serde_json::Value::Object(meta);
        let what = format!("{id}\0{}\0{}\0{meta}", props.model_path, props.chat_template);
        let mut info = EngineInfo::new(props.build_info, format!("llamacpp:{:016x}", xxh3_64(what.as_bytes())));
        info.ctx = Some(Tokens(settings.n_ctx));
        // Its batches are as large as what runs beside, and round by their size.
        info.repeats = Repeats::UpTo(DeterminismClass::SingleSlot);
        Ok((info, slots))
    }

    async fn load(&self) -> Result<EngineInfo, EngineError> {
        let (info, slots) = self.identify().await?;
        let wanted = self.server.context.slots;
        if slots < wanted {
            let text = format!("the server has {slots} slots, the pool is configured for {wanted}");
            return Err(EngineError::Preload(text.into()));
        }
        // Without it nobody could say when a cancelled run has really ended.
        self.server.client()?.get("/slots", ASK_TIMEOUT).await.map_err(|error| {
            EngineError::Preload(format!("/slots: {error}; start the server with its slots endpoint enabled").into())
        })?;
        self.server.knows(&info);
        self.ctx.store(info.ctx.map_or(0, |ctx| ctx.0), Relaxed);
        Ok(info)
    }

    /// Makes sure, before a run, that the server is still the one that was loaded.
    async fn recognise(&self) -> Result<(), EngineError> {
        self.server.recognise_for_run(async || Ok(self.identify().await?.0)).await
    }

    /// Returns with the next sign that this slot's run goes on, which shows nothing yet: its prompt is evaluated
    /// further. While text comes nobody is asked.
    async fn progress(&self, slot: u32, last: &AtomicU64) {
        let idle = Duration::from_millis(self.server.pool().timeouts.idle_ms);
        loop {
            sleep((idle / PROGRESS_SHARE).max(PROGRESS_PERIOD_MIN)).await;
            if last.load(Relaxed) == HAS_TEXT {
                return std::future::pending().await; // From here on text is the sign of life.
            }
            let Ok(client) = self.server.client() else { continue };
            let Ok(body) = client.get("/slots", ASK_TIMEOUT).await else { continue };
            let slots: Vec<Slot> = serde_json::from_slice(&body).unwrap_or_default();
            let Some(slot) = slots.into_iter().find(|known| known.id == slot && known.is_processing) else { continue };
            let decoded = slot.next_token.pointer("/0/n_decoded").or_else(|| slot.next_token.get("n_decoded"));
            let done = slot.n_prompt_tokens_processed + decoded.and_then(serde_json::Value::as_u64).unwrap_or(0);
            let before = last.fetch_max(done, Relaxed);
            if done > before {
                return;
            }
        }
    }

    /// The context that all slots share is full: with what is known of it.
    fn full(&self, error: EngineError) -> EngineError {
        let EngineError::ContextFull { said, .. } = error else { return error };
        self.shares_context.store(true, Relaxed);
        EngineError::ContextFull { said, tokens: self.shared_tokens() }
    }

    /// Tokens that all slots have together, where they share one context: each is told to have all of it.
    fn shared_tokens(&self) -> Option<u64> {
        let tokens = u64::from(self.ctx.load(Relaxed));
        (self.shares_context.load(Relaxed) && tokens > 0).then_some(tokens)
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
                busy.map_or(Busy::Unknown, |busy| Busy::InFlight(busy.saturating_sub(completions)))
            }
            Err(HttpError::Connect(_)) => Busy::Gone,
            Err(_) => Busy::Unknown,
        }
    }
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

impl Engine for LlamaCpp {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start("/health").await?;
        Ok(EngineInfo { process_id, ..self.load().await? })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        self.recognise().await?;
        let model = &self.server.pool().model;
        if job.request.workload != Workload::Completion {
            let run = self.elsewhere.begin(job.slot);
            let result = match job.request.workload {
                Workload::Rerank => embeddings::rerank(&self.server, "/v1/rerank", model, &job, out).await,
                _ => embeddings::embed(&self.server, "/v1/embeddings", model, &job, out).await,
            };
            run.conclude(&result);
            return result;
        }
        let _counted = Counted::new(&self.completions);
        let unanswered = &self.unanswered[job.slot as usize];
        unanswered.store(true, Relaxed);
        let answered = || unanswered.store(false, Relaxed);
        let progress = AtomicU64::new(0);
        let (mut reading, body) = (CompletionDecoder { progress: Some(&progress) }, Completion::new(&job));
        // In a box: it is polled now and then, and would make every run larger.
        let signs = (answered, || Box::pin(self.progress(job.slot, &progress)));
        let result = self.server.stream(("/completion", job.trace()), &body, signs, &mut reading, out).await;
        result.map_err(|error| self.full(error))
    }

    async fn released(&self, slot: u32) {
        let Ok(client) = self.server.client() else { return };
        let _leaving = Counted::new(&self.leaving);
        self.elsewhere.until_stopped(slot, || self.busy_elsewhere()).await;
        let unanswered = self.unanswered[slot as usize].swap(false, Relaxed);
        let mut looks_left = if unanswered { IDLE_LOOKS_UNANSWERED } else { 1 };
        let mut quick_left = QUICK_LOOKS;
        while looks_left > 0 {
            match client.get("/slots", ASK_TIMEOUT).await.map(|body| is_idle(&body, slot)) {
                Ok(true) => looks_left -= 1,
                Err(HttpError::Connect(_)) => return, // It is gone, and computes nothing anywhere.
                // Busy, or not answering because it is: it looks at its slots between two batches only.
                Ok(false) | Err(_) => quick_left = quick_left.saturating_sub(1),
            }
            if looks_left > 0 {
                sleep(if quick_left > 0 { SLOT_PERIOD } else { PATIENT_PERIOD }).await;
            }
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        // `/health` is answered beside the computation, `/metrics` only between two batches, and by servers that were
        // told to have it: the one says whether the server lives, the other adds figures when it can.
        self.server.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        self.server.compare(self.identify().await.map(|(info, _)| info))?;
        let unknown = Telemetry { kv_tokens: self.shared_tokens(), ..Telemetry::default() };
        if self.leaving.load(Relaxed) > 0 {
            return Ok(unknown); // The question would keep the server from noticing that somebody has left.
        }
        let Some(text) = self.server.figures("/metrics").await else { return Ok(unknown) };
        let slots_busy = prometheus_text::count(&text, "llamacpp:requests_processing");
        let kv_usage = prometheus_text::sum(&text, "llamacpp:kv_cache_usage_ratio"); // Of older builds.
        Ok(Telemetry { kv_usage, slots_busy, ..unknown })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}
