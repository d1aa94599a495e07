//! Any server of OpenAI's shape: SGLang, TensorRT-LLM's `trtllm-serve`, Ollama and others, at a URL or from a command.
//!
//! What such a server has beyond `/v1/completions` and `/v1/models` differs, so each of it is asked for and none is relied on. Where it
//! has counters of its runs (SGLang's are known), a stopped run counts as left by them; else when its connection is closed.

use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::Workload;
use crate::core::units::Tokens;
use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::gpu::figures;
use crate::gpu::http::HttpError;
use crate::gpu::openai_api::{Completing, Completion, Models};
use crate::gpu::runs::{Busy, Runs};
use crate::gpu::server::{FIGURES_TIMEOUT, Server};
use crate::gpu::vectors;

/// Where servers of this shape tell their version, and under which name.
const VERSIONS: [(&str, &str); 3] =
    [("/version", "version"), ("/get_server_info", "version"), ("/api/version", "version")];

/// A server of OpenAI's shape.
pub struct OpenAi {
    server: Server,
    runs: Runs,
    /// The model's name as the server has it; set by a successful load.
    model: OnceLock<String>,
}

impl OpenAi {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        OpenAi { server: Server::new(context), runs: Runs::new(context), model: OnceLock::new() }
    }

    async fn identify(&self) -> Result<EngineInfo, EngineError> {
        let models: Models = self.server.ask("/v1/models").await?;
        let model = models.find(&self.server.pool().model)?;
        let what = format!("{}\0{:?}\0{:?}", model.id, model.root, model.max_model_len);
        let digest = format!("openai:{:016x}", xxh3_64(what.as_bytes()));
        let mut info = EngineInfo::new(self.version().await, digest);
        info.ctx = model.max_model_len.map(Tokens);
        let _ = self.model.set(model.id); // Loaded once.
        Ok(info)
    }

    async fn version(&self) -> String {
        for (path, name) in VERSIONS {
            let answer: Option<serde_json::Value> = self.server.ask(path).await.ok();
            if let Some(version) = answer.as_ref().and_then(|answer| answer.get(name)?.as_str()) {
                return format!("openai-{version}");
            }
        }
        "openai-unknown".into()
    }

    fn model(&self) -> &str {
        self.model.get().map_or(&self.server.pool().model, |model| model)
    }

    async fn busy(&self) -> Busy {
        let Ok(client) = self.server.client() else { return Busy::Gone };
        match client.get("/metrics", FIGURES_TIMEOUT).await {
            // Without counters the closed connection is all that there is to see.
            Ok(text) => Busy::Runs(busy(&String::from_utf8_lossy(&text)).unwrap_or(0)),
            Err(HttpError::Connect(_)) => Busy::Gone,
            Err(HttpError::Status { .. }) => Busy::Runs(0),
            Err(_) => Busy::Unknown,
        }
    }
}

fn busy(text: &str) -> Option<u32> {
    let running = figures::count(text, "sglang:num_running_reqs")?;
    Some(running.saturating_add(figures::count(text, "sglang:num_queue_reqs").unwrap_or(0)))
}

impl Engine for OpenAi {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start("/v1/models").await?;
        Ok(EngineInfo { process_id, ..self.identify().await? })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let run = self.runs.begin(job.slot);
        let result = match job.request.workload {
            Workload::Completion => {
                let body = Completion::new(self.model(), &job, false);
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
        self.server.ask::<Models>("/v1/models").await?.has(self.model())?;
        let Some(text) = self.server.figures("/metrics").await else { return Ok(Telemetry::default()) };
        let kv_usage = figures::sum(&text, "sglang:token_usage");
        let kv_tokens = figures::sum(&text, "sglang:max_total_num_tokens").map(|tokens| tokens as u64);
        Ok(Telemetry { kv_usage, slots_busy: busy(&text), kv_tokens })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}
