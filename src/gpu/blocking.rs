//! Engines whose inference blocks its thread: candle, bindings of llama.cpp, anything without an `await`.
//!
//! A future that computes for long holds up everything else on its thread: no reader hears of its tokens, and no
//! timeout fires. So [`Blocking`] runs a [`BlockingEngine`] on threads of its own, one for each slot and one for loads
//! and probes, and hands its tokens over as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::core::id::TaskId;
use crate::core::task::{FinishReason, TaskRequest};
use crate::gpu::dyn_engine::catch;
use crate::gpu::engine::{Engine, EngineError, EngineInfo, Finish, Job, Stopped, Telemetry, TokenOutput};
use crate::gpu::threads::{Work, Worker};

/// Tokens that wait between an engine's thread and the runtime.
const TOKENS_BETWEEN: usize = 256;

/// One run of a task, as a [`BlockingEngine`] sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BlockingJob {
    /// The task, for the engine's logs.
    pub task_id: TaskId,
    /// What was asked for.
    pub request: Arc<TaskRequest>,
    /// The seed to run with, in `0..=`[`SEED_MAX`](crate::core::task::seed::SEED_MAX).
    pub seed: u64,
    /// The slot to run in, from 0 to one less than the pool's slots. Runs of one slot follow each other on one
    /// thread.
    pub slot: u32,
    /// No client asked for it: the runtime finds out what the engine can do (ORCH-3049).
    pub is_self_test: bool,
}

/// Where a [`BlockingEngine`]'s tokens go.
#[derive(Debug)]
pub struct BlockingOutput {
    words: mpsc::Sender<Word>,
    is_stopped: Arc<AtomicBool>,
    /// Tokens that it may still take.
    left: u32,
    /// It has taken all.
    is_full: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Word {
    Token(String),
    Alive,
    Counted(u32),
}

impl Word {
    fn say(self, out: &mut dyn TokenOutput) -> Result<(), Stopped> {
        match self {
            Word::Token(text) => out.push(&text)?,
            Word::Alive => out.is_alive(),
            Word::Counted(tokens) => out.counted(tokens),
        }
        Ok(())
    }
}

impl BlockingOutput {
    /// Whether nobody wants more: the task is cancelled, timed out, or has all that it may have. An engine that
    /// computes for long between two tokens asks now and then, and returns.
    pub fn is_stopped(&self) -> bool {
        self.left == 0 || self.is_stopped.load(SeqCst)
    }

    fn say(&self, word: Word) -> Result<(), Stopped> {
        if self.is_stopped.load(SeqCst) || self.words.blocking_send(word).is_err() {
            return Err(Stopped);
        }
        Ok(())
    }
}

impl TokenOutput for BlockingOutput {
    /// Waits while the runtime has many of its tokens to take.
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        if text.is_empty() {
            return Ok(());
        }
        let left = self.left.checked_sub(1).ok_or(Stopped)?;
        self.say(Word::Token(text.to_owned()))?;
        self.left = left;
        self.is_full.store(left == 0, SeqCst);
        Ok(())
    }

    fn is_alive(&mut self) {
        let _ = self.say(Word::Alive); // Stopped: the next token says so.
    }

    fn counted(&mut self, tokens: u32) {
        let _ = self.say(Word::Counted(tokens)); // As above.
    }
}

/// One model on one device mask, whose methods block. [`Blocking`] makes an [`Engine`] of it.
///
/// ```
/// use orchestrator_core::gpu::{
///     Blocking, BlockingEngine, BlockingJob, BlockingOutput, EngineError, EngineInfo, Finish, TokenOutput,
/// };
/// use orchestrator_core::core::task::FinishReason;
///
/// struct Echo;
///
/// impl BlockingEngine for Echo {
///     fn preload(&self) -> Result<EngineInfo, EngineError> {
///         Ok(EngineInfo::new("echo-1", "no-model"))
///     }
///
///     fn generate(&self, job: &BlockingJob, out: &mut BlockingOutput) -> Result<Finish, EngineError> {
///         for word in job.request.prompt.split_inclusive(' ') {
///             out.push(word)?; // A real one computes here, for as long as it takes.
///         }
///         Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
///     }
/// }
///
/// let factory = |_: &orchestrator_core::gpu::EngineContext| Blocking::new(Echo);
/// # drop(factory);
/// ```
pub trait BlockingEngine: Send + Sync + 'static {
    /// Loads the model. Called once, before all else.
    ///
    /// # Errors
    /// As of [`Engine::preload`].
    fn preload(&self) -> Result<EngineInfo, EngineError>;

    /// Runs one task and hands each token to `out`. Runs of different slots run at the same time.
    ///
    /// # Errors
    /// As of [`Engine::generate`]. [`Stopped`] may be passed on with `?`.
    fn generate(&self, job: &BlockingJob, out: &mut BlockingOutput) -> Result<Finish, EngineError>;

    /// Measures the engine, and so shows that it still answers.
    ///
    /// # Errors
    /// As of [`Engine::probe`].
    fn probe(&self) -> Result<Telemetry, EngineError> {
        Ok(Telemetry::default())
    }
}

/// A [`BlockingEngine`] as an [`Engine`].
///
/// A run that is stopped (cancelled, timed out, lost) is told so by its output, and its slot is given to nobody else
/// before its thread has come back from it. A thread that never does is quarantined with its slot, and left behind when
/// the engine is dropped. A paused clock of tokio's does not stand still for these threads: in tests with paused time
/// use an engine without them.
pub struct Blocking<E: BlockingEngine> {
    engine: Arc<E>,
    /// Loads and probes.
    control: Thread,
    /// By slot, made when they are first used.
    slots: Mutex<Vec<Arc<Thread>>>,
}

impl<E: BlockingEngine> Blocking<E> {
    /// The engine, with no thread yet.
    pub fn new(engine: E) -> Self {
        Blocking { engine: Arc::new(engine), control: Thread::default(), slots: Mutex::default() }
    }

    fn slot(&self, slot: u32) -> Arc<Thread> {
        let mut slots = self.slots.lock();
        let needed = slot as usize + 1;
        if slots.len() < needed {
            slots.resize_with(needed, Arc::default);
        }
        slots[slot as usize].clone()
    }
}

impl<E: BlockingEngine + std::fmt::Debug> std::fmt::Debug for Blocking<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Blocking").field(&self.engine).finish()
    }
}

/// A thread, made when it is first used.
#[derive(Default)]
struct Thread {
    worker: Mutex<Option<Worker>>,
    /// Held by what it does now.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Thread {
    /// Does this as soon as it has nothing else to do, and returns what comes of it.
    ///
    /// # Errors
    /// What the call says; it panicked; there is no thread to be had.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the call to its end, which [`Thread::until_idle`] waits for.
    async fn call<T: Send + 'static>(
        &self,
        (name, during): (String, &'static str),
        call: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let turn = self.turn.clone().lock_owned().await;
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let _turn = turn;
            drop(sender.send(catch(during, call).and_then(|result| result))); // Unsent: nobody wants to know any more.
        };
        self.give(name, Box::new(work))?;
        receiver.await.unwrap_or_else(|_| Err(EngineError::Lost("its thread is gone".into())))
    }

    fn give(&self, name: String, work: Work) -> Result<(), EngineError> {
        let mut worker = self.worker.lock();
        let worker = match &mut *worker {
            Some(worker) => worker,
            none => none.insert(Worker::start(name)?),
        };
        worker.give(work).then_some(()).ok_or_else(|| EngineError::Lost("its thread is gone".into()))
    }

    async fn until_idle(&self) {
        drop(self.turn.lock().await);
    }
}

/// Tells a run that nobody wants it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl<E: BlockingEngine> Engine for Blocking<E> {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let engine = self.engine.clone();
        self.control.call(("engine".to_owned(), "preload"), move || engine.preload()).await
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let (engine, thread) = (self.engine.clone(), self.slot(job.slot));
        let is_stopped = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(is_stopped.clone());
        let (words, mut spoken) = mpsc::channel(TOKENS_BETWEEN);
        let has_all = Arc::new(AtomicBool::new(false));
        let (left, is_full) = (job.request.max_tokens.0, has_all.clone());
        let mut output = BlockingOutput { words, is_stopped, left, is_full };
        let job = BlockingJob {
            task_id: job.task_id.clone(),
            request: Arc::new(job.request.clone()),
            seed: job.seed,
            slot: job.slot,
            is_self_test: job.is_self_test,
        };
        let name = format!("engine-slot-{}", job.slot);
        let run = thread.call((name, "generate"), move || engine.generate(&job, &mut output));
        tokio::pin!(run);
        let result = loop {
            tokio::select! {
                biased;
                Some(word) = spoken.recv() => word.say(out)?,
                result = &mut run => break result,
            }
        };
        // What it said between the two looks, before its end.
        while let Ok(word) = spoken.try_recv() {
            word.say(out)?;
        }
        match result {
            // Nobody else has stopped it: this future would be gone.
            Err(EngineError::Stopped(_)) if has_all.load(SeqCst) => {
                Ok(Finish { reason: FinishReason::Length, tokens_in: None })
            }
            result => result,
        }
    }

    async fn released(&self, slot: u32) {
        self.slot(slot).until_idle().await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        let engine = self.engine.clone();
        self.control.call(("engine".to_owned(), "probe"), move || engine.probe()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use super::*;
    use crate::gpu::dyn_engine::DynEngine;
    use crate::gpu::engine::Pieces;

    /// Says a word whenever its gate is opened.
    struct Gated {
        gate: Mutex<std::sync::mpsc::Receiver<&'static str>>,
        runs: AtomicU32,
    }

    impl BlockingEngine for Gated {
        fn preload(&self) -> Result<EngineInfo, EngineError> {
            Ok(EngineInfo::new("gated-1", "none"))
        }

        fn generate(&self, _: &BlockingJob, out: &mut BlockingOutput) -> Result<Finish, EngineError> {
            self.runs.fetch_add(1, SeqCst);
            while let Ok(word) = self.gate.lock().recv() {
                assert!(word != "panic", "it was told to");
                out.push(word)?;
            }
            Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
        }
    }

    fn gated() -> (std::sync::mpsc::Sender<&'static str>, Blocking<Gated>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (sender, Blocking::new(Gated { gate: Mutex::new(receiver), runs: AtomicU32::new(0) }))
    }

    /// Tells of each token.
    struct Told(tokio::sync::mpsc::UnboundedSender<String>);

    impl TokenOutput for Told {
        fn push(&mut self, text: &str) -> Result<(), Stopped> {
            self.0.send(text.to_owned()).map_err(|_| Stopped)
        }
    }

    #[tokio::test]
    async fn each_token_is_there_as_soon_as_it_is_said_and_a_stopped_run_holds_its_slot_until_it_ends() {
        let (gate, engine) = gated();
        let (task_id, request) = (TaskId::parse("t").expect("valid"), TaskRequest::completion("x"));
        let (told, mut words) = tokio::sync::mpsc::unbounded_channel();
        let mut out = Told(told);
        {
            let run = Engine::generate(&engine, Job::new(&task_id, &request), &mut out);
            tokio::pin!(run);
            for word in ["a", "b"] {
                gate.send(word).expect("it listens");
                let heard = tokio::select! {
                    biased;
                    heard = words.recv() => heard,
                    _ = &mut run => None,
                };
                assert_eq!(heard.as_deref(), Some(word), "the thread still waits for its gate");
            }
        }
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, Engine::released(&engine, 0)).await.is_err(), "it computes still");
        assert!(tokio::time::timeout(soon, Engine::released(&engine, 1)).await.is_ok(), "another slot is free");
        gate.send("c").expect("it listens");
        Engine::released(&engine, 0).await;
        assert!(words.try_recv().is_err(), "nobody hears what comes behind the stop");
    }

    #[tokio::test]
    async fn its_budget_ends_it_and_a_panic_is_its_error_and_the_thread_goes_on() {
        let (gate, engine) = gated();
        let (task_id, request) = (TaskId::parse("t").expect("valid"), TaskRequest::completion("x").max_tokens(2));
        let mut out = Pieces::default();
        for word in ["a", "b", "c", "panic"] {
            gate.send(word).expect("it listens");
        }
        let ended = DynEngine::generate(&engine, Job::new(&task_id, &request), &mut out).await;
        assert!(matches!(ended, Ok(Finish { reason: FinishReason::Length, .. })), "{ended:?}");
        assert_eq!(out.0, ["a", "b"]);
        let error = DynEngine::generate(&engine, Job::new(&task_id, &request), &mut out).await.err();
        let said = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(said.starts_with("the engine panicked in generate: ") && said.ends_with("it was told to"), "{said}");
        drop(gate);
        let ended = DynEngine::generate(&engine, Job::new(&task_id, &request), &mut out).await;
        assert!(ended.is_ok() && engine.engine.runs.load(SeqCst) == 3, "{ended:?}");
    }
}
