//! What a freshly loaded engine shows before it gets a task (ORCH-3049): it decodes, it repeats itself from the same
//! seed or does not, alone and in a batch, it stops when nobody wants more, and it can be measured.

pub(in crate::actors) mod identity;
pub(in crate::actors) mod study;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::actors::worker::engine_watch::probe;
use crate::config::PoolConfig;
use crate::core::id::TaskId;
use crate::core::pool::self_test::SelfTest;
use crate::core::task::resume::DeterminismClass;
use crate::core::task::{TaskRequest, Workload};
use crate::core::units::millis_exact;
use crate::env::{Env, timeout_awake};
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Job, Repeats, Stopped, TokenOutput};

/// Tokens of the decodes that are compared.
const TOKENS: u32 = 16;
/// Tokens of the decode that is stopped behind its first: enough that it would go on.
const TOKENS_STOPPED: u32 = 64;
const PROMPT: &str = "one two three";
const SEED: u64 = 1;
/// Wait behind an engine that says that it is busy, and not for how long.
const BUSY_WAIT: Duration = Duration::from_millis(250);
/// What the batch beside a decode is told, each in a slot of its own.
const CROWD: [&str; 3] = ["four", "five six", "seven eight nine ten"];

/// Tests an engine that has just been loaded and has no task yet.
///
/// # Errors
/// [`EngineError::Preload`], with what it could not do.
///
/// # Cancel safety
/// Dropping it leaves the engine with a run that it may not have left yet: it must be discarded.
pub(crate) async fn self_test(
    engine: &dyn DynEngine,
    env: &Env,
    config: &PoolConfig,
    repeats: Repeats,
) -> Result<SelfTest, EngineError> {
    let unfit =
        |what: &str, error: &dyn std::fmt::Display| EngineError::Preload(format!("self-test, {what}: {error}").into());
    let failed = |what: &str, error: &EngineError| match error {
        panicked @ EngineError::Panicked { .. } => panicked.clone(),
        other => unfit(what, other),
    };
    let subject = Subject { engine, workload: config.workloads.first().copied().unwrap_or_default() };
    let stop = Duration::from_millis(config.timeouts.stop_ms);
    let begin = env.now();
    let first = decode(subject, PROMPT, 0).await.map_err(|error| failed("decode", &error))?;
    let decode_ms = millis_exact(env.now().since(begin));
    let alone = first == decode(subject, PROMPT, 0).await.map_err(|error| failed("second decode", &error))?;
    let batch = match config.slots {
        1 => None,
        slots => Some(first == decode_in_batch(subject, slots).await.map_err(|error| failed("batch", &error))?),
    };
    if let Some(stated) = config.determinism_class.filter(|stated| stated.is_refuted_by(alone, batch)) {
        let text = format!("{stated:?} is stated, and the same seed gave other tokens (alone the same: {alone})");
        return Err(unfit("determinism_class", &text));
    }
    stopped_decode(subject).await.map_err(|error| failed("decode to be stopped", &error))?;
    let begin = env.now();
    let released = timeout_awake(stop, engine.released(0)).await;
    released.ok_or_else(|| unfit("stop", &format!("slot 0 was not left within {stop:?}")))??;
    let stop_ms = millis_exact(env.now().since(begin));
    probe(engine).await.map_err(|error| failed("telemetry", &error))?;
    // A few tokens can refute a class, and show none.
    let determinism_class = match (config.determinism_class, repeats) {
        (Some(stated), _) => stated,
        (None, Repeats::Always(known)) => known.min(DeterminismClass::shown(alone, batch.or(Some(true)))),
        (None, Repeats::UpTo(_) | Repeats::Unknowable) => DeterminismClass::None,
    };
    Ok(SelfTest {
        decode_ms,
        stop_ms,
        determinism_class,
        repeats_alone: alone,
        tokens_compared: 0,
        has_diverged: false,
    })
}

/// Keeps what an engine says, up to its budget, and tells of the first token.
pub(in crate::actors) struct Heard {
    pub(in crate::actors) text: String,
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
    pub(in crate::actors) fn up_to(tokens: u32) -> Self {
        Heard { text: String::new(), left: tokens, first: Arc::default() }
    }

    /// Pieces that came, of so many that were allowed.
    pub(in crate::actors) fn tokens(&self, most: u32) -> u32 {
        most - self.left
    }
}

/// What is tested: an engine, by the first kind of work that its pool serves.
#[derive(Clone, Copy)]
pub(in crate::actors) struct Subject<'a> {
    pub(in crate::actors) engine: &'a dyn DynEngine,
    pub(in crate::actors) workload: Workload,
}

pub(in crate::actors) async fn generate(
    engine: Subject<'_>,
    (prompt, slot): (&str, u32),
    tokens: u32,
    heard: &mut Heard,
) -> Result<(), EngineError> {
    let request = match engine.workload {
        Workload::Completion => TaskRequest::completion(prompt).max_tokens(tokens),
        Workload::Embedding => TaskRequest::embedding(vec![prompt.to_owned()]),
        Workload::Rerank => TaskRequest::rerank(PROMPT, vec![prompt.to_owned()]),
    };
    let task_id = TaskId::parse("self-test").map_err(|error| EngineError::Preload(error.to_string().into()))?;
    let job = Job { task_id: &task_id, request: &request, seed: SEED, slot, is_self_test: true };
    loop {
        match engine.engine.generate(job, heard).await {
            Ok(_) | Err(EngineError::Stopped(_)) => return Ok(()), // One that ignores its budget is stopped, as any run is.
            // Others may use its server, or it is not quite ready. How long all may take is the load's to bound.
            Err(EngineError::Busy { retry_after, .. }) => sleep(retry_after.unwrap_or(BUSY_WAIT)).await,
            Err(error) => return Err(error),
        }
    }
}

async fn decode(engine: Subject<'_>, prompt: &str, slot: u32) -> Result<String, EngineError> {
    let mut heard = Heard::up_to(TOKENS);
    generate(engine, (prompt, slot), TOKENS, &mut heard).await?;
    Ok(heard.text)
}

/// The decode that was done alone, with others beside it.
async fn decode_in_batch(engine: Subject<'_>, slots: u32) -> Result<String, EngineError> {
    let beside = async |slot: u32| match slot < slots {
        true => decode(engine, CROWD[slot as usize - 1], slot).await.map(drop),
        false => Ok(()),
    };
    let (first, second, third, fourth) = tokio::join!(decode(engine, PROMPT, 0), beside(1), beside(2), beside(3));
    second.and(third).and(fourth)?;
    first
}

/// Lets a run go on until its first token, and drops it.
async fn stopped_decode(engine: Subject<'_>) -> Result<(), EngineError> {
    let mut heard = Heard::up_to(TOKENS_STOPPED);
    let first = heard.first.clone();
    tokio::select! {
        biased;
        result = generate(engine, (PROMPT, 0), TOKENS_STOPPED, &mut heard) => result, // It was faster than we are.
        () = first.notified() => Ok(()),
    }
}
