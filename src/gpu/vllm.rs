//! vLLM's API server, reached at a URL or started from a command.
//!
//! It has no numbered slots: a stopped run counts as left when the engine's own gauges count no more runs than ours. An event may
//! carry several tokens, so it is asked to count them. Chat templates play no part: prompts go to `/v1/completions` as they are.

use std::sync::OnceLock;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::Workload;
use crate::core::units::Tokens;
use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::gpu::figures;
use crate::gpu::http::HttpError;
use crate::gpu::openai_api::{Completing, Completion, Models};
use crate::gpu::runs::{Busy, Runs};
use crate::gpu::server::{ASK_TIMEOUT, FIGURES_TIMEOUT, Server, lost};
use crate::gpu::vectors;

/// A vLLM server.
pub struct Vllm {
    server: Server,
    runs: Runs,
    /// The model's name as the server has it; set by a successful load.
    model: OnceLock<String>,
}

/// `/version`.
#[derive(Deserialize)]
struct Version {
    version: String,
}

impl Vllm {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        Vllm { server: Server::new(context), runs: Runs::new(context), model: OnceLock::new() }
    }

    async fn identify(&self) -> Result<EngineInfo, EngineError> {
        let version: Version = self.server.ask("/version").await?;
        let models: Models = self.server.ask("/v1/models").await?;
        let model = models.find(&self.server.pool().model)?;
        // The server knows no digest of its files: what it says of the model stands in for it.
        let what = format!("{}\0{:?}\0{:?}", model.id, model.root, model.max_model_len);
        let mut info =
            EngineInfo::new(format!("vllm-{}", version.version), format!("vllm:{:016x}", xxh3_64(what.as_bytes())));
        info.ctx = model.max_model_len.map(Tokens);
        let _ = self.model.set(model.id); // Loaded once.
        Ok(info)
    }

    fn model(&self) -> &str {
        self.model.get().map_or(&self.server.pool().model, |model| model)
    }

    async fn busy(&self) -> Busy {
        let Ok(client) = self.server.client() else { return Busy::Gone };
        match client.get("/metrics", FIGURES_TIMEOUT).await {
            Ok(text) => busy(&String::from_utf8_lossy(&text)).map_or(Busy::Unknown, Busy::Runs),
            Err(HttpError::Connect(_)) => Busy::Gone,
            Err(_) => Busy::Unknown,
        }
    }
}

fn busy(text: &str) -> Option<u32> {
    let running = figures::count(text, "vllm:num_requests_running")?;
    Some(running.saturating_add(figures::count(text, "vllm:num_requests_waiting").unwrap_or(0)))
}

impl Engine for Vllm {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start("/health").await?;
        let info = EngineInfo { process_id, ..self.identify().await? };
        // Without them nobody could say when a cancelled run has really ended.
        match self.busy().await {
            Busy::Runs(_) => Ok(info),
            _ => Err(EngineError::Preload("/metrics has no vllm:num_requests_running; leave its metrics on".into())),
        }
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let run = self.runs.begin(job.slot);
        let result = match job.request.workload {
            Workload::Completion => {
                let body = Completion::new(self.model(), &job, true);
                self.server.stream("/v1/completions", &body, || (), &mut Completing::new(&run), out).await
            }
            Workload::Embedding => vectors::embed(&self.server, "/v1/embeddings", self.model(), &job, out).await,
            Workload::Rerank => vectors::rerank(&self.server, "/v1/rerank", self.model(), &job, out).await,
        };
        run.conclude(&result);
        result
    }

    async fn released(&self, slot: u32) {
        self.runs.until_left(slot, || self.busy()).await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.server.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        self.server.ask::<Models>("/v1/models").await?.has(self.model())?;
        let Some(text) = self.server.figures("/metrics").await else { return Ok(Telemetry::default()) };
        let config = |name| figures::label(&text, "vllm:cache_config_info", name)?.parse::<u64>().ok();
        let kv_tokens = config("kv_cache_size_tokens")
            .or_else(|| Some(config("num_gpu_blocks")?.saturating_mul(config("block_size")?)));
        let kv_usage = figures::sum(&text, "vllm:kv_cache_usage_perc")
            .or_else(|| figures::sum(&text, "vllm:gpu_cache_usage_perc"));
        Ok(Telemetry { kv_usage, slots_busy: busy(&text), kv_tokens })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}
