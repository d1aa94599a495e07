//! What every engine must do, asked of each: servers written from the published API of each engine, which check every
//! field that they are sent, and the real llama.cpp, Triton and vLLM.
//!
//! `cargo xtask engines` installs llama.cpp and Triton; without them the tests say that they were skipped, and with
//! `REQUIRE_ENGINES` they fail. vLLM takes minutes:
//! `cargo xtask engines --vllm && VLLM=1 cargo test --test suite_engines real_vllm_conforms -- --nocapture`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::task::{FinishReason, Sampling, Workload};
use orchestrator_core::{CancelOutcome, Cause, Config, ErrorCode, Event, Orchestrator, TaskRequest, service::engines};
use serde_json::{Value, json};

use crate::support::fakes::{Kind, Server};
use crate::support::real::{self, request};
use crate::support::{alone, eventually, exchange, is_idle, llama, read_whole};

async fn text_of(orchestrator: &Orchestrator, request: TaskRequest) -> (String, Event) {
    let submitted = orchestrator.submit(request).await.unwrap();
    read_whole(submitted.stream()).await
}

fn sampling() -> Sampling {
    Sampling {
        temperature: Some(0.5),
        top_p: Some(0.75),
        top_k: Some(40),
        min_p: None,
        repeat_penalty: Some(1.25),
        stop: vec!["§".into()],
    }
}

/// What every engine must do. `long` is a task that runs for at least a second; `is_idle_now` asks the engine itself
/// whether it computes nothing; `wrong` is a request that it refuses.
async fn conforms(orchestrator: &Orchestrator, long: TaskRequest, wrong: TaskRequest, is_idle_now: impl Fn() -> bool) {
    let name = orchestrator.pools()[0].engine.clone();
    for replica in &orchestrator.pools()[0].replicas {
        let (version, digest) = (replica.engine_version.as_deref().unwrap(), replica.model_digest.as_deref().unwrap());
        assert!(!version.is_empty() && digest.contains(':'), "{version} {digest}");
        println!("{name}: {version}, {digest}, {:?}", replica.self_test.unwrap().determinism_class);
    }
    // The same seed, the same text; and no more than was asked for.
    for number in 0..4 {
        let (text, end) = text_of(orchestrator, request(number)).await;
        let Event::End(end) = end else { panic!("{end:?}") };
        assert!(end.tokens_out <= 24 && !text.is_empty(), "{text:?}");
        assert_eq!(end.finish_reason == FinishReason::Length, end.tokens_out == 24, "{end:?}");
        assert!(end.tokens_in.0 > 0, "{end:?}");
        assert_eq!(text_of(orchestrator, request(number)).await.0, text, "prompt {number}");
    }
    let (short, _) = text_of(orchestrator, request(0).max_tokens(3)).await;
    assert!(text_of(orchestrator, request(0)).await.0.starts_with(&short), "a smaller budget cuts the same text");
    // More at once than it has slots.
    let mut streams = Vec::new();
    for number in 0..12 {
        streams.push(tokio::spawn(read_whole(orchestrator.submit(request(number)).await.unwrap().stream())));
    }
    for stream in streams {
        assert!(matches!(stream.await.unwrap().1, Event::End(_)));
    }
    // Its own figures: busy while it is, and not for long behind it.
    let submitted = orchestrator.submit(long.clone()).await.unwrap();
    let busy = || orchestrator.pools()[0].replicas.iter().filter_map(|replica| replica.engine_slots_busy).sum::<u32>();
    eventually("its figures show the run", || busy() == 1).await;
    orchestrator.cancel(&submitted.task_id);
    eventually("its figures show the run's end", || busy() == 0).await;
    // A cancel at any moment: the slot is free when the engine itself has left the run.
    for tokens in [0, 1, 5, 20] {
        let submitted = orchestrator.submit(long.clone()).await.unwrap();
        let (mut stream, mut seen) = (submitted.stream(), 0);
        while seen < tokens {
            seen += u32::from(matches!(stream.next().await, Some((_, Event::Token { .. }))));
        }
        assert!(
            matches!(orchestrator.cancel(&submitted.task_id), CancelOutcome::Canceled(_)),
            "behind {tokens} tokens"
        );
        eventually("the slot is free", || is_idle(orchestrator)).await;
        assert!(is_idle_now(), "behind {tokens} tokens: our slot is free, and the engine computes");
    }
    // A request that it refuses is the client's fault and nobody else's.
    let (_, end) = text_of(orchestrator, wrong).await;
    let Event::Error(error) = end else { panic!("{end:?}") };
    assert_eq!((error.code, error.retriable), (ErrorCode::InvalidParams, false), "{error}");
    println!("{name}: refuses with {:?}", error.message);
    let view = orchestrator.pools()[0].clone();
    for replica in &view.replicas {
        assert!(replica.state.is_ready());
        assert_eq!((replica.restarts, replica.stop_timeouts, replica.slot_leaks), (0, 0, 0), "{replica:?}");
    }
    let refused = view.replicas.iter().map(|replica| replica.attempts_failed.get(&Cause::Client).unwrap_or(&0));
    assert_eq!(refused.sum::<u64>(), 1);
}

/// What a server that shows what it was sent can show beside that.
async fn fake_conforms(kind: Kind) {
    let server = Server::start(kind).await;
    server.pace_us.store(2_000, SeqCst);
    let mut pool = kind.pool(&[&server]);
    pool.slots = 4;
    if !matches!(kind, Kind::Tgi | Kind::Triton) {
        pool.workloads = vec![Workload::Completion, Workload::Embedding, Workload::Rerank];
    }
    let config = Config { pools: vec![pool], ..Config::default() };
    let orchestrator = engines::builder(config).start().await.unwrap();
    orchestrator.until_ready().await;
    let asked = server.clone();
    let long = TaskRequest::completion("on and on").max_tokens(3_000);
    server.refuse_prompt("no"); // Nothing that passes our own checks is wrong for it otherwise.
    conforms(&orchestrator, long, TaskRequest::completion("no"), || asked.running.load(SeqCst) == 0).await;
    assert_eq!(server.running_max.load(SeqCst), 4, "its slots were used, and no more");
    // Connections are used again.
    server.pace_us.store(0, SeqCst);
    let before = server.connections.load(SeqCst);
    for number in 0..20 {
        text_of(&orchestrator, request(number)).await;
    }
    let opened = server.connections.load(SeqCst) - before;
    assert!(opened <= 2, "{opened} connections for 20 tasks");
    // Every parameter arrives under its name.
    let mut all = TaskRequest { parameters: sampling(), ..TaskRequest::completion("say").max_tokens(2).seed(9) };
    text_of(&orchestrator, all.clone()).await;
    let mut arrived = server.last_body.lock().clone();
    if let Some(slot) = arrived.get_mut("id_slot").map(Value::take) {
        assert!(slot.as_u64() < Some(4), "any of its slots: {slot}");
        arrived.as_object_mut().unwrap().remove("id_slot");
    }
    assert_eq!(arrived, sent(kind), "{kind:?}");
    all.parameters.min_p = Some(0.25);
    let (_, end) = text_of(&orchestrator, all).await;
    match kind {
        Kind::Tgi => assert!(matches!(&end, Event::Error(error) if error.message.contains("min_p")), "{end:?}"),
        _ => assert_eq!(server.last_body.lock()["min_p"], 0.25),
    }
    vectors(kind, &orchestrator).await;
    let complaints: Vec<String> = server.complaints.lock().clone();
    assert!(complaints.is_empty(), "{complaints:?}");
    println!("{kind:?}: conforms; {opened} connections for 20 tasks");
    server.stop();
}

/// Embeddings and rankings, where the engine has them: a result for each input, in their order.
async fn vectors(kind: Kind, orchestrator: &Orchestrator) {
    let texts = || ["four", "four more"].map(str::to_owned).to_vec();
    let requests = [TaskRequest::embedding(texts()), TaskRequest::rerank("which", texts())];
    let wanted = [["[0.5,0.5]", "[1.125,0.5]"], [r#"{"index":0,"score":0.5}"#, r#"{"index":1,"score":1.125}"#]];
    for (request, wanted) in requests.into_iter().zip(wanted) {
        if matches!(kind, Kind::Tgi | Kind::Triton) {
            let error = orchestrator.submit(request).await.err().unwrap();
            assert!(error.message.contains("field 'workload'"), "{error}");
            continue;
        }
        let (text, end) = text_of(orchestrator, request).await;
        assert_eq!(text, wanted.concat());
        assert!(matches!(&end, Event::End(end) if end.tokens_out == 2 && end.tokens_in.0 >= 7), "{end:?}");
    }
}

/// The request with [`sampling`] in the engine's own words.
fn sent(kind: Kind) -> Value {
    match kind {
        Kind::LlamaCpp => {
            json!({"prompt": "say", "n_predict": 2, "seed": 9, "stream": true, "cache_prompt": false,
            "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repeat_penalty": 1.25, "stop": ["§"]})
        }
        Kind::Vllm => json!({"model": "fake", "prompt": "say", "max_tokens": 2, "seed": 9, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true},
            "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.25, "stop": ["§"]}),
        Kind::OpenAi => json!({"model": "fake", "prompt": "say", "max_tokens": 2, "seed": 9, "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.25, "stop": ["§"]}),
        Kind::Tgi => {
            json!({"inputs": "say", "parameters": {"max_new_tokens": 2, "seed": 9, "details": true, "do_sample": true,
            "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.25, "stop": ["§"]}})
        }
        Kind::Triton => json!({"text_input": "say", "max_tokens": 2, "random_seed": 9, "stream": true,
            "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.25, "stop_words": ["§"]}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_llamacpps_published_api_conforms() {
    fake_conforms(Kind::LlamaCpp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_vllms_published_api_conforms() {
    fake_conforms(Kind::Vllm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_tgis_published_api_conforms() {
    fake_conforms(Kind::Tgi).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_tritons_published_api_conforms() {
    fake_conforms(Kind::Triton).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_openais_published_api_conforms() {
    fake_conforms(Kind::OpenAi).await;
}

async fn start(pool: PoolConfig) -> (Arc<Orchestrator>, u16) {
    let orchestrator = Arc::new(real::start(pool).await);
    let pid = orchestrator.pools()[0].replicas[0].engine_process_id.unwrap();
    (orchestrator, llama::port(pid))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_llamacpp_conforms() {
    let Some(pool) = real::llamacpp(1, 2) else { return };
    let _alone = alone().await;
    let (orchestrator, port) = start(pool).await;
    let idle = move || {
        let slots: Vec<Value> = serde_json::from_str(&exchange(port, "GET", "/slots", &[], b"").2).unwrap();
        slots.iter().all(|slot| slot["is_processing"] == false)
    };
    // 0 is below what the server takes, and not below what we do.
    let wrong = TaskRequest { prompt: "long ".repeat(6_000), ..request(0) };
    let wrong = TaskRequest { prompt: wrong.prompt.chars().take(15_000).collect(), ..wrong };
    conforms(&orchestrator, TaskRequest::completion("on and on").max_tokens(3_500), wrong, idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_triton_conforms() {
    let Some(pool) = real::triton(1, 2) else { return };
    let _alone = alone().await;
    let (orchestrator, port) = start(pool).await;
    // It has one instance of the model: a run of ours that went on would hold this one up for seconds.
    let idle = move || {
        let begin = Instant::now();
        let body = json!({"text_input": "x", "max_tokens": 1, "random_seed": 1}).to_string();
        let (status, ..) = exchange(port, "POST", "/v2/models/tiny/generate_stream", &[], body.as_bytes());
        status == 200 && begin.elapsed() < Duration::from_secs(2)
    };
    let wrong = TaskRequest { parameters: Sampling { top_k: Some(3), ..Sampling::default() }, ..request(0) };
    conforms(&orchestrator, TaskRequest::completion("on and on").max_tokens(8_000), wrong, idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_vllm_conforms() {
    let Some(pool) = real::vllm(1, 4) else { return };
    let _alone = alone().await;
    let (orchestrator, port) = start(pool).await;
    let idle = move || {
        let metrics = exchange(port, "GET", "/metrics", &[], b"").2;
        let running = metrics.lines().filter(|line| line.starts_with("vllm:num_requests_running{"));
        running.filter_map(|line| line.rsplit(' ').next()).all(|value| value == "0.0")
    };
    let wrong = TaskRequest { prompt: "x y z ".repeat(600).chars().take(3_000).collect(), ..request(0) };
    conforms(&orchestrator, TaskRequest::completion("on and on").max_tokens(900).seed(23), wrong, idle).await;
}
