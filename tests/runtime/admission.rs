//! The way in: ids, routing, and what is refused before any queue.

use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::{Env, ErrorCode, TaskRequest};

use crate::support::{World, millisecond, pool, pool_id, read_whole, request, start, task_id};

#[tokio::test(start_paused = true)]
async fn submitting_again_returns_the_first_submissions_state() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    let first = orchestrator.submit(request("t", 5)).await.unwrap();
    let again = orchestrator.submit(request("t", 5)).await.unwrap();
    assert_eq!((&first.task_id, first.queue_position), (&again.task_id, again.queue_position));
    let (text, _) = read_whole(first.stream()).await;
    assert_eq!(read_whole(again.stream()).await.0, text);
    let after = orchestrator.submit(request("t", 5)).await.unwrap();
    assert_eq!(read_whole(after.stream()).await.0, text, "also when it has ended");
    assert_eq!(orchestrator.pools()[0].completed, 1, "it ran once");
    let other = orchestrator.submit(request("t", 6)).await.err().unwrap();
    assert_eq!(other.code, ErrorCode::InvalidParams);
    assert!(other.message.contains("task_id"), "{other}");
}

#[tokio::test(start_paused = true)]
async fn of_two_pools_of_a_set_the_one_that_starts_it_first_gets_it() {
    let mut second = pool("b", 1, 1, millisecond());
    second.replicas[0].devices = vec![orchestrator_core::config::DeviceRef::Index(9)];
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond()), second]).await;
    orchestrator.until_ready().await;
    let mut pools = Vec::new();
    for number in 0..6 {
        let submitted = orchestrator.submit(request(&format!("t{number}"), 500)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        pools.push(orchestrator.task(&submitted.task_id).unwrap().pool_id.unwrap().to_string());
    }
    assert_eq!(pools[..2], ["a", "b"]);
    assert_eq!(pools.iter().filter(|pool| *pool == "a").count(), 3, "{pools:?}");
    let sets = orchestrator.replica_sets();
    assert_eq!((sets.len(), sets[0].pools.len()), (1, 2), "one replica set of two pools");
}

#[tokio::test(start_paused = true)]
async fn a_position_and_a_prediction_come_with_the_acceptance() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let mut promises = Vec::new();
    for number in 0..4 {
        let submitted = orchestrator.submit(request(&format!("t{number}"), 1_000)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        promises.push((submitted.queue_position, submitted.predicted_start_ms));
    }
    assert_eq!(promises[0], (0, 0));
    assert!(promises[1..].windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "{promises:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_out_fails_fast_and_its_sibling_takes_over() {
    let mut second = pool("b", 1, 1, millisecond());
    second.replicas[0].devices = vec![orchestrator_core::config::DeviceRef::Index(9)];
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond()), second]).await;
    orchestrator.until_ready().await;
    orchestrator.drain(&pool_id("a"));
    let submitted = orchestrator.submit(request("t", 1)).await.unwrap();
    assert_eq!(orchestrator.task(&submitted.task_id).unwrap().pool_id, Some(pool_id("b")));
    orchestrator.drain(&pool_id("b"));
    orchestrator.until_pool(&pool_id("b"), |state| state == PoolState::Stopped).await;
    let error = orchestrator.submit(request("u", 1)).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    assert!(orchestrator.task(&task_id("u")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_request_is_refused_before_any_queue() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    let long = TaskRequest::completion("x".repeat(2 * 1024 * 1024));
    assert_eq!(orchestrator.submit(long).await.err().unwrap().code, ErrorCode::InvalidParams);
    let budget = orchestrator.submit(TaskRequest::completion("x").max_tokens(5_000)).await.err().unwrap();
    assert!(budget.message.contains("max_tokens"), "{budget}");
    assert_eq!(orchestrator.pools()[0].enqueued, [0, 0]);
    assert_eq!(orchestrator.view().tasks_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_id_shares_the_decision_and_not_the_callers_fate() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    for polls in 0..6 {
        let id = format!("t{polls}");
        let mut first = Box::pin(orchestrator.submit(request(&id, 5)));
        let mut second = Box::pin(orchestrator.submit(request(&id, 5)));
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
        drop(first); // The first caller goes away: what it had not been promised is taken back.
        let again = second.await.unwrap_or_else(|error| panic!("{polls}: {error}"));
        let (_, end) = read_whole(again.stream()).await;
        let canceled = orchestrator_core::core::task::FinishReason::Canceled;
        assert!(matches!(end, orchestrator_core::Event::End(end) if end.finish_reason != canceled), "{polls} polls");
    }
}
