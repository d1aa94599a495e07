//! Engines that say no: one that is busy is left alone for as long as it asks, one that fails everything costs its
//! share and no task, and what is refused for good ends after one request (ORCH-3040).
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use orchestrator_core::config::ReplicaConfig;
use orchestrator_core::{Cause, ErrorCode, Event, Orchestrator, TaskRequest};

use crate::support::fakes::Kind;
use crate::support::scripted::{Scripted, pool_at, ready, replica, run, run_well, said, say, start};
use crate::support::{eventually, read_whole};

const TOKENS: u32 = 10;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn request() -> TaskRequest {
    TaskRequest::completion("x").max_tokens(TOKENS)
}

/// A server that refuses its first requests with this status, and the only slot of its pool.
async fn refusing(first: usize, status: &'static str, headers: &'static str) -> (Scripted, Orchestrator) {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    let asked_before = AtomicUsize::new(0);
    server.on("/v1/completions", move |asked, reply| {
        let is_refused = asked_before.fetch_add(1, SeqCst) < first;
        async move {
            match is_refused {
                true => reply.whole(status, headers, r#"{"error":{"message":"too much to do"}}"#).await,
                false => say(Kind::OpenAi, "w", Duration::ZERO, &asked, &reply).await,
            }
        }
    });
    let mut pool = pool_at(Kind::OpenAi, server.url());
    (pool.slots, pool.resume.ejection_ms) = (1, 100);
    let orchestrator = ready(pool).await;
    (server, orchestrator)
}

/// Runs so many tasks side by side. Each ends well, in what counts as one attempt.
async fn run_side_by_side(orchestrator: &Orchestrator, tasks: u64) {
    let mut streams = Vec::new();
    for number in 0..tasks {
        let submitted = orchestrator.submit(request().seed(number)).await.unwrap();
        streams.push(tokio::spawn(read_whole(submitted.stream())));
    }
    for stream in streams {
        let (text, end) = stream.await.unwrap();
        let Event::End(end) = end else { panic!("{text:?}, then {end:?}") };
        assert_eq!((text, end.tokens_out, end.attempts), (said("w", TOKENS), TOKENS, 1));
    }
}

/// Times between one request and the next.
fn gaps(server: &Scripted) -> Vec<Duration> {
    let asked = server.asked("/v1/completions");
    asked.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

/// The engine was busy so often, and that is all that is known of it.
fn assert_was_busy(orchestrator: &Orchestrator, times: u64) {
    let replica = replica(orchestrator);
    assert_eq!(replica.attempts_failed, BTreeMap::from([(Cause::Busy, times)]), "{replica:?}");
    assert!(replica.state.is_ready() && replica.deaths.is_empty(), "{replica:?}");
    assert_eq!((replica.restarts, replica.ejections), (0, times), "{replica:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_busy_is_asked_again_when_it_said_and_no_task_is_lost() {
    let (server, orchestrator) = refusing(2, "503 Service Unavailable", "retry-after: 1\r\n").await;
    run_side_by_side(&orchestrator, 5).await;
    let gaps = gaps(&server);
    assert_eq!(gaps.len(), 6, "two refusals and five answers");
    assert!(gaps[..2].iter().all(|gap| *gap >= ms(999)), "not before the time that was asked for: {gaps:?}");
    assert_was_busy(&orchestrator, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_say_for_how_long_it_is_busy_gets_waits_that_grow() {
    let (server, orchestrator) = refusing(4, "429 Too Many Requests", "").await;
    run_side_by_side(&orchestrator, 3).await;
    let gaps = gaps(&server);
    for (gap, at_least) in gaps.iter().zip([100, 200, 400, 800]) {
        assert!(*gap >= ms(at_least - 1), "{gaps:?}");
    }
    assert_was_busy(&orchestrator, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_fails_all_at_once_gets_few_tasks_and_loses_none() {
    let server = Scripted::start().await;
    for prefix in ["/0", "/1"] {
        server.describe(prefix, Kind::OpenAi, "m", 4096);
    }
    server.say("/0", Kind::OpenAi, "w", ms(10));
    server.gives("/1/v1/completions", "500 Internal Server Error", "", "oops".into());
    let mut pool = pool_at(Kind::OpenAi, server.url() + "/{index}");
    (pool.slots, pool.replicas) = (2, vec![ReplicaConfig::default(); 2]);
    let orchestrator = start(pool).await;
    let is_ready = || orchestrator.pools()[0].replicas.iter().all(|replica| replica.state.is_ready());
    eventually("both are Ready", is_ready).await;
    let mut streams = Vec::new();
    for number in 0..30 {
        let submitted = orchestrator.submit(request().seed(number)).await.unwrap();
        streams.push(tokio::spawn(read_whole(submitted.stream())));
    }
    for stream in streams {
        let (text, end) = stream.await.unwrap();
        assert!(matches!(end, Event::End(_)) && text == said("w", TOKENS), "{text:?}, then {end:?}");
    }
    let refused = server.asked("/1/v1/completions").len();
    assert!((1..8).contains(&refused), "{refused} requests were lost on it");
    assert_eq!(server.asked("/0/v1/completions").len(), 30, "each was answered once");
    let replicas = orchestrator.pools()[0].replicas.clone();
    assert!(replicas.iter().all(|replica| replica.restarts == 0), "its health is good: {replicas:?}");
    assert!(replicas[1].consecutive_failures >= 1 && replicas[0].consecutive_failures == 0, "{replicas:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_for_a_busy_engine_ends_at_its_deadline() {
    let (server, orchestrator) = refusing(usize::MAX, "503 Service Unavailable", "retry-after: 30\r\n").await;
    let begun = Instant::now();
    let (text, end) = run(&orchestrator, TaskRequest { deadline: Some(ms(800)), ..request() }).await;
    let took = begun.elapsed();
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!((text.as_str(), error.code), ("", ErrorCode::DecodeTimeout), "{error}");
    assert!(error.message.contains("deadline"), "{error}");
    assert!((ms(800)..ms(10_000)).contains(&took), "{took:?}");
    assert_eq!(server.asked("/v1/completions").len(), 1);
    assert_was_busy(&orchestrator, 1);
}

/// Refusals for good: a status, or none for an event of a stream that has begun, and the words.
const FOR_GOOD: [(&str, &str); 16] = [
    (
        "400 Bad Request",
        r#"{"error":{"message":"no","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
    ),
    ("402 Payment Required", r#"{"error":{"message":"no credit is left"}}"#),
    ("403 Forbidden", r#"{"error":{"message":"blocked by policy"}}"#),
    ("413 Content Too Large", "too large"),
    ("422 Unprocessable Content", r#"{"error":"no","error_type":"validation"}"#),
    ("429 Too Many Requests", r#"{"error":{"message":"no","type":"insufficient_quota"}}"#),
    ("451 Unavailable For Legal Reasons", ""),
    ("500 Internal Server Error", r#"{"error":{"message":"no","type":"invalid_request_error"}}"#),
    ("", r#"{"error":{"message":"no","code":400}}"#),
    ("", r#"{"error":{"message":"no","code":"400"}}"#),
    ("", r#"{"error":{"message":"no","code":"context_length_exceeded","type":"invalid_request_error"}}"#),
    ("", r#"{"error":{"message":"no","code":null,"type":"invalid_request_error"}}"#),
    ("", r#"{"error":{"message":"no","type":"BadRequestError"}}"#),
    ("", r#"{"error":{"message":"no","http_status_code":422}}"#),
    ("", r#"{"error":"no","error_type":"validation"}"#),
    ("", r#"{"object":"error","message":"no","code":400}"#),
];

/// A server that refuses each prompt, the number of a row, as the row says.
async fn refusing_for_good(kind: Kind) -> Scripted {
    let server = Scripted::start().await;
    server.describe("", kind, "m", 4096);
    server.on(kind.stream_path(), |asked, reply| async move {
        let (status, words) = FOR_GOOD[asked.prompt().parse::<usize>().unwrap()];
        if !status.is_empty() {
            return reply.whole(status, "", words).await;
        }
        reply.begin().await?;
        reply.chunk(&format!("data: {words}\n\n")).await?;
        reply.end().await
    });
    server
}

async fn each_refusal_is_final(kind: Kind, rows: impl Iterator<Item = usize>) {
    let server = refusing_for_good(kind).await;
    let orchestrator = ready(pool_at(kind, server.url())).await;
    let mut refused = 0;
    for row in rows {
        let about = format!("{kind:?}, {:?}", FOR_GOOD[row]);
        let (text, end) = run(&orchestrator, TaskRequest::completion(row.to_string()).max_tokens(8)).await;
        let Event::Error(error) = end else { panic!("{about}: {end:?}") };
        assert_eq!((text.as_str(), error.code, error.retriable), ("", ErrorCode::InvalidParams, false), "{about}");
        refused += 1;
        assert_eq!(server.asked(kind.stream_path()).len(), refused, "{about}: one request");
    }
    let replica = replica(&orchestrator);
    assert_eq!(replica.attempts_failed, BTreeMap::from([(Cause::Client, refused as u64)]), "{kind:?}");
    assert_eq!((replica.restarts, replica.ejections, replica.consecutive_failures), (0, 0, 0), "{kind:?}");
    assert!(replica.state.is_ready(), "{kind:?}: nobody is suspected");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_for_good_ends_after_one_request_and_nobody_is_suspected() {
    each_refusal_is_final(Kind::OpenAi, 0..FOR_GOOD.len()).await;
    // Its own words come as an object beside `error`.
    each_refusal_is_final(Kind::LlamaCpp, (0..FOR_GOOD.len()).filter(|row| FOR_GOOD[*row].1.contains("error\":")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_in_the_middle_of_a_stream_ends_it_there() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.on("/v1/completions", |asked, reply| async move {
        if asked.prompt() == "well" {
            return say(Kind::OpenAi, "w", Duration::ZERO, &asked, &reply).await;
        }
        reply.begin().await?;
        reply.chunk(&Kind::OpenAi.event("said ", 1)).await?;
        reply.chunk("data: {\"error\":{\"message\":\"blocked by policy\",\"code\":403}}\n\n").await?;
        reply.end().await
    });
    let orchestrator = ready(pool_at(Kind::OpenAi, server.url())).await;
    let (text, end) = run(&orchestrator, request()).await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!((text.as_str(), error.code), ("said ", ErrorCode::InvalidParams), "{error}");
    assert!(error.message.contains("blocked by policy"), "{error}");
    assert_eq!(server.asked("/v1/completions").len(), 1);
    let (text, _) = run_well(&orchestrator, TaskRequest::completion("well").max_tokens(3)).await;
    assert_eq!((text, replica(&orchestrator).ejections), (said("w", 3), 0));
}
