//! Servers of every engine that do everything wrong: each way has one documented outcome, takes bounded memory, and
//! leaves the worker fit for the next task.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::task::{FinishReason, Workload};
use orchestrator_core::service::engines;
use orchestrator_core::{Config, ErrorCode, Event, Orchestrator, TaskRequest};

use crate::support::engine_faults::{Outcome, TEXT, WAYS, outcome};
use crate::support::fakes::{Kind, Server};
use crate::support::scripted::{Scripted, pool_at, ready};
use crate::support::{eventually, is_idle, read_whole};

const IDLE_MS: u64 = 400;

async fn run(orchestrator: &Orchestrator) -> (String, Event) {
    let submitted = loop {
        // Behind a misdeed the engine is looked at first.
        match orchestrator.submit(TaskRequest::completion("say something").max_tokens(64)).await {
            Ok(submitted) => break submitted,
            Err(error) => {
                tokio::time::sleep(Duration::from_millis(error.retry_after_ms.expect("says when").min(20))).await;
            }
        }
    };
    read_whole(submitted.stream()).await
}

/// How long a task may run, and wait for an engine that says that it is busy, in milliseconds.
const WALL_MS: u64 = 3_000;

async fn every_way_of(kind: Kind) {
    let server = Server::start(kind).await;
    let mut pool = kind.pool(&[&server]);
    (pool.timeouts.idle_ms, pool.resume.on_loss, pool.restart.intensity) = (IDLE_MS, Some(OnLoss::Fail), 1_000);
    pool.restart.backoff_ms = 1;
    (pool.resume.ejection_ms, pool.resume.ejection_max_ms, pool.timeouts.wall_ms) = (1, 50, WALL_MS);
    let config = Config { pools: vec![pool], ..Config::default() };
    let orchestrator = engines::builder(config).start().await.unwrap();
    orchestrator.until_ready().await;
    for (way, (name, _)) in WAYS.into_iter().enumerate().skip(1) {
        let name = format!("{kind:?}, {name}");
        server.way.store(way, SeqCst);
        server.sent.store(0, SeqCst);
        let (text, end) = run(&orchestrator).await;
        match (outcome(kind, way), &end) {
            (Outcome::Whole, Event::End(end)) => {
                assert_eq!((text.as_str(), end.finish_reason), (TEXT, FinishReason::Stop), "{name}");
            }
            (Outcome::Budget, Event::End(end)) => {
                assert_eq!((end.tokens_out, end.finish_reason), (64, FinishReason::Length), "{name}");
            }
            (Outcome::Fails(code), Event::Error(error)) => {
                assert_eq!(error.code, code, "{name}: {error}");
                assert_eq!(error.retriable, code != ErrorCode::InvalidParams, "{name}: {error}");
                assert!(TEXT.starts_with(&text), "{name}: what was seen is a part of the text: {text:?}");
                println!("{name:46} {code}: {}", error.message.chars().take(100).collect::<String>());
            }
            (want, _) => panic!("{name}: {end:?} instead of {want:?}"),
        }
        // What is read beyond the longest event is what the sockets' own buffers hold.
        let sent = server.sent.load(SeqCst) >> 20;
        assert!(sent <= 32, "{name}: {sent} MiB were taken");
        server.way.store(0, SeqCst);
        let (text, end) = run(&orchestrator).await;
        assert!(
            !text.is_empty() && matches!(end, Event::End(_)),
            "the task behind {name:?} is served: {text:?} {end:?}"
        );
        eventually("the slot is free", || is_idle(&orchestrator)).await;
    }
    let restarts = orchestrator.pools()[0].replicas[0].restarts;
    println!("{kind:?}: {} ways, one outcome each; the worker was restarted {restarts} times", WAYS.len() - 1);
    assert!(server.complaints.lock().is_empty(), "{:?}", server.complaints.lock());
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_llamacpp_has_one_documented_outcome() {
    every_way_of(Kind::LlamaCpp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_vllm_has_one_documented_outcome() {
    every_way_of(Kind::Vllm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_tgi_has_one_documented_outcome() {
    every_way_of(Kind::Tgi).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_triton_has_one_documented_outcome() {
    every_way_of(Kind::Triton).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misbehaviour_of_an_openai_server_has_one_documented_outcome() {
    every_way_of(Kind::OpenAi).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_that_is_longer_than_any_is_not_taken_in() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.on("/v1/embeddings", |asked, reply| async move {
        let numbers: usize = asked.body["input"][0].as_str().unwrap().parse().unwrap();
        let vector = vec!["0"; numbers].join(",");
        let body = format!(r#"{{"data":[{{"index":0,"embedding":[{vector}]}}]}}"#);
        reply.whole("200 OK", "", &body).await
    });
    let mut pool = pool_at(Kind::OpenAi, server.url());
    (pool.workloads, pool.resume.on_loss) = (vec![Workload::Embedding], Some(OnLoss::Fail));
    let orchestrator = ready(pool).await;
    let embed = async |numbers: usize| {
        let request = TaskRequest::embedding(vec![numbers.to_string()]);
        read_whole(orchestrator.submit(request).await.unwrap().stream()).await
    };
    let (text, end) = embed(3).await;
    assert!(text == "[0.0,0.0,0.0]" && matches!(end, Event::End(_)), "{text} {end:?}");
    let (text, end) = embed(65_536).await;
    assert!(text.len() == 4 * 65_536 + 1 && matches!(end, Event::End(_)), "{end:?}");
    // More numbers than a vector has, and more bytes than are read for one input.
    for (numbers, said) in [(65_537, "more than 65536 numbers"), (2_000_000, "longer than 589824 bytes")] {
        let (text, end) = embed(numbers).await;
        let Event::Error(error) = end else { panic!("{numbers}: {end:?}") };
        assert!(text.is_empty() && error.message.contains(said), "{numbers}: {error}");
    }
}
