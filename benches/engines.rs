//! What it costs to forward a token from each engine, beside a plain `reqwest` stream of the same bytes in the same
//! run; and what a look at eight devices costs. CPU time of the thread that reads; the server has a thread of its own.
//! Prints medians.
//!
//! `cargo bench --bench engines`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

// Shared with the tests, of which each program uses its part.
#[path = "../tests/support/engine_faults.rs"]
#[allow(dead_code)]
mod engine_faults;
#[path = "../tests/support/fakes.rs"]
#[allow(dead_code)]
mod fakes;
#[path = "../tests/support/fields.rs"]
#[allow(dead_code)]
mod fields;
#[path = "../tests/support/nvml.rs"]
#[allow(dead_code)]
mod nvml;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use fakes::{KINDS, Kind, Server};
use futures_util::StreamExt;
use orchestrator_core::TaskRequest;
use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::TaskId;
use orchestrator_core::gpu::llamacpp::LlamaCpp;
use orchestrator_core::gpu::openai::OpenAi;
use orchestrator_core::gpu::tgi::Tgi;
use orchestrator_core::gpu::triton::Triton;
use orchestrator_core::gpu::vllm::Vllm;
use orchestrator_core::gpu::{Engine, EngineContext, Job, Stopped, TokenOutput};

const TOKENS: u32 = 2_000;
const ROUNDS: usize = 9;

/// Counts tokens and forgets them.
struct Count(u32);

impl TokenOutput for Count {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        self.0 += u32::from(!text.is_empty());
        Ok(())
    }
}

fn context(pool: PoolConfig) -> EngineContext {
    EngineContext::of(pool).unwrap()
}

async fn ours(engine: &impl Engine) -> u32 {
    let (task_id, request) = (TaskId::parse("t").unwrap(), TaskRequest::completion("say").max_tokens(TOKENS));
    let mut out = Count(0);
    engine
        .generate(Job { task_id: &task_id, request: &request, seed: 7, slot: 0, is_self_test: false }, &mut out)
        .await
        .unwrap();
    out.0
}

async fn plain(client: &reqwest::Client, url: &str, body: &str) -> usize {
    let request = client.post(url).header("content-type", "application/json").body(body.to_owned());
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut bytes = 0;
    while let Some(piece) = stream.next().await {
        bytes += piece.unwrap().len();
    }
    bytes
}

/// A server on a thread of its own.
fn serve(kind: Kind, pace_us: u64) -> Arc<Server> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start(kind).await;
            server.pace_us.store(pace_us, std::sync::atomic::Ordering::SeqCst);
            sender.send(server).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of a reading in nanoseconds, for each token.
async fn cost<T>(run: impl AsyncFn() -> T) -> f64 {
    run().await; // Connections are open from here on.
    let begin = ThreadTime::now();
    run().await;
    begin.elapsed().as_nanos() as f64 / f64::from(TOKENS)
}

async fn compare<E: Engine>(kind: Kind, pace_us: u64, new: impl Fn(&EngineContext) -> E) {
    let server = serve(kind, pace_us);
    let engine = new(&context(kind.pool(&[&server])));
    engine.preload().await.unwrap();
    assert_eq!(ours(&engine).await, TOKENS);
    let body = server.last_body.lock().to_string();
    let url = format!("http://127.0.0.1:{}{}", server.port, kind.stream_path());
    let client = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
    let (mut our_times, mut plain_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let one = cost(async || ours(&engine).await).await;
        let other = cost(async || plain(&client, &url, &body).await).await;
        our_times.push(one);
        plain_times.push(other);
        ratios.push(one / other);
    }
    let paced = if pace_us == 0 { "as fast as it goes" } else { "token by token" };
    println!(
        "{:9} {paced:19} ours {:7.0} ns/token, reqwest {:7.0} ns/token, ratio {:.2}",
        kind.engine(),
        median(our_times),
        median(plain_times),
        median(ratios)
    );
}

/// Allocations of one whole stream, for each token.
fn allocations<E: Engine>(kind: Kind, new: impl Fn(&EngineContext) -> E) {
    let server = serve(kind, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = runtime.block_on(async {
        let engine = new(&context(kind.pool(&[&server])));
        engine.preload().await.unwrap();
        ours(&engine).await;
        engine
    });
    let body = server.last_body.lock().to_string();
    let url = format!("http://127.0.0.1:{}{}", server.port, kind.stream_path());
    let client = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
    runtime.block_on(plain(&client, &url, &body));
    let per_token = |info: allocation_counter::AllocationInfo| info.count_total as f64 / f64::from(TOKENS);
    let one = per_token(allocation_counter::measure(|| assert_eq!(runtime.block_on(ours(&engine)), TOKENS)));
    let other = per_token(allocation_counter::measure(|| assert!(runtime.block_on(plain(&client, &url, &body)) > 0)));
    println!("{:9} allocations a token: ours {one:.2}, reqwest {other:.2}", kind.engine());
}

fn with_each(mut act: impl FnMut(Kind)) {
    KINDS.into_iter().for_each(&mut act);
}

fn devices() {
    const DEVICES: u32 = 8;
    let driver = nvml::FakeDriver::new("bench", DEVICES);
    let probe = driver.open();
    let (sender, receiver) = channel();
    probe.attach(Arc::new(move |_, _| sender.send(()).unwrap()));
    let ids: Vec<_> = probe.inventory().devices.into_iter().map(|device| device.id).collect();
    let (mut polls, mut asks) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let begin = Instant::now();
        ids.iter().for_each(|id| probe.look(id));
        asks.push(begin.elapsed().as_nanos() as f64 / 1_000.0);
        (0..DEVICES).for_each(|_| receiver.recv_timeout(Duration::from_secs(5)).unwrap());
        polls.push(begin.elapsed().as_nanos() as f64 / 1_000.0);
    }
    println!(
        "a look at 8 devices: asked for in {:.1} us, answered in {:.0} us (fake driver)",
        median(asks),
        median(polls)
    );
}

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // Run as a test, it has nothing to show.
    }
    devices();
    with_each(|kind| match kind {
        Kind::LlamaCpp => allocations(kind, LlamaCpp::new),
        Kind::Vllm => allocations(kind, Vllm::new),
        Kind::Tgi => allocations(kind, Tgi::new),
        Kind::Triton => allocations(kind, Triton::new),
        Kind::OpenAi => allocations(kind, OpenAi::new),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for pace_us in [0, 100] {
        with_each(|kind| {
            runtime.block_on(async {
                match kind {
                    Kind::LlamaCpp => compare(kind, pace_us, LlamaCpp::new).await,
                    Kind::Vllm => compare(kind, pace_us, Vllm::new).await,
                    Kind::Tgi => compare(kind, pace_us, Tgi::new).await,
                    Kind::Triton => compare(kind, pace_us, Triton::new).await,
                    Kind::OpenAi => compare(kind, pace_us, OpenAi::new).await,
                }
            });
        });
    }
}
