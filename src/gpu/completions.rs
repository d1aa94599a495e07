//! What vLLM and every other server of OpenAI's shape have in common: which model is meant, how work is sent, what is counted.

use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::Workload;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineContext, EngineError, EngineInfo, Finish, Job, TokenOutput};
use crate::gpu::openai_api::{Completing, Completion, Models};
use crate::gpu::runs::Runs;
use crate::gpu::server::Server;
use crate::gpu::vectors;

/// A server that speaks OpenAI's words.
pub(crate) struct Completions {
    pub(crate) server: Server,
    pub(crate) runs: Runs,
    /// The model's name as the server has it; set by a successful load.
    model: OnceLock<String>,
    /// It is asked to count the tokens of each event, since one may carry several.
    counts: bool,
}

impl Completions {
    pub(crate) fn new(context: &EngineContext, counts: bool) -> Self {
        Completions { server: Server::new(context), runs: Runs::new(context), model: OnceLock::new(), counts }
    }

    /// Finds the pool's model, and says what the server is; `kind` stands before its digest.
    ///
    /// # Errors
    /// [`EngineError`] when it does not serve the model.
    pub(crate) async fn identify(&self, kind: &str, version: String) -> Result<EngineInfo, EngineError> {
        let models: Models = self.server.ask("/v1/models").await?;
        let model = models.find(&self.server.pool().model)?;
        // The server knows no digest of its files: what it says of the model stands in for it.
        let what = format!("{}\0{:?}\0{:?}", model.id, model.root, model.max_model_len);
        let mut info = EngineInfo::new(version, format!("{kind}:{:016x}", xxh3_64(what.as_bytes())));
        info.ctx = model.max_model_len.map(Tokens);
        let _ = self.model.set(model.id); // Loaded once.
        Ok(info)
    }

    fn model(&self) -> &str {
        self.model.get().map_or(&self.server.pool().model, |model| model)
    }

    /// Whether the model is still served.
    ///
    /// # Errors
    /// [`EngineError`] when it is not, or the server does not answer.
    pub(crate) async fn probe(&self) -> Result<(), EngineError> {
        self.server.ask::<Models>("/v1/models").await?.has(self.model())
    }

    /// Runs one task; see [`Engine::generate`](crate::gpu::Engine::generate).
    pub(crate) async fn generate(&self, job: Job<'_>, out: &mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let run = self.runs.begin(job.slot);
        let result = match job.request.workload {
            Workload::Completion => {
                let body = Completion::new(self.model(), &job, self.counts);
                self.server
                    .stream(("/v1/completions", job.trace()), &body, || (), &mut Completing::new(&run), out)
                    .await
            }
            Workload::Embedding => vectors::embed(&self.server, "/v1/embeddings", self.model(), &job, out).await,
            Workload::Rerank => vectors::rerank(&self.server, "/v1/rerank", self.model(), &job, out).await,
        };
        run.conclude(&result);
        result
    }
}
