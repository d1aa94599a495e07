//! A pool answers with one model: a server that is exchanged for one with another gets no task until the pool is
//! reloaded, however soon the next task comes (ORCH-3046).
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::time::Duration;

use orchestrator_core::config::ReplicaConfig;
use orchestrator_core::core::PoolId;
use orchestrator_core::{Event, ModelChange, Orchestrator, ReloadState, TaskId, TaskRequest};

use crate::support::fakes::Kind;
use crate::support::scripted::{Scripted, pool_at, ready, replica, run_well, said, start};
use crate::support::{eventually, pool_id, read_whole};

const CTX: u32 = 4096;
const TOKENS: u32 = 4;

fn request() -> TaskRequest {
    TaskRequest::completion("who are you").max_tokens(TOKENS)
}

fn the_pool() -> PoolId {
    pool_id("p")
}

/// Ends the server and starts another at its port, with this model.
async fn exchange(server: &Scripted, kind: Kind, model: &str, ctx: u32) -> Scripted {
    server.stop().await;
    let other = Scripted::at(server.port).await;
    other.be("", kind, model, ctx);
    other
}

/// Submits a task if the pool takes one now.
async fn submit(orchestrator: &Orchestrator) -> Option<TaskId> {
    orchestrator.submit(request()).await.ok().map(|submitted| submitted.task_id)
}

/// Ends a task and returns its text.
async fn text_so_far(orchestrator: &Orchestrator, task: &TaskId) -> String {
    orchestrator.cancel(task); // It may have ended by itself.
    orchestrator.stream(task, 0).unwrap().collect().await.0
}

async fn until_refused(orchestrator: &Orchestrator, times: u64) {
    eventually("its model is refused", || replica(orchestrator).preload_failures >= times).await;
}

async fn is_refused_until_a_reload(kind: Kind) {
    let first = Scripted::start().await;
    first.be("", kind, "first", CTX);
    let orchestrator = ready(pool_at(kind, first.url())).await;
    assert_eq!(run_well(&orchestrator, request()).await.0, said("first", TOKENS));
    let second = exchange(&first, kind, "second", CTX).await;
    eventually("the exchange is noticed", || !replica(&orchestrator).state.is_ready()).await;
    let mut tasks = Vec::new();
    for times in 1..=3 {
        until_refused(&orchestrator, times).await;
        assert!(!replica(&orchestrator).state.is_ready(), "{kind:?}");
        tasks.extend(submit(&orchestrator).await);
    }
    let reason = orchestrator.overview().pools[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("another model") && reason.contains("reload the pool"), "{kind:?}: {reason}");
    assert!(second.asked(kind.stream_path()).is_empty(), "{kind:?}: it gets no task");
    for task in &tasks {
        assert_eq!(text_so_far(&orchestrator, task).await, "", "{kind:?}");
    }
    orchestrator.reload(&the_pool(), &ModelChange::default()).unwrap();
    let reload = orchestrator.until_reloaded(&the_pool()).await.unwrap();
    assert_eq!(reload.state, ReloadState::Done, "{kind:?}: {:?}", reload.reason);
    assert_eq!(run_well(&orchestrator, request()).await.0, said("second", TOKENS), "{kind:?}: now it is meant");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_server_with_another_model_gets_no_task_until_the_pool_is_reloaded() {
    is_refused_until_a_reload(Kind::OpenAi).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_llamacpp_server_with_another_file_gets_no_task_until_the_pool_is_reloaded() {
    is_refused_until_a_reload(Kind::LlamaCpp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_task_behind_an_exchange_is_not_answered_by_the_other_model() {
    for kind in [Kind::OpenAi, Kind::LlamaCpp] {
        let first = Scripted::start().await;
        first.be("", kind, "first", CTX);
        let orchestrator = ready(pool_at(kind, first.url())).await;
        for _ in 0..3 {
            assert_eq!(run_well(&orchestrator, request()).await.0, said("first", TOKENS));
        }
        let _second = exchange(&first, kind, "second", CTX).await;
        // At once: the look of each second comes too late for it, or has taken the replica out of service already.
        let task = submit(&orchestrator).await;
        until_refused(&orchestrator, 1).await;
        if let Some(task) = task {
            assert_eq!(text_so_far(&orchestrator, &task).await, "", "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_with_different_files_one_serves() {
    let server = Scripted::start().await;
    server.be("/0", Kind::LlamaCpp, "alpaca", CTX);
    server.be("/1", Kind::LlamaCpp, "vicuna", CTX);
    let mut pool = pool_at(Kind::LlamaCpp, server.url() + "/{index}");
    pool.replicas = vec![ReplicaConfig::default(); 2];
    let orchestrator = start(pool).await;
    eventually("one serves, and the other is refused", || {
        let replicas = orchestrator.pools()[0].replicas.clone();
        let ready = replicas.iter().filter(|replica| replica.state.is_ready()).count();
        ready == 1 && replicas.iter().any(|replica| replica.preload_failures >= 2)
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(tokio::spawn(read_whole(orchestrator.submit(request()).await.unwrap().stream())));
    }
    let mut texts = BTreeSet::new();
    for stream in streams {
        let (text, end) = stream.await.unwrap();
        assert!(matches!(end, Event::End(_)), "{end:?}");
        texts.insert(text);
    }
    assert_eq!(texts.len(), 1, "one model: {texts:?}");
    let asked = ["/0/completion", "/1/completion"].map(|path| server.asked(path).len());
    assert!(asked == [20, 0] || asked == [0, 20], "{asked:?}");
    assert_eq!(orchestrator.pools()[0].replicas.iter().filter(|replica| replica.state.is_ready()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_length_of_the_context_is_no_other_model() {
    for kind in [Kind::OpenAi, Kind::LlamaCpp] {
        let first = Scripted::start().await;
        first.be("", kind, "same", CTX);
        let orchestrator = ready(pool_at(kind, first.url())).await;
        assert_eq!(run_well(&orchestrator, request()).await.0, said("same", TOKENS));
        let second = exchange(&first, kind, "same", CTX * 2).await;
        let (text, end) = run_well(&orchestrator, request()).await;
        assert_eq!((text, end.attempts), (said("same", TOKENS), 1), "{kind:?}");
        eventually("it was looked at", || second.asked("/v1/models").len() >= 3).await;
        tokio::time::sleep(Duration::from_millis(100)).await; // The last look has its answer by now.
        let replica = replica(&orchestrator);
        assert!(replica.state.is_ready() && replica.restarts == 0 && replica.attempts_failed.is_empty(), "{replica:?}");
        assert_eq!(run_well(&orchestrator, request()).await.0, said("same", TOKENS), "{kind:?}");
    }
}

/// `transformers serve` of a folder lists what was downloaded, and that is nothing; it tells no version either.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lists_no_model_serves_the_one_that_it_is_asked_for() {
    let server = Scripted::start().await;
    server.be("", Kind::OpenAi, "folder", CTX);
    server.gives("/v1/models", "200 OK", "", r#"{"object": "list", "data": []}"#.into());
    let pool = pool_at(Kind::OpenAi, server.url());
    let name = pool.model.clone();
    let orchestrator = ready(pool).await;
    assert_eq!(run_well(&orchestrator, request()).await.0, said("folder", TOKENS));
    let asked = server.asked(Kind::OpenAi.stream_path());
    assert!(asked.iter().all(|asked| asked.body["model"] == name.as_str()), "it is asked for the pool's model");
    eventually("it was looked at", || server.asked("/v1/models").len() >= 3).await;
    assert!(replica(&orchestrator).state.is_ready());
    server.gives("/v1/models", "200 OK", "", r#"{"object": "list", "data": [{"id": "another"}]}"#.into());
    eventually("what it lists now is another model", || !replica(&orchestrator).state.is_ready()).await;
}
