//! Any server of OpenAI's shape: SGLang, TensorRT-LLM's `trtllm-serve`, Ollama and others, at a URL or from a command.
//!
//! What such a server has beyond `/v1/completions` and `/v1/models` differs, so each of it is asked for and none is
//! relied on. Where it has counters of its runs (SGLang's are known), a stopped run counts as left by them; else when
//! its connection is closed.

use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::gpu::engines::completions::{Completions, Kind};
use crate::gpu::http::prometheus_text;

/// A server of OpenAI's shape.
pub struct OpenAi(Completions);

const KIND: Kind = Kind {
    name: "openai",
    versions: &["/version", "/get_server_info", "/api/version"],
    tells_version: false,
    counts: false,
};

impl OpenAi {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        OpenAi(Completions::new(context, KIND))
    }
}

/// Runs by SGLang's gauges, waiting ones included.
fn busy(text: &str) -> Option<u32> {
    let running = prometheus_text::count(text, "sglang:num_running_reqs")?;
    Some(running.saturating_add(prometheus_text::count(text, "sglang:num_queue_reqs").unwrap_or(0)))
}

impl Engine for OpenAi {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        self.0.load("/v1/models").await
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        self.0.generate(job, out).await
    }

    async fn released(&self, slot: u32) {
        // Without counters the closed connection is all that there is to see.
        self.0.runs.until_stopped(slot, || self.0.server.busy(|text| Some(busy(text).unwrap_or(0)))).await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.0.probe().await?;
        let Some(text) = self.0.server.figures("/metrics").await else { return Ok(Telemetry::default()) };
        let kv_usage = prometheus_text::sum(&text, "sglang:token_usage");
        let kv_tokens = prometheus_text::sum(&text, "sglang:max_total_num_tokens").map(|tokens| tokens as u64);
        Ok(Telemetry { kv_usage, slots_busy: busy(&text), kv_tokens })
    }

    async fn failure(&self) -> EngineError {
        self.0.server.failure().await
    }
}
