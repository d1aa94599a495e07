//! The two ends of a runtime's life inside a host's.

use std::time::Duration;

use orchestrator_core::prelude::*;

use super::{Words, words};

fn builder() -> Builder {
    Orchestrator::builder().pool(PoolConfig::new("p", "words", "m"), |_| Words)
}

#[test]
fn a_handle_whose_tokio_runtime_is_gone_knows_it_on_any_other() {
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let orchestrator = first.block_on(async {
        let orchestrator = builder().start().await.unwrap();
        assert!(orchestrator.until_ready().await);
        orchestrator
    });
    drop(first);
    let second = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    second.block_on(async {
        let begin = tokio::time::Instant::now();
        assert!(orchestrator.has_ended() && orchestrator.has_failed());
        let error = orchestrator.submit(TaskRequest::completion("x")).await.unwrap_err();
        assert_eq!((error.code, error.retriable), (ErrorCode::PoolUnavailable, false), "{error}");
        let error = orchestrator.submit_when_room(TaskRequest::completion("x")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::PoolUnavailable);
        orchestrator.until_ended().await;
        assert!(!orchestrator.until_ready().await);
        assert!(orchestrator.until_pool(&"p".parse().unwrap(), |state| state == PoolState::Ready).await.is_some());
        orchestrator.stop(Duration::from_secs(1)).await;
        assert!(begin.elapsed() < Duration::from_secs(1), "nobody waits for what is gone: {:?}", begin.elapsed());
    });
}

#[tokio::test(start_paused = true)]
async fn a_stopped_runtime_says_so_and_that_it_is_final() {
    let orchestrator = builder().start().await.unwrap();
    let same = orchestrator.clone();
    orchestrator.stop(Duration::from_secs(1)).await;
    let error = same.submit(TaskRequest::completion("x")).await.unwrap_err();
    assert_eq!((error.code, error.retriable, error.retry_after_ms), (ErrorCode::PoolUnavailable, false, None));
    assert!(error.message.contains("the runtime has stopped"), "{error}");
    assert!(same.has_ended() && !same.has_failed());
    same.stop(Duration::from_secs(1)).await;
}

/// An engine that never ends a run.
struct Endless;

impl Engine for Endless {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("endless-1", "none"))
    }

    async fn generate<'a>(&'a self, _: Job<'a>, _: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_no_longer_than_it_may() {
    let mut pool = PoolConfig::new("p", "endless", "m");
    pool.self_test = false;
    let orchestrator = Orchestrator::builder().pool(pool, |_| Endless).start().await.unwrap();
    let submitted = orchestrator.submit(TaskRequest::completion("x")).await.unwrap();
    let mut stream = submitted.stream();
    assert!(matches!(stream.next().await, Some((_, Event::Started(_)))));
    let begin = tokio::time::Instant::now();
    orchestrator.stop(Duration::from_millis(200)).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "the pool's own drain would take 30 s: {:?}", begin.elapsed());
    assert!(matches!(stream.collect().await.1, Some(Event::Error(_))), "what ran is told");
}

#[test]
fn outside_of_tokio_and_without_timers_the_start_is_refused_with_what_is_missing() {
    let without = futures_util::FutureExt::now_or_never(builder().start()).expect("it waits for nothing");
    assert!(matches!(without, Err(StartError::NoRuntime)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(builder().start()).unwrap_err();
    assert!(matches!(error, StartError::NoTimer) && error.to_string().contains("enable_time"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pools_of_a_configuration_need_what_makes_their_engines() {
    let config = || Config { pools: vec![PoolConfig::new("p", "words", "m")], ..Config::default() };
    let error = Orchestrator::builder().config(config()).start().await.unwrap_err();
    assert!(error.to_string().contains("pools[0].engine: nothing makes the engine \"words\""), "{error}");
    let engines = EngineRegistry::new().with("words", |_: &EngineContext| Words);
    let orchestrator = Orchestrator::builder().config(config()).engines(&engines).start().await.unwrap();
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(2)).await.unwrap();
    assert_eq!(submitted.stream().collect().await.0, words(2));
}
