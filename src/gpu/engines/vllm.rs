//! vLLM's API server, reached at a URL or started from a command.
//!
//! It has no numbered slots: a stopped run counts as left when the engine's own gauges count no more runs than ours. An
//! event may carry several tokens, so it is asked to count them. Chat templates play no part: prompts go to
//! `/v1/completions` as they are.

use crate::core::task::resume::DeterminismClass;
use crate::gpu::engine::{
    Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Repeats, Telemetry, TokenOutput,
};
use crate::gpu::engines::completions::{Completions, Kind};
use crate::gpu::http::in_flight::Busy;
use crate::gpu::http::prometheus_text;
use crate::gpu::http::refusal::lost;
use crate::gpu::http::server::ASK_TIMEOUT;

/// A vLLM server.
pub struct Vllm(Completions);

const KIND: Kind = Kind { name: "vllm", versions: &["/version"], tells_version: true, counts: true };

impl Vllm {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        Vllm(Completions::new(context, KIND))
    }
}

/// Runs by its own gauges, waiting ones included.
fn busy(text: &str) -> Option<u32> {
    let running = prometheus_text::count(text, "vllm:num_requests_running")?;
    Some(running.saturating_add(prometheus_text::count(text, "vllm:num_requests_waiting").unwrap_or(0)))
}

impl Engine for Vllm {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let info = self.0.load("/health").await?;
        // Without them nobody could say when a cancelled run has really ended.
        match self.0.server.busy(busy).await {
            Busy::InFlight(_) => Ok(EngineInfo { repeats: Repeats::UpTo(DeterminismClass::BatchInvariant), ..info }),
            _ => Err(EngineError::Preload("/metrics has no vllm:num_requests_running; leave its metrics on".into())),
        }
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        self.0.generate(job, out).await
    }

    async fn released(&self, slot: u32) {
        self.0.runs.until_stopped(slot, || self.0.server.busy(busy)).await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.0.server.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        self.0.probe().await?;
        let Some(text) = self.0.server.figures("/metrics").await else { return Ok(Telemetry::default()) };
        let config = |name| prometheus_text::label(&text, "vllm:cache_config_info", name)?.parse::<u64>().ok();
        let kv_tokens = config("kv_cache_size_tokens")
            .or_else(|| Some(config("num_gpu_blocks")?.saturating_mul(config("block_size")?)));
        let kv_usage = prometheus_text::sum(&text, "vllm:kv_cache_usage_perc")
            .or_else(|| prometheus_text::sum(&text, "vllm:gpu_cache_usage_perc"));
        Ok(Telemetry { kv_usage, slots_busy: busy(&text), kv_tokens })
    }

    async fn failure(&self) -> EngineError {
        self.0.server.failure().await
    }
}
