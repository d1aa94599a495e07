//! The one seam between the runtime and what infers: a host program brings its own engine by implementing [`Engine`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::config::{ConfigError, PoolConfig, ReplicaConfig};
use crate::core::id::{DeviceMask, PoolId, ReplicaId, TaskId};
use crate::core::task::resume::DeterminismClass;
use crate::core::task::{FinishReason, TaskRequest};
use crate::core::text::line::{Line, Name};
use crate::core::units::Tokens;
use crate::env::Env;
use crate::gpu::dyn_engine::BoxedCall;
pub use crate::gpu::engine_error::{EngineError, Exit, OtherError};

/// All that an engine is told when it is made. One engine is made for each life of a worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineContext {
    /// The worker's place.
    pub replica: ReplicaId,
    /// The devices that it may use, and no others.
    pub mask: DeviceMask,
    /// The pool's configuration.
    pub pool: Arc<PoolConfig>,
    /// Time and chance.
    pub env: Env,
    /// What is still there of earlier engines of this worker.
    pub site: Teardown,
    /// The CPUs that its devices are near to; empty for any.
    pub cpus: Arc<[u32]>,
    /// Slots that it is to have room for: the pool's, or fewer when its device ran out of memory before (ORCH-3039).
    pub slots: u32,
}

impl EngineContext {
    /// What an engine of this pool's first worker is told when nothing is known of it yet, for a host program's own
    /// tests of its engine.
    ///
    /// # Errors
    /// [`ConfigError`] when the pool's id is none, or its first replica names no devices that can be.
    pub fn of(pool: PoolConfig) -> Result<Self, ConfigError> {
        let id = PoolId::parse(&pool.id);
        let id = id.map_err(|error| ConfigError { path: "id".into(), message: error.to_string() })?;
        let mask = pool.replicas.first().map_or_else(|| Ok(DeviceMask::default()), ReplicaConfig::mask)?;
        let (replica, slots) = (ReplicaId { pool: id, index: 0 }, pool.slots);
        let (env, site, cpus) = (Env::real(), Teardown::default(), Arc::default());
        Ok(EngineContext { replica, mask, pool: Arc::new(pool), env, site, cpus, slots })
    }
}

/// What outlives the engines of one worker's place: what they have left that is still ending. Its device may have no
/// room for more.
#[derive(Clone, Default)]
pub struct Teardown {
    ending: Arc<Mutex<Vec<BoxedCall<'static, ()>>>>,
    heard: Arc<Mutex<Option<Line>>>,
}

impl std::fmt::Debug for Teardown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Teardown").field("ending", &self.ending.lock().len()).finish_non_exhaustive()
    }
}

impl Teardown {
    /// Leaves something that is ending; `end` returns when it is gone.
    pub fn leave(&self, end: impl Future<Output = ()> + Send + 'static) {
        self.ending.lock().push(Box::pin(end));
    }

    /// Notes what an engine that is not ready yet was last heard to say, and logs it when that is something new.
    pub fn hear(&self, replica: &ReplicaId, said: impl Into<Line>) {
        let said = said.into();
        let mut heard = self.heard.lock();
        if heard.as_ref() != Some(&said) {
            tracing::warn!(replica_id = %replica, %said, "an engine is not ready yet");
            *heard = Some(said);
        }
    }

    /// It is ready: nothing is to be said of it.
    pub fn hear_nothing(&self) {
        *self.heard.lock() = None;
    }

    /// What an engine that is not ready was last heard to say.
    pub(crate) fn heard(&self) -> Option<Line> {
        self.heard.lock().clone()
    }

    /// Whether all that was left is gone, as of now.
    pub(crate) fn is_clear(&self) -> bool {
        let mut ending = self.ending.lock();
        ending.retain_mut(|end| end.as_mut().now_or_never().is_none());
        ending.is_empty()
    }

    fn next_ending(&self) -> Option<BoxedCall<'static, ()>> {
        self.ending.lock().pop()
    }

    /// Waits until all that was left is gone, or `limit` is over.
    ///
    /// # Cancel safety
    /// What was not gone yet is not waited for again.
    pub async fn until_clear(&self, limit: Duration) {
        let all = async {
            // Until nothing is left: what ends may leave something in turn.
            while let Some(end) = self.next_ending() {
                end.await;
            }
        };
        if timeout(limit, all).await.is_err() {
            tracing::warn!(?limit, "what an earlier engine left is not gone in time");
        }
    }
}

/// What a loaded engine says of itself (ORCH-3032).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Version of the engine, part of the replica set's identity.
    pub engine_version: Name,
    /// Digest of the model, or its best stand-in, part of what makes output repeatable.
    pub model_digest: Name,
    /// Context of one task, when the engine knows better than the configuration.
    pub ctx: Option<Tokens>,
    /// Its process, when the worker started one.
    pub process_id: Option<u32>,
    /// Whether the same seed gives the same tokens, as far as that is known before anything was tried.
    pub repeats: Repeats,
}

/// What is known of an engine's determinism by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It is of this class, by how it is made.
    Always(DeterminismClass),
    /// Runs can show a class up to this one: they are made while the replica is idle.
    UpTo(DeterminismClass),
    /// No run can show it: caches that nobody can see change its batches.
    Unknowable,
}

impl EngineInfo {
    /// An engine in this process, of this version and with this model.
    pub fn new(engine_version: impl Into<Name>, model_digest: impl Into<Name>) -> Self {
        let (engine_version, model_digest) = (engine_version.into(), model_digest.into());
        EngineInfo { engine_version, model_digest, ctx: None, process_id: None, repeats: Repeats::Unknowable }
    }

    /// The same, with what is known of its determinism.
    #[must_use]
    pub fn repeats(mut self, repeats: Repeats) -> Self {
        self.repeats = repeats;
        self
    }
}

/// What an engine measures of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// Share of the KV cache that is used, 0 to 1; `None` when unknown.
    pub kv_usage: Option<f64>,
    /// Slots that compute now, by the engine's own view; `None` when unknown.
    pub slots_busy: Option<u32>,
    /// Tokens that its KV cache holds, of all slots together; `None` when unknown.
    pub kv_tokens: Option<u64>,
}

/// One run of a task, as the engine sees it.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The task, for the engine's logs.
    pub task_id: &'a TaskId,
    /// What was asked for.
    pub request: &'a TaskRequest,
    /// The seed to run with, in `0..=`[`SEED_MAX`](crate::core::task::seed::SEED_MAX).
    pub seed: u64,
    /// The slot to run in, from 0 to one less than the pool's slots; no other run has it.
    pub slot: u32,
    /// No client asked for it: the runtime finds out what the engine can do (ORCH-3049). What counts, bills or logs may
    /// leave it out.
    pub is_self_test: bool,
}

impl<'a> Job<'a> {
    /// A run of this task with seed 0 in slot 0, for a host program's own tests of its engine.
    pub fn new(task_id: &'a TaskId, request: &'a TaskRequest) -> Self {
        Job { task_id, request, seed: 0, slot: 0, is_self_test: false }
    }

    /// The trace context that its engine is told, with the task's span as the parent; `None` when nobody asked for one.
    pub fn trace(&self) -> Option<String> {
        self.request.traceparent.as_ref().map(|parent| parent.child(self.task_id.stable_hash()))
    }
}

/// Where tokens go.
pub trait TokenOutput: Send {
    /// Takes the next token's text. Empty text is ignored.
    ///
    /// # Errors
    /// [`Stopped`] when nobody wants more: return from [`Engine::generate`] at once.
    fn push(&mut self, text: &str) -> Result<(), Stopped>;

    /// Shows that the run goes on though no token comes: it waits for its turn, or its prompt is evaluated. Without it,
    /// so long a silence counts as a hang.
    fn is_alive(&mut self) {}

    /// Says how many tokens the engine has computed for this run so far, by its own count: what it hands over in one
    /// piece may be several tokens, and some tokens have no text. What is charged is the highest count, up to the
    /// task's budget; without any, the pieces.
    fn counted(&mut self, tokens: u32) {
        let _ = tokens;
    }
}

/// Keeps what an engine says, piece by piece, its count, and its signs of life. For tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Pieces(pub(crate) Vec<String>, pub(crate) u32, pub(crate) u32);

#[cfg(test)]
impl TokenOutput for Pieces {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        self.0.push(text.to_owned());
        Ok(())
    }

    fn is_alive(&mut self) {
        self.2 += 1;
    }

    fn counted(&mut self, tokens: u32) {
        self.1 = self.1.max(tokens);
    }
}

/// The task is over, or its budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no more tokens are wanted")]
pub struct Stopped;

/// How a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Prompt tokens by the engine's count, when it counts them.
    pub tokens_in: Option<Tokens>,
}

/// One model on one device mask.
///
/// It belongs to one worker and is dropped with it: what it started (a process, a connection) must end then.
/// Methods may be called at the same time from several runs.
pub trait Engine: Send + Sync + 'static {
    /// Starts what has to be started and loads the model; returns when it can serve. Called once, before all else.
    ///
    /// # Errors
    /// [`EngineError`] when it cannot; the worker then fails and is started again with backoff.
    fn preload(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send;

    /// Runs one task and hands each token to `out`. Behind [`Engine::preload`] it is called with short prompts for
    /// the self-test, unless the pool says `self_test: false` and this is no reload: twice alone, then in up to four
    /// slots at once, and a last time, which is dropped behind its first token.
    ///
    /// # Errors
    /// [`EngineError`] when the run did not come to its end. [`Stopped`] may be passed on with `?`.
    ///
    /// # Cancel safety
    /// The runtime drops this future to stop a run. The engine must then stop computing; [`Engine::released`] is asked
    /// until it has.
    fn generate<'a>(
        &'a self,
        job: Job<'a>,
        out: &'a mut dyn TokenOutput,
    ) -> impl Future<Output = Result<Finish, EngineError>> + Send + 'a;

    /// Returns when `slot`, whose run was dropped, really computes nothing any more. At once by default, which is right
    /// for an engine that computes inside [`Engine::generate`].
    fn released(&self, slot: u32) -> impl Future<Output = ()> + Send {
        let _ = slot;
        std::future::ready(())
    }

    /// Measures the engine, and so shows that it still answers.
    ///
    /// # Errors
    /// [`EngineError`] when it does not answer.
    fn probe(&self) -> impl Future<Output = Result<Telemetry, EngineError>> + Send {
        std::future::ready(Ok(Telemetry::default()))
    }

    /// Returns when the engine as a whole has failed; never, by default.
    fn failure(&self) -> impl Future<Output = EngineError> + Send {
        std::future::pending()
    }
}
