//! Waiting for room instead of being refused.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use orchestrator_core::config::{ClientConfig, QuotaConfig};
use orchestrator_core::prelude::*;

use crate::support::{client, millisecond, pool, until_idle};

/// One pool of this many slots and places, with an engine that takes a millisecond for each token.
async fn small(slots: u32, capacity: u32, config: Config) -> Orchestrator {
    let mut pool = pool("p", 1, slots, millisecond());
    pool.queue.capacity = capacity;
    let builder = Orchestrator::builder().config(config).env(Env::simulated(5));
    let orchestrator = builder.pool(pool, SimEngine::new).start().await.unwrap();
    assert!(orchestrator.until_ready().await);
    orchestrator
}

fn task(number: u32) -> TaskRequest {
    TaskRequest::completion(format!("prompt {number}")).max_tokens(10)
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_any_size_goes_through_a_small_pool_without_a_refusal_or_an_idle_slot() {
    let (tasks, slots) = (2_000, 4);
    let orchestrator = small(slots, 8, Config::default()).await;
    let begin = tokio::time::Instant::now();
    let each = |number| {
        let orchestrator = orchestrator.clone();
        async move {
            let submitted = orchestrator.submit_when_room(task(number)).await.expect("accepted in the end");
            matches!(submitted.stream().collect().await.1, Some(Event::End(_)))
        }
    };
    let ended = futures_util::stream::iter((0..tasks).map(each)).buffer_unordered(1_000);
    let well = ended.filter(|well| std::future::ready(*well)).count().await;
    let (took, ideal) = (begin.elapsed().as_secs_f64(), f64::from(tasks) * 0.010 / f64::from(slots));
    println!("{well} tasks in {took:.2} s, ideally {ideal:.2}");
    assert!(well == 2_000 && took <= ideal * 1.05, "{well} in {took}, ideally {ideal}");
    let refused: u64 = orchestrator.view().rejected.values().sum();
    assert_eq!((refused, orchestrator.waiters()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn tenants_take_turns_however_many_of_one_wait() {
    let orchestrator = small(1, 1, Config::default()).await;
    let mut waiting = FuturesUnordered::new();
    for number in 0..60 {
        let who = if number < 50 { "many" } else { "few" };
        let request = task(number).client(client(who));
        let orchestrator = orchestrator.clone();
        waiting.push(async move {
            let submitted = orchestrator.submit_when_room(request).await.expect("accepted in the end");
            (who, number, submitted.stream().collect().await.1)
        });
    }
    let (mut order, mut last): (Vec<&str>, BTreeMap<&str, u32>) = Default::default();
    while let Some((who, number, end)) = waiting.next().await {
        assert!(matches!(end, Some(Event::End(_))));
        assert!(last.insert(who, number).is_none_or(|before| before < number), "each tenant's in its order");
        order.push(who);
    }
    let behind = order.iter().rposition(|who| *who == "few").unwrap();
    assert!(behind <= 24, "ten of few beside ten of many, and those that were in before: {behind}");
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_leaves_nothing_and_the_next_gets_in() {
    let orchestrator = small(1, 1, Config::default()).await;
    let held: Vec<_> = futures_util::future::join_all((0..2).map(|number| {
        let orchestrator = orchestrator.clone();
        async move { orchestrator.submit_when_room(task(number).max_tokens(200)).await.unwrap() }
    }))
    .await;
    let mut waits: Vec<_> = (2..6)
        .map(|number| {
            let orchestrator = orchestrator.clone();
            tokio::spawn(async move { orchestrator.submit_when_room(task(number)).await.map(|_| number) })
        })
        .collect();
    while orchestrator.waiters() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    waits.drain(..2).for_each(|wait| wait.abort());
    let next = futures_util::future::join_all(waits).await;
    assert_eq!(next.into_iter().map(|wait| wait.unwrap().unwrap()).collect::<Vec<_>>(), [4, 5]);
    drop(held);
    until_idle(&orchestrator).await;
    assert_eq!((orchestrator.waiters(), orchestrator.view().tasks_open), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_quota_holds_up_its_own_client_and_nobody_else() {
    let quotas = QuotaConfig { queued: Some(1), running: Some(1), ..QuotaConfig::default() };
    let narrow = ClientConfig { quotas, ..ClientConfig::default() };
    let config = Config { clients: [("narrow".to_owned(), narrow)].into(), ..Config::default() };
    let orchestrator = small(2, 64, config).await;
    let begin = tokio::time::Instant::now();
    let wait = |who: &'static str, number| {
        let (orchestrator, request) = (orchestrator.clone(), task(number).client(client(who)));
        async move {
            let submitted = orchestrator.submit_when_room(request).await.expect("accepted in the end");
            submitted.stream().collect().await;
            begin.elapsed()
        }
    };
    let narrow: Vec<_> = (0..20).map(|number| tokio::spawn(wait("narrow", number))).collect();
    tokio::task::yield_now().await;
    let wide = wait("wide", 100).await;
    assert!(wide <= Duration::from_millis(25), "{wide:?}");
    let ended = futures_util::future::join_all(narrow).await;
    let last = ended.into_iter().map(Result::unwrap).max().unwrap();
    assert!((Duration::from_millis(200)..Duration::from_millis(260)).contains(&last), "one at a time: {last:?}");
}

#[tokio::test(start_paused = true)]
async fn what_no_room_helps_is_refused_at_once() {
    let orchestrator = small(1, 1, Config::default()).await;
    let wrong = orchestrator.submit_when_room(task(0).model("nobody's")).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::InvalidParams);
    let refused: u64 = orchestrator.view().rejected.values().sum();
    assert_eq!(refused, 1, "and counted");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_before_anything_was_measured_is_not_sent_away_for_long() {
    let mut pool = pool("p", 2, 32, millisecond());
    pool.queue.capacity = 256;
    let builder = Orchestrator::builder().env(Env::simulated(5)).pool(pool, SimEngine::new);
    let orchestrator = builder.start().await.unwrap();
    let refused = async |number| orchestrator.submit(task(number)).await.err();
    let mut first = None;
    for number in 0..300 {
        first = first.or(refused(number).await);
    }
    let error = first.expect("it is full");
    assert!(error.retry_after_ms.is_some_and(|wait| wait <= 2_000), "{error:?}");
    assert!(error.message.contains("256") && error.message.contains("reserve"), "{error}");
}

#[cfg(feature = "tower")]
#[tokio::test(start_paused = true)]
async fn as_a_tower_service_it_waits_for_room_too() {
    use tower_service::Service;
    let mut orchestrator = small(1, 1, Config::default()).await;
    std::future::poll_fn(|context| orchestrator.poll_ready(context)).await.unwrap();
    let calls: Vec<_> = (0..5).map(|number| orchestrator.call(task(number))).collect();
    let submitted = futures_util::future::join_all(calls).await;
    assert!(submitted.iter().all(Result::is_ok));
}
