//! What an engine's panics, fakes and blocking calls come to, beside the matrix.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use orchestrator_core::config::{ResumeConfig, TimeoutConfig};
use orchestrator_core::gpu::DynEngine;
use orchestrator_core::prelude::*;
use orchestrator_core::{Cause, PoolView};

use super::{Words, words};
use crate::support::until_idle;

/// An engine whose runs go as a script says: by the number of the run, from 0.
struct Scripted<F>(AtomicU32, F);

impl<F> Engine for Scripted<F>
where
    F: Fn(u32, &str) -> Script + Send + Sync + 'static,
{
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("scripted-1", "none"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let script = (self.1)(self.0.fetch_add(1, SeqCst), &job.request.prompt);
        for index in 0..job.request.max_tokens.0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match script {
                Script::Panics => panic!("every time"),
                Script::SaysStopped => return Err(EngineError::Stopped(Stopped)),
                Script::SaysCanceled => return Ok(Finish { reason: FinishReason::Canceled, tokens_in: None }),
                Script::Well | Script::GoesBeyond => out.push(&format!("{index} "))?,
            }
        }
        if matches!(script, Script::GoesBeyond) {
            let _ = out.push("one more");
            return Ok(Finish { reason: FinishReason::Stop, tokens_in: None });
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
}

#[derive(Clone, Copy)]
enum Script {
    Well,
    Panics,
    SaysStopped,
    SaysCanceled,
    GoesBeyond,
}

async fn start(script: impl Fn(u32, &str) -> Script + Send + Sync + Clone + 'static) -> Orchestrator {
    let mut pool = PoolConfig::new("p", "scripted", "m");
    (pool.self_test, pool.slots) = (false, 1);
    pool.resume = ResumeConfig { ejection_ms: 1, ejection_max_ms: 2, ..ResumeConfig::default() };
    let factory = move |_: &EngineContext| Scripted(AtomicU32::new(0), script.clone());
    Orchestrator::builder().pool(pool, factory).env(Env::simulated(3)).start().await.unwrap()
}

async fn end_of(orchestrator: &Orchestrator, prompt: &str) -> (String, Event) {
    let request = TaskRequest::completion(prompt).max_tokens(3);
    let (text, end) = orchestrator.submit(request).await.unwrap().stream().collect().await;
    (text, end.unwrap())
}

fn view(orchestrator: &Orchestrator) -> PoolView {
    orchestrator.pools().remove(0)
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_run_is_the_engines_with_its_text_and_one_task_restarts_no_engine() {
    let orchestrator = start(|_, prompt| if prompt == "poison" { Script::Panics } else { Script::Well }).await;
    let (_, end) = end_of(&orchestrator, "poison").await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!(error.code, ErrorCode::WorkerReset);
    assert!(error.message.contains("the engine panicked in generate: every time"), "{error}");
    assert_eq!(end_of(&orchestrator, "well").await.0, words(3));
    let replica = &view(&orchestrator).replicas[0];
    assert!(replica.attempts_failed[&Cause::EnginePanic] >= 2 && replica.restarts == 0, "{replica:?}");
    assert!(replica.deaths.is_empty() && !replica.attempts_failed.contains_key(&Cause::Bug));
}

#[tokio::test(start_paused = true)]
async fn an_engine_whose_every_run_panics_is_started_anew() {
    // The first engine's lock is poisoned, so to speak; the next one is well.
    let lives = Arc::new(AtomicU32::new(0));
    let counted = lives.clone();
    let mut pool = PoolConfig::new("p", "scripted", "m");
    (pool.self_test, pool.slots) = (false, 1);
    pool.resume = ResumeConfig { ejection_ms: 1, ejection_max_ms: 2, ..ResumeConfig::default() };
    let factory = move |_: &EngineContext| {
        let is_first = counted.fetch_add(1, SeqCst) == 0;
        Scripted(AtomicU32::new(0), move |_: u32, _: &str| if is_first { Script::Panics } else { Script::Well })
    };
    let orchestrator = Orchestrator::builder().pool(pool, factory).env(Env::simulated(3)).start().await.unwrap();
    let (one, other) = tokio::join!(end_of(&orchestrator, "a"), end_of(&orchestrator, "b"));
    // The first task may be what breaks it; when the second meets the same, the engine is what is broken.
    assert!(matches!(&one.1, Event::Error(error) if error.code == ErrorCode::WorkerReset), "{one:?}");
    assert_eq!(other.0, words(3));
    let replica = &view(&orchestrator).replicas[0];
    assert_eq!((lives.load(SeqCst), replica.deaths[&Cause::EnginePanic], replica.restarts), (2, 1, 1));
    let death = replica.last_death.as_ref().unwrap();
    assert!(death.cause == Cause::EnginePanic && death.message.contains("every time"), "{death:?}");
}

#[tokio::test(start_paused = true)]
async fn ends_that_only_others_can_know_are_not_believed() {
    for fake in [Script::SaysStopped, Script::SaysCanceled] {
        let orchestrator = start(move |run, _| if run == 0 { fake } else { Script::Well }).await;
        let (text, end) = end_of(&orchestrator, "x").await;
        assert!(matches!(&end, Event::End(end) if end.finish_reason == FinishReason::Length), "{end:?}");
        assert_eq!((text, view(&orchestrator).replicas[0].attempts_failed[&Cause::Garbled]), (words(3), 1));
    }
    let orchestrator = start(|_, _| Script::GoesBeyond).await;
    let (text, end) = end_of(&orchestrator, "x").await;
    assert!(matches!(&end, Event::End(end) if end.finish_reason == FinishReason::Length), "{end:?}");
    assert_eq!(text, words(3), "what it says beyond its budget is not `stop`");
}

#[tokio::test(start_paused = true)]
async fn one_engine_may_serve_two_pools_and_one_that_cannot_be_made_says_why() {
    let shared = Arc::new(Words);
    let (one, other) = (shared.clone(), shared.clone() as Arc<dyn DynEngine>);
    let builder = Orchestrator::builder()
        .pool(PoolConfig::new("a", "words", "one"), move |_| one.clone())
        .pool(PoolConfig::new("b", "words", "two"), move |_| other.clone());
    let none = |_: &EngineContext| -> Result<Words, EngineError> { Err(std::io::Error::other("no such model").into()) };
    let mut third = PoolConfig::new("c", "words", "three");
    third.replicas[0].devices = Vec::new();
    let orchestrator = builder.pool(third, none).start().await.unwrap();
    for model in ["one", "two"] {
        let request = TaskRequest::completion("x").max_tokens(3).model(model);
        let (text, _) = orchestrator.submit(request).await.unwrap().stream().collect().await;
        assert_eq!(text, words(3));
    }
    while orchestrator.pools()[2].replicas[0].last_death.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let death = orchestrator.pools()[2].replicas[0].last_death.clone().unwrap();
    assert!(death.cause == Cause::Load && death.message.contains("no such model"), "{death:?}");
    until_idle(&orchestrator).await;
}

/// Computes on its thread, for as long as its gate is shut before each token.
struct Computes(parking_lot::Mutex<std::sync::mpsc::Receiver<()>>);

impl BlockingEngine for Computes {
    fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("computes-1", "none"))
    }

    fn generate(&self, job: &BlockingJob, out: &mut BlockingOutput) -> Result<Finish, EngineError> {
        for index in 0..job.request.max_tokens.0 {
            if !job.is_self_test {
                self.0.lock().recv().map_err(EngineError::other)?;
            }
            out.push(&format!("{index} "))?;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
}

#[tokio::test]
async fn a_blocking_engine_streams_token_by_token_and_is_held_to_its_time() {
    let (gate, receiver) = std::sync::mpsc::channel();
    let receiver = parking_lot::Mutex::new(Some(receiver));
    let mut pool = PoolConfig::new("p", "computes", "m");
    pool.slots = 1;
    pool.timeouts = TimeoutConfig { wall_ms: 400, stop_ms: 5_000, ..TimeoutConfig::default() };
    let factory = move |_: &EngineContext| {
        let receiver = receiver.lock().take().expect("one life");
        Blocking::new(Computes(parking_lot::Mutex::new(receiver)))
    };
    let orchestrator = Orchestrator::builder().pool(pool, factory).start().await.unwrap();
    assert!(orchestrator.until_ready().await);
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(5)).await.unwrap();
    let mut stream = submitted.stream();
    for index in 0..2 {
        gate.send(()).unwrap();
        loop {
            // Its thread waits for the next one to be let through: what comes, comes at once.
            match stream.next().await {
                Some((_, Event::Token { index: at, .. })) => break assert_eq!(at, index),
                Some((_, Event::Started(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let (_, end) = stream.collect().await;
    let Some(Event::Error(error)) = end else { panic!("{end:?}") };
    assert_eq!(error.code, ErrorCode::DecodeTimeout, "the wall timeout fires though the thread is busy");
    // Its slot is given to nobody before its thread has come back.
    let next = orchestrator.submit(TaskRequest::completion("y").max_tokens(1)).await.unwrap();
    assert_eq!(orchestrator.pools()[0].slots_used, 1);
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    let (text, end) = next.stream().collect().await;
    assert_eq!(text, "0 ", "{end:?}");
    orchestrator.stop(Duration::from_secs(10)).await;
}
