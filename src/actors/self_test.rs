//! What a freshly loaded engine shows before it gets a task (ORCH-3049): it decodes, it repeats itself from the same seed, it
//! stops when nobody wants more, and it can be measured.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::actors::engine_watch::probe;
use crate::core::id::TaskId;
use crate::core::task::TaskRequest;
use crate::core::units::millis_exact;
use crate::env::Env;
use crate::gpu::engine::{AnyEngine, EngineError, Job, Stopped, TokenOutput};

/// Tokens of the decode that is compared.
const TOKENS: u32 = 4;
/// Tokens of the decode that is stopped behind its first: enough that it would go on.
const TOKENS_STOPPED: u32 = 64;
const PROMPT: &str = "one two three";
const SEED: u64 = 1;

/// What the self-test of one load has shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SelfTest {
    /// Time of a decode of four tokens, in milliseconds.
    pub decode_ms: f64,
    /// Time from the end of a stopped decode until the engine had left its slot, in milliseconds.
    pub stop_ms: f64,
    /// Whether the same seed gave the same tokens twice. What resumes relies on it.
    pub repeats: bool,
}

/// Tests an engine that has just been loaded and has no task yet.
///
/// # Errors
/// [`EngineError::Preload`], with what it could not do.
///
/// # Cancel safety
/// Dropping it leaves the engine with a run that it may not have left yet: it must be discarded.
pub(crate) async fn self_test(engine: &dyn AnyEngine, env: &Env, stop: Duration) -> Result<SelfTest, EngineError> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| EngineError::Preload(format!("self-test, {what}: {error}"));
    let begin = env.now();
    let first = decode(engine, TOKENS).await.map_err(|error| failed("decode", &error))?;
    let decode_ms = millis_exact(env.now().since(begin));
    let second = decode(engine, TOKENS).await.map_err(|error| failed("second decode", &error))?;
    stopped_decode(engine).await.map_err(|error| failed("decode to be stopped", &error))?;
    let begin = env.now();
    let released = timeout(stop, engine.released(0)).await;
    released.map_err(|_| failed("stop", &format!("slot 0 was not left within {stop:?}")))?;
    let stop_ms = millis_exact(env.now().since(begin));
    probe(engine).await.map_err(|error| failed("telemetry", &error))?;
    Ok(SelfTest { decode_ms, stop_ms, repeats: first == second })
}

/// Keeps what an engine says, up to its budget, and tells of the first token.
struct Heard {
    text: String,
    left: u32,
    first: Arc<Notify>,
}

impl TokenOutput for Heard {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        self.left = self.left.checked_sub(1).ok_or(Stopped)?;
        self.text.push_str(text);
        self.first.notify_one();
        Ok(())
    }
}

impl Heard {
    fn up_to(tokens: u32) -> Self {
        Heard { text: String::new(), left: tokens, first: Arc::default() }
    }
}

async fn generate(engine: &dyn AnyEngine, tokens: u32, heard: &mut Heard) -> Result<(), EngineError> {
    let request = TaskRequest::completion(PROMPT).max_tokens(tokens);
    let task_id = TaskId::parse("self-test").map_err(|error| EngineError::Preload(error.to_string()))?;
    let job = Job { task_id: &task_id, request: &request, seed: SEED, slot: 0 };
    match engine.generate(job, heard).await {
        Ok(_) | Err(EngineError::Stopped(_)) => Ok(()), // One that ignores its budget is stopped, as any run is.
        Err(error) => Err(error),
    }
}

async fn decode(engine: &dyn AnyEngine, tokens: u32) -> Result<String, EngineError> {
    let mut heard = Heard::up_to(tokens);
    generate(engine, tokens, &mut heard).await?;
    Ok(heard.text)
}

/// Lets a run go on until its first token, and drops it.
async fn stopped_decode(engine: &dyn AnyEngine) -> Result<(), EngineError> {
    let mut heard = Heard::up_to(TOKENS_STOPPED);
    let first = heard.first.clone();
    tokio::select! {
        biased;
        result = generate(engine, TOKENS_STOPPED, &mut heard) => result, // It was faster than we are.
        () = first.notified() => Ok(()),
    }
}
