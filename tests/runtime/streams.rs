//! Readers: any number, each at its own pace, resumable from an index.

use std::time::Duration;

use orchestrator_core::config::RetentionConfig;
use orchestrator_core::{Config, Env, Event, Orchestrator, TaskRequest};

use crate::support::{World, instant, millisecond, pool, read_whole, request, start, task_id};

#[tokio::test(start_paused = true)]
async fn every_reader_sees_the_same_and_can_come_back_anywhere() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    let submitted = orchestrator.submit(request("t", 30)).await.unwrap();
    let mut readers = Vec::new();
    for late_ms in [0, 1, 7, 15, 40, 100] {
        let orchestrator = orchestrator.clone();
        readers.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(late_ms)).await;
            read_whole(orchestrator.stream(&task_id("t"), 0).unwrap()).await
        }));
    }
    let (whole, end) = read_whole(submitted.stream()).await;
    for reader in readers {
        assert_eq!(reader.await.unwrap(), (whole.clone(), end.clone()));
    }
    // Event 0 is `started`, event n + 1 is token n, event 31 the end.
    for from in 0..=32 {
        let mut stream = orchestrator.stream(&task_id("t"), from).unwrap();
        let mut seen = Vec::new();
        while let Some((index, _)) = stream.next().await {
            seen.push(index);
        }
        assert_eq!(seen, (from..32).collect::<Vec<_>>(), "from {from}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_never_reads_holds_up_nobody() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 1, 1, millisecond())]).await;
    let first = orchestrator.submit(request("t", 200)).await.unwrap();
    let mut sleeper = first.stream();
    sleeper.next().await;
    for id in ["u", "v"] {
        assert!(matches!(
            read_whole(orchestrator.submit(request(id, 5)).await.unwrap().stream()).await.1,
            Event::End(_)
        ));
    }
    let (text, end) = sleeper.collect().await;
    assert_eq!(text.split_whitespace().count() > 100, end.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_tokens_on_every_replica() {
    let World { orchestrator, .. } = start(Env::simulated(2), vec![pool("a", 4, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let submits = (0..8).map(|number| {
        let task_id = Some(task_id(&format!("t{number}")));
        orchestrator.submit(TaskRequest { task_id, ..TaskRequest::completion("the sea").max_tokens(16).seed(9) })
    });
    let submitted = futures_util::future::join_all(submits).await;
    let mut texts = std::collections::BTreeSet::new();
    let mut replicas = std::collections::BTreeSet::new();
    for submitted in submitted {
        let submitted = submitted.unwrap();
        texts.insert(read_whole(submitted.stream()).await.0);
        replicas.insert(orchestrator.task(&submitted.task_id).unwrap().replica_id.unwrap());
    }
    assert_eq!((texts.len(), replicas.len()), (1, 4), "one text from four replicas");
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_forgotten_by_number_and_by_age() {
    let retention = RetentionConfig { tasks: 3, age_ms: 60_000, ..RetentionConfig::default() };
    let builder = Orchestrator::builder().config(Config { retention, ..Config::default() }).env(Env::simulated(2));
    let pool = pool("a", 1, 1, instant());
    let orchestrator = builder.pool(pool, orchestrator_core::gpu::SimEngine::new).start().await.unwrap();
    for number in 0..5 {
        let submitted = orchestrator.submit(request(&format!("t{number}"), 2)).await.unwrap();
        read_whole(submitted.stream()).await;
    }
    let known = |id: &str| orchestrator.task(&task_id(id)).is_some();
    assert_eq!([known("t0"), known("t1"), known("t2"), known("t4")], [false, false, true, true]);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let last = orchestrator.submit(request("new", 2)).await.unwrap();
    let stream = last.stream();
    read_whole(last.stream()).await;
    assert_eq!(orchestrator.view().tasks_known, 1, "only the new one");
    assert!(matches!(read_whole(stream).await.1, Event::End(_)), "a reader keeps what it reads");
}
