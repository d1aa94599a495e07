//! What vLLM and every other server of OpenAI's shape have in common: which model is meant, how work is sent, what is
//! counted.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::Workload;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineContext, EngineError, EngineInfo, Finish, Job, TokenOutput};
use crate::gpu::engines::openai_api::{Completion, CompletionDecoder, Model, Models};
use crate::gpu::http::embeddings;
use crate::gpu::http::in_flight::InFlight;
use crate::gpu::http::server::Server;

/// What servers of one kind are called, and what they have.
pub(crate) struct Kind {
    /// What stands before version and digest.
    pub(crate) name: &'static str,
    /// Where it tells its version: the first of these that does.
    pub(crate) versions: &'static [&'static str],
    /// One that does not tell it is not one of this kind.
    pub(crate) tells_version: bool,
    /// It is asked to count the tokens of each event, since one may carry several.
    pub(crate) counts: bool,
}

/// Where Ollama tells its version; it knows the digests of its files, too.
const OLLAMA_VERSION: &str = "/api/version";

/// Ollama's `/api/tags`.
#[derive(Deserialize)]
struct Files {
    models: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    digest: Option<String>,
}

/// A server that speaks OpenAI's words.
pub(crate) struct Completions {
    pub(crate) server: Server,
    pub(crate) runs: InFlight,
    /// The model as the server has it; set by a successful load.
    model: OnceLock<Model>,
    /// The server has been seen to tell the ends of its answers: one without is cut.
    tells_ends: AtomicBool,
    kind: Kind,
}

impl Completions {
    pub(crate) fn new(context: &EngineContext, kind: Kind) -> Self {
        let (server, runs) = (Server::new(context), InFlight::new(context));
        Completions { server, runs, model: OnceLock::new(), tells_ends: AtomicBool::new(false), kind }
    }

    /// Loads: waits until `ready` is answered with success, and finds the pool's model.
    ///
    /// # Errors
    /// [`EngineError`] when it does not start, or does not serve the model.
    pub(crate) async fn load(&self, ready: &str) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start(ready).await?;
        let (model, info) = self.identify().await?;
        self.server.knows(&info);
        let _ = self.model.set(model); // Loaded once.
        Ok(EngineInfo { process_id, ..info })
    }

    /// What the server is, and the pool's model as it knows it.
    async fn identify(&self) -> Result<(Model, EngineInfo), EngineError> {
        let mut version = None;
        for path in self.kind.versions {
            let answer: Option<serde_json::Value> = match self.kind.tells_version {
                true => Some(self.server.ask(path).await?),
                false => self.server.ask_if_any(path).await?,
            };
            let told = answer.as_ref().and_then(|answer| answer.get("version")?.as_str());
            version = told.map(|told| (*path, told.to_owned()));
            if version.is_some() {
                break;
            }
        }
        let models: Models = self.server.ask("/v1/models").await?;
        let model = models.find(&self.server.pool().model, version.is_none())?;
        let digest = match version {
            Some((OLLAMA_VERSION, _)) => self.digest(&model.id).await?,
            _ => None,
        };
        // The server knows no digest of its files, or does not tell it: what it says of the model's content stands in
        // for it. How much room there is for it is not of its content.
        let what = format!("{}\0{:?}\0{digest:?}", model.id, model.root);
        let version = version.map_or("unknown".to_owned(), |(_, version)| version);
        let name = self.kind.name;
        let mut info =
            EngineInfo::new(format!("{name}-{version}"), format!("{name}:{:016x}", xxh3_64(what.as_bytes())));
        info.ctx = model.max_model_len.map(Tokens);
        Ok((model, info))
    }

    /// The digest of the model's files, where the server tells it.
    async fn digest(&self, id: &str) -> Result<Option<String>, EngineError> {
        let files: Option<Files> = self.server.ask_if_any("/api/tags").await?;
        Ok(files.and_then(|files| files.models.into_iter().find(|file| file.name == id)?.digest))
    }

    /// Makes sure, before a run, that the model is still the one that was loaded.
    async fn recognise(&self) -> Result<(), EngineError> {
        self.server.recognise_for_run(async || Ok(self.identify().await?.1)).await
    }

    fn model(&self) -> &str {
        self.model.get().map_or(&self.server.pool().model, |model| &model.id)
    }

    /// Whether the model is still served, and still the one that was loaded.
    ///
    /// # Errors
    /// [`EngineError`] when it is not, or the server does not answer.
    pub(crate) async fn probe(&self) -> Result<(), EngineError> {
        self.server.recognise(async || Ok(self.identify().await?.1)).await?;
        let is_unlisted = self.model.get().is_some_and(|model| model.is_unlisted);
        self.server.ask::<Models>("/v1/models").await?.has(self.model(), is_unlisted)
    }

    /// Runs one task; see [`Engine::generate`](crate::gpu::Engine::generate).
    pub(crate) async fn generate(&self, job: Job<'_>, out: &mut dyn TokenOutput) -> Result<Finish, EngineError> {
        self.recognise().await?;
        let run = self.runs.begin(job.slot);
        let result = match job.request.workload {
            Workload::Completion => {
                let body = Completion::new(self.model(), &job, self.kind.counts);
                self.server
                    .stream(
                        ("/v1/completions", job.trace()),
                        &body,
                        (|| (), std::future::pending),
                        &mut CompletionDecoder::new((&run, &self.tells_ends), job.request.max_tokens),
                        out,
                    )
                    .await
            }
            Workload::Embedding => embeddings::embed(&self.server, "/v1/embeddings", self.model(), &job, out).await,
            Workload::Rerank => embeddings::rerank(&self.server, "/v1/rerank", self.model(), &job, out).await,
        };
        run.conclude(&result);
        result
    }
}
