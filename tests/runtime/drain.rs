//! Drain and stop: nothing new comes in, what is there ends, nothing is left.

use std::time::Duration;

use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::{Env, ErrorCode, Event};

use crate::support::{World, is_idle, millisecond, pool, pool_id, read_whole, request, start};

#[tokio::test(start_paused = true)]
async fn a_drained_pool_finishes_what_it_has_and_stops() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 2, 1, millisecond())]).await;
    let mut streams = Vec::new();
    for number in 0..8 {
        let submitted = orchestrator.submit(request(&format!("t{number}"), 50)).await.unwrap();
        streams.push(submitted.stream());
    }
    assert_eq!(orchestrator.drain(&pool_id("a")), Some(PoolState::Draining));
    let error = orchestrator.submit(request("late", 1)).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Stopped).await;
    for stream in streams {
        let (_, end) = read_whole(stream).await;
        assert!(matches!(end, Event::End(end) if end.finish_reason == FinishReason::Length));
    }
    assert!(is_idle(&orchestrator));
    assert!(orchestrator.drain(&pool_id("nobody")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_ends_what_is_left() {
    let mut slow = pool("a", 1, 1, millisecond());
    slow.timeouts.drain_ms = 100;
    let World { orchestrator, .. } = start(Env::simulated(2), vec![slow]).await;
    orchestrator.until_ready().await;
    let long = orchestrator.submit(request("long", 4_000)).await.unwrap();
    let waits = orchestrator.submit(request("waits", 5)).await.unwrap();
    orchestrator.drain(&pool_id("a"));
    for stream in [long.stream(), waits.stream()] {
        let (_, end) = read_whole(stream).await;
        assert!(matches!(end, Event::Error(error) if error.code == ErrorCode::PoolUnavailable));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_idle(&orchestrator));
}

#[tokio::test(start_paused = true)]
async fn an_idle_pool_drains_at_once_and_a_stopped_runtime_has_ended() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let ended = orchestrator.until_ended();
    let begin = tokio::time::Instant::now();
    orchestrator.stop(Duration::MAX).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
    ended.await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_every_task() {
    let World { orchestrator, stats } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let running = orchestrator.submit(request("runs", 4_000)).await.unwrap().stream();
    let waiting = orchestrator.submit(request("waits", 4_000)).await.unwrap().stream();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(orchestrator);
    for stream in [running, waiting] {
        let (_, end) = read_whole(stream).await;
        assert!(matches!(end, Event::Error(error) if error.code == ErrorCode::WorkerReset));
    }
    tokio::time::sleep(Duration::from_millis(1)).await; // Aborted tasks let go when they are next polled.
    assert_eq!(stats[0][0].active.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_meets_the_end_of_a_drain_ends_or_is_refused() {
    // The drain begins at every point of a submission's way, with a conversation for one more mailbox.
    for polls in 0..12 {
        let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
        orchestrator.until_ready().await;
        let mut request = request("t", 3);
        request.session_id = Some(orchestrator_core::core::SessionId::parse("s").unwrap());
        let submit = orchestrator.submit(request);
        tokio::pin!(submit);
        let mut outcome = None;
        for _ in 0..polls {
            if let std::task::Poll::Ready(result) = futures_util::poll!(submit.as_mut()) {
                outcome = Some(result);
                break;
            }
            tokio::task::yield_now().await;
        }
        orchestrator.drain(&pool_id("a"));
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => submit.await,
        };
        match outcome {
            Ok(submitted) => drop(read_whole(submitted.stream()).await),
            Err(error) => assert_eq!(error.code, ErrorCode::PoolUnavailable, "{polls}: {error}"),
        }
        orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Stopped).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(is_idle(&orchestrator), "{polls}");
    }
}
