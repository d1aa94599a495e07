//! Servers that answer in unusual and legal ways: what they say is taken for what it means, in one attempt, and
//! nothing is suspected.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::{CancelOutcome, Cause, ErrorCode, Event, Orchestrator, TaskRequest};
use parking_lot::Mutex;
use serde_json::json;

use crate::support::fakes::Kind;
use crate::support::scripted::{Asked, Reply, Scripted, pool_at, ready, replica, run, run_well, said, say, start};
use crate::support::{alone, eventually, is_idle};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn request(prompt: &str, tokens: u32) -> TaskRequest {
    TaskRequest::completion(prompt).max_tokens(tokens)
}

/// Nothing is held against the engine.
fn assert_is_well(orchestrator: &Orchestrator) {
    let replica = replica(orchestrator);
    assert!(replica.state.is_ready(), "{replica:?}");
    assert!(replica.attempts_failed.is_empty() && replica.deaths.is_empty(), "{replica:?}");
    assert_eq!((replica.restarts, replica.ejections, replica.consecutive_failures), (0, 0, 0), "{replica:?}");
}

/// An event of OpenAI's shape with text, a reason and the counts of all tokens.
fn last_piece(text: &str, reason: &str, tokens: u32) -> serde_json::Value {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3});
    json!({"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": usage})
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_in_the_event_of_the_last_text_cost_none_of_it() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.on("/v1/completions", |asked, reply| async move {
        reply.begin().await?;
        for text in ["interna", "tiona"] {
            reply.chunk(&Kind::OpenAi.event(text, 1)).await?;
        }
        let tokens = if asked.prompt() == "stop" { 9 } else { 16 };
        reply.event(&last_piece("lisation", asked.prompt(), tokens)).await?;
        reply.chunk("data: [DONE]\n\n").await?;
        reply.end().await
    });
    let orchestrator = ready(pool_at(Kind::OpenAi, server.url())).await;
    for (word, reason, tokens) in [("stop", FinishReason::Stop, 9), ("length", FinishReason::Length, 16)] {
        let (text, end) = run_well(&orchestrator, request(word, 16)).await;
        assert_eq!(text, "internationalisation", "{word}");
        assert_eq!((end.tokens_out, end.tokens_in.0, end.finish_reason), (tokens, 3, reason), "{word}");
        assert_eq!(end.attempts, 1, "{word}");
    }
    assert_is_well(&orchestrator);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_of_several_tokens_costs_is_the_servers_count() {
    let server = Scripted::start().await;
    let smile = |tokens: u32| json!({"content": "🙂", "stop": false, "tokens_predicted": tokens});
    server.describe("", Kind::LlamaCpp, "m", 4096);
    server.on("/completion", move |_, reply| async move {
        reply.begin().await?;
        for tokens in [4, 8, 12] {
            reply.event(&smile(tokens)).await?;
        }
        let last =
            json!({"content": "", "stop": true, "stop_type": "limit", "tokens_predicted": 12, "tokens_evaluated": 3});
        reply.event(&last).await?;
        reply.end().await
    });
    server.describe("/openai", Kind::OpenAi, "m", 4096);
    server.on("/openai/v1/completions", |_, reply| async move {
        reply.begin().await?;
        for index in 1..=3 {
            reply.chunk(&Kind::OpenAi.event("🙂", index)).await?;
        }
        reply.event(&last_piece("", "length", 12)).await?;
        reply.chunk("data: [DONE]\n\n").await?;
        reply.end().await
    });
    for (kind, url) in [(Kind::LlamaCpp, server.url()), (Kind::OpenAi, server.url() + "/openai")] {
        let orchestrator = ready(pool_at(kind, url)).await;
        let (text, end) = run_well(&orchestrator, request("smile", 12)).await;
        assert_eq!(text, "🙂🙂🙂", "{kind:?}");
        assert_eq!((end.tokens_out, end.finish_reason, end.attempts), (12, FinishReason::Length, 1), "{kind:?}");
        assert_is_well(&orchestrator);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_before_the_first_token_are_signs_of_life() {
    let _alone = alone().await;
    for kind in [Kind::OpenAi, Kind::LlamaCpp] {
        let server = Scripted::start().await;
        server.describe("", kind, "m", 4096);
        server.on(kind.stream_path(), move |asked, reply| async move {
            reply.begin().await?;
            for _ in 0..20 {
                reply.chunk(":\n\n").await?;
                tokio::time::sleep(ms(100)).await;
            }
            for number in 0..asked.budget() {
                reply.chunk(&kind.event(&format!("w{number} "), number + 1)).await?;
            }
            reply.chunk(&kind.last("length", asked.budget())).await?;
            reply.end().await
        });
        let mut pool = pool_at(kind, server.url());
        pool.timeouts.idle_ms = 800;
        let orchestrator = ready(pool).await;
        let (text, end) = run_well(&orchestrator, request("a long prompt", 4)).await;
        assert_eq!((text, end.attempts), (said("w", 4), 1), "{kind:?}");
        assert!(end.first_token_ms > Some(1_500.0), "{kind:?}: {end:?}");
        assert_eq!(server.asked(kind.stream_path()).len(), 1, "{kind:?}");
        assert_is_well(&orchestrator);
    }
}

/// A llama.cpp server that is silent about its first token, and what its pool may wait for that.
async fn silent(script: impl Fn(Asked, Reply) -> Silent + Send + Sync + 'static) -> (Scripted, Orchestrator) {
    let server = Scripted::start().await;
    server.describe("", Kind::LlamaCpp, "m", 4096);
    server.on("/completion", script);
    let mut pool = pool_at(Kind::LlamaCpp, server.url());
    (pool.timeouts.idle_ms, pool.resume.on_loss) = (2_000, Some(OnLoss::Fail));
    let orchestrator = ready(pool).await;
    (server, orchestrator)
}

type Silent = std::pin::Pin<Box<dyn Future<Output = Answered> + Send>>;
type Answered = std::io::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_evaluated_further_is_a_sign_of_life() {
    let _alone = alone().await;
    let goes_on = Arc::new(tokio::sync::Notify::new());
    let speaks = goes_on.clone();
    let (server, orchestrator) = silent(move |asked, reply| {
        let speaks = speaks.clone();
        Box::pin(async move {
            speaks.notified().await; // Not one byte before that.
            say(Kind::LlamaCpp, "w", Duration::ZERO, &asked, &reply).await
        })
    })
    .await;
    let submitted = orchestrator.submit(request("a long prompt", 4)).await.unwrap();
    for done in 1..=25 {
        server.set_prompt_done(done * 64);
        tokio::time::sleep(ms(200)).await;
    }
    goes_on.notify_one();
    let (text, end) = submitted.stream().collect().await;
    let Some(Event::End(end)) = end else { panic!("{end:?}") };
    assert_eq!((text, end.attempts), (said("w", 4), 1));
    assert!(end.first_token_ms > Some(4_000.0), "{end:?}");
    assert_is_well(&orchestrator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_stands_still_has_the_idle_timeout() {
    let _alone = alone().await;
    let (server, orchestrator) = silent(|_, _| Box::pin(std::future::pending::<Answered>())).await;
    server.set_prompt_done(64);
    let begun = Instant::now();
    let (text, end) = run(&orchestrator, request("a long prompt", 4)).await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!((text.as_str(), error.code), ("", ErrorCode::DecodeTimeout), "{error}");
    assert!(error.message.contains("idle timeout"), "{error}");
    // The first look finds something, and no later one.
    assert!((ms(2_000)..ms(10_000)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(server.asked("/completion").len(), 1);
    assert_eq!(replica(&orchestrator).attempts_failed, BTreeMap::from([(Cause::Hung, 1)]));
}

/// Tokens that all slots of [`sharing`] have together.
const SHARED_CTX: u32 = 200;

/// What runs of a context that they share: how many tokens each has, and whether it has heard that the context is full.
type Running = Mutex<BTreeMap<u64, (u32, bool)>>;

/// One more token for this run; `false` when the context has no room for it, or had none for another's.
fn takes(running: &Running, run: u64) -> bool {
    let mut running = running.lock();
    running.get_mut(&run).unwrap().0 += 1;
    if running.values().map(|(tokens, _)| tokens).sum::<u32>() > SHARED_CTX {
        running.values_mut().for_each(|(_, is_full)| *is_full = true);
    }
    !running[&run].1
}

/// A llama.cpp server whose slots share one context: when it is full, each run hears so.
async fn sharing(asked: Asked, reply: Reply, running: Arc<Running>, run: u64) -> Answered {
    struct Runs(Arc<Running>, u64);
    impl Drop for Runs {
        fn drop(&mut self) {
            self.0.lock().remove(&self.1);
        }
    }
    running.lock().insert(run, (0, false));
    let _runs = Runs(running.clone(), run);
    reply.begin().await?;
    for number in 0..asked.budget() {
        if !takes(&running, run) {
            let error = json!({"code": 500, "message": "Context size has been exceeded.", "type": "server_error"});
            reply.event(&json!({"error": error})).await?;
            return reply.end().await;
        }
        reply.chunk(&Kind::LlamaCpp.event(&format!("w{number} "), number + 1)).await?;
        tokio::time::sleep(ms(1)).await;
    }
    reply.chunk(&Kind::LlamaCpp.last("length", asked.budget())).await?;
    reply.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_four_runs_share_and_fill_is_given_to_one_at_a_time() {
    let server = Scripted::start().await;
    server.describe("", Kind::LlamaCpp, "m", SHARED_CTX);
    let (running, runs) = (Arc::new(Running::default()), AtomicU64::new(0));
    server.on("/completion", move |asked, reply| sharing(asked, reply, running.clone(), runs.fetch_add(1, SeqCst)));
    let orchestrator = ready(pool_at(Kind::LlamaCpp, server.url())).await;
    let mut streams = Vec::new();
    for number in 0..4 {
        let task = request("hi", 120).seed(number);
        streams.push(tokio::spawn(orchestrator.submit(task).await.unwrap().stream().collect()));
    }
    for stream in streams {
        let (text, end) = stream.await.unwrap();
        let Some(Event::End(end)) = end else { panic!("{end:?}") };
        assert_eq!((text, end.tokens_out, end.attempts), (said("w", 120), 120, 1), "others took the room");
    }
    let replica = replica(&orchestrator);
    assert!(replica.attempts_failed[&Cause::ContextFull] >= 2, "{replica:?}");
    assert_eq!((replica.restarts, replica.ejections), (0, 0), "nothing is suspected: {replica:?}");
    assert_eq!(replica.kv_tokens, Some(SHARED_CTX.into()), "from now on tasks are placed by it");
    assert_eq!(replica.slots_usable, 4, "one want of room is told by each run, and costs no slot: the room is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_context_has_cut_says_so() {
    for kind in [Kind::OpenAi, Kind::LlamaCpp] {
        let server = Scripted::start().await;
        server.describe("", kind, "m", 4096);
        server.on(kind.stream_path(), move |_, reply| async move {
            reply.begin().await?;
            for index in 1..=3 {
                reply.chunk(&kind.event("w ", index)).await?;
            }
            let last = json!({"content": "", "stop": true, "stop_type": "limit", "truncated": true});
            match kind {
                Kind::LlamaCpp => reply.event(&last).await?,
                _ => reply.chunk(&kind.last("length", 3)).await?,
            }
            reply.end().await
        });
        let orchestrator = ready(pool_at(kind, server.url())).await;
        let (text, end) = run_well(&orchestrator, request("x", 16)).await;
        let end = serde_json::to_value(&end).unwrap();
        assert_eq!(
            (text.as_str(), &end["finish_reason"], &end["cut_by"]),
            ("w w w ", &json!("length"), &json!("context"))
        );
        assert_eq!((&end["tokens_out"], &end["attempts"]), (&json!(3), &json!(1)), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_no_figures_in_its_own_way_serves_and_is_left() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.say("", Kind::OpenAi, "w", ms(2));
    server.gives("/metrics", "400 Bad Request", "", "no figures, please".into());
    let mut pool = pool_at(Kind::OpenAi, server.url());
    pool.self_test = true; // It stops a run, too.
    let orchestrator = ready(pool).await;
    let submitted = orchestrator.submit(request("on and on", 2_000)).await.unwrap();
    let mut stream = submitted.stream();
    while !matches!(stream.next().await, Some((_, Event::Token { .. }))) {}
    assert!(matches!(orchestrator.cancel(&submitted.task_id), CancelOutcome::Canceled(_)));
    eventually("the slot is free", || is_idle(&orchestrator)).await;
    assert!(!server.asked("/metrics").is_empty());
    assert_eq!(replica(&orchestrator).stop_timeouts, 0);
    assert_is_well(&orchestrator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_of_several_models_is_named_as_the_reason() {
    let server = Scripted::start().await;
    server.describe("", Kind::LlamaCpp, "m", 4096);
    server.gives("/props", "200 OK", "", json!({"role": "router", "build_info": "b1", "models_max": 4}).to_string());
    let orchestrator = start(pool_at(Kind::LlamaCpp, server.url())).await;
    let reason = || orchestrator.overview().pools[0].reason.clone().unwrap_or_default();
    eventually("the reason is said", || reason().contains("router of several models")).await;
    assert_eq!(replica(&orchestrator).preload_successes, 0);
    assert!(server.asked("/completion").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_finish_reason_silence_is_the_end() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.on("/v1/completions", |_, reply| async move {
        reply.begin().await?;
        reply.chunk(&Kind::OpenAi.event("all ", 1)).await?;
        reply.event(&json!({"choices": [{"index": 0, "text": "said", "finish_reason": "stop"}]})).await?;
        std::future::pending::<Answered>().await
    });
    let orchestrator = ready(pool_at(Kind::OpenAi, server.url())).await;
    let begun = Instant::now();
    let (text, end) = run_well(&orchestrator, request("x", 16)).await;
    assert_eq!((text.as_str(), end.finish_reason, end.attempts), ("all said", FinishReason::Stop, 1));
    assert!(begun.elapsed() < ms(15_000), "half of the idle timeout at most: {:?}", begun.elapsed());
    eventually("the slot is free", || is_idle(&orchestrator)).await;
    assert_is_well(&orchestrator);
}

/// An answer whose end HTTP tells, and no word of it.
async fn without_a_reason(reply: &Reply, tokens: u32) -> Answered {
    reply.begin().await?;
    for number in 0..tokens {
        reply.chunk(&Kind::OpenAi.event(&format!("w{number} "), number + 1)).await?;
    }
    reply.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_reason_is_cut_where_the_server_tells_its_ends() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    let asked_before = AtomicU64::new(0);
    server.on("/v1/completions", move |asked, reply| {
        let is_second = asked_before.fetch_add(1, SeqCst) == 1;
        async move {
            match is_second {
                true => without_a_reason(&reply, 3).await,
                false => say(Kind::OpenAi, "w", Duration::ZERO, &asked, &reply).await,
            }
        }
    });
    let orchestrator = ready(pool_at(Kind::OpenAi, server.url())).await;
    for attempts in [1, 2] {
        let (text, end) = run_well(&orchestrator, request("x", 8)).await;
        assert_eq!((text, end.attempts), (said("w", 8), attempts));
    }
    assert_eq!(replica(&orchestrator).attempts_failed, BTreeMap::from([(Cause::Lost, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_reason_is_whole_where_the_server_never_gives_one() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.on("/v1/completions", |_, reply| async move { without_a_reason(&reply, 3).await });
    let orchestrator = ready(pool_at(Kind::OpenAi, server.url())).await;
    for _ in 0..3 {
        let (text, end) = run_well(&orchestrator, request("x", 8)).await;
        assert_eq!((text, end.finish_reason, end.attempts), (said("w", 3), FinishReason::Stop, 1));
    }
    assert_is_well(&orchestrator);
}
