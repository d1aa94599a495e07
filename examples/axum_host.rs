//! A host with routes of its own, two engines and tenants, on axum: `cargo run --example axum_host --features metrics`.
//!
//! `POST /generate` streams server-sent events; whoever closes the connection ends its task. `GET /metrics` is for
//! Prometheus, `GET /events` counts what has happened. Ctrl-C drains for ten seconds at most.

#![allow(clippy::print_stdout)] // A program that prints.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use orchestrator_core::config::ClientConfig;
use orchestrator_core::metrics;
use orchestrator_core::prelude::*;

/// Says the words of the prompt, as they are or backwards.
struct Echo {
    backwards: bool,
}

impl Engine for Echo {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("echo-1", if self.backwards { "backwards" } else { "plain" }))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let mut words: Vec<&str> = job.request.prompt.split(' ').collect();
        if self.backwards {
            words.reverse();
        }
        for word in words {
            tokio::time::sleep(Duration::from_millis(1)).await;
            out.push(&format!("{word} "))?;
        }
        Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
    }
}

#[derive(Clone)]
struct App {
    orchestrator: Orchestrator,
    ended: Arc<AtomicU64>,
}

#[derive(serde::Deserialize)]
struct Generate {
    model: String,
    prompt: String,
    max_tokens: Option<u32>,
}

/// The runtime's errors as answers: its codes say what went wrong, and when to come back.
fn refusal(error: &TaskError) -> Response {
    let status = match error.code {
        ErrorCode::InvalidParams => StatusCode::BAD_REQUEST,
        ErrorCode::AdmissionReject | ErrorCode::ReplicaExhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let wait = error.retry_after_ms.map(|wait| [(header::RETRY_AFTER, wait.div_ceil(1_000).to_string())]);
    (status, wait.unwrap_or([(header::RETRY_AFTER, "0".to_owned())]), Json(error)).into_response()
}

async fn generate(State(app): State<App>, headers: HeaderMap, Json(wanted): Json<Generate>) -> Response {
    let tenant = headers.get("x-tenant").and_then(|tenant| tenant.to_str().ok()).unwrap_or("anonymous");
    let client = match tenant.parse::<ClientId>() {
        Ok(client) => client,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("x-tenant: {error}")).into_response(),
    };
    // An answer that somebody waits for: whoever leaves ends it.
    let request = TaskRequest::completion(wanted.prompt)
        .model(wanted.model)
        .client(client)
        .max_tokens(wanted.max_tokens.unwrap_or(64))
        .on_disconnect(OnDisconnect::Cancel);
    let submitted = match app.orchestrator.submit(request).await {
        Ok(submitted) => submitted,
        Err(error) => return refusal(&error),
    };
    // A stream of events as any other; each is JSON as the service would send it.
    let events = submitted.stream().map(|(index, event)| {
        let data = serde_json::to_string(&event).unwrap_or_default();
        Ok::<_, Infallible>(format!("id: {index}\nevent: {}\ndata: {data}\n\n", event.name()))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn figures(State(app): State<App>) -> Response {
    match metrics::text(&app.orchestrator) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn app() -> Result<(App, axum::Router), Box<dyn Error>> {
    // A paying tenant gets three times the tokens of the others when both want more than there is.
    let gold = ClientConfig { weight: 3, ..ClientConfig::default() };
    let config = Config {
        clients: [("gold".to_owned(), gold)].into(),
        disconnect_grace_ms: 100, // Who has left does not come back here.
        ..Config::default()
    };
    let mut plain = PoolConfig::new("plain", "echo", "plain");
    let mut backwards = PoolConfig::new("backwards", "echo", "backwards");
    (plain.slots, backwards.slots) = (4, 4);
    backwards.replicas[0].devices = vec![DeviceRef::Index(1)];
    let orchestrator = Orchestrator::builder()
        .config(config)
        .pool(plain, |_| Echo { backwards: false })
        .pool(backwards, |_| Echo { backwards: true })
        .start()
        .await?;
    let app = App { orchestrator, ended: Arc::default() };
    let (mut events, ended) = (app.orchestrator.subscribe(), app.ended.clone());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let RuntimeEvent::TaskEnded { .. } = event {
                ended.fetch_add(1, Relaxed);
            }
        }
    });
    let routes = axum::Router::new()
        .route("/generate", post(generate))
        .route("/metrics", get(figures))
        .route("/events", get(|State(app): State<App>| async move { app.ended.load(Relaxed).to_string() }))
        .with_state(app.clone());
    Ok((app, routes))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (app, routes) = app().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let ended = async move {
        let _ = tokio::signal::ctrl_c().await;
        app.orchestrator.stop(Duration::from_secs(10)).await; // Nothing new is taken; streams go on to their ends.
    };
    axum::serve(listener, routes).with_graceful_shutdown(ended).await?;
    Ok(())
}

#[tokio::test]
async fn tenants_stream_from_both_engines_and_who_leaves_ends_its_task() {
    let (app, routes) = app().await.expect("it starts");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("it listens");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let served = tokio::spawn(axum::serve(listener, routes).into_future());
    assert!(app.orchestrator.until_ready().await);
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ask = |tenant: &str, model: &str, prompt: &str| {
        let body = serde_json::json!({ "model": model, "prompt": prompt, "max_tokens": 2_000 }).to_string();
        let request = http.post(format!("{url}/generate")).header("content-type", "application/json");
        request.header("x-tenant", tenant).body(body).send()
    };
    let answer = ask("gold", "backwards", "tokens to words from").await.expect("answered");
    let text = answer.text().await.expect("whole");
    let words: Vec<&str> = text.split("\"t\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(words.concat(), "from words to tokens ");
    assert!(text.contains("event: end"), "{text}");
    assert_eq!(ask("bad tenant", "plain", "x").await.expect("answered").status(), 400);
    let unknown = ask("gold", "nobody's", "x").await.expect("answered");
    assert!(unknown.status() == 400 && unknown.text().await.expect("whole").contains("INVALID_PARAMS"));

    let mut events = app.orchestrator.subscribe();
    let mut answer = ask("poor", "plain", &"w ".repeat(1_500)).await.expect("answered");
    assert!(answer.chunk().await.expect("its begin").is_some());
    drop(answer);
    let Some(RuntimeEvent::TaskEnded { task }) = events.next().await else { panic!("it ends") };
    assert_eq!(task.end.map(|end| end.finish_reason), Some(FinishReason::Canceled));
    let figures = http.get(format!("{url}/metrics")).send().await.expect("answered").text().await.expect("whole");
    assert!(figures.contains("tasks_canceled_total{") && figures.ends_with("# EOF\n"));
    app.orchestrator.stop(Duration::from_secs(1)).await;
    served.abort();
}
