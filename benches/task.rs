//! What a whole task costs beside bare ractor casts, what submit-to-dispatch costs, and what a token costs in the event
//! log with 0, 1 and 8 readers. CPU time of the process, anchor and subject alternating in one run; prints one line
//! each.
//!
//! `cargo bench --bench task`; with `-- --count N` nothing but N times 20,000 whole tasks on one thread, for a tool
//! that counts instructions: of two such counts the difference is what tasks cost, whatever else the machine does.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cpu_time::ProcessTime;
use orchestrator_core::config::{Config, PoolConfig, RetentionConfig, SimConfig};
use orchestrator_core::core::ClientId;
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Finish, Job, SimEngine, TokenOutput};
use orchestrator_core::{Orchestrator, TaskRequest};
use ractor::{Actor, ActorProcessingErr, ActorRef};

const ROUNDS: usize = 7;
const CASTS: u64 = 200_000;
const TASKS: u64 = 20_000;
const WINDOW: u64 = 1024;

struct Sink;
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
struct Payload([u64; 8]);

impl Actor for Sink {
    type Msg = Payload;
    type State = Arc<AtomicU64>;
    type Arguments = Arc<AtomicU64>;
    async fn pre_start(
        &self,
        _: ActorRef<Payload>,
        seen: Arc<AtomicU64>,
    ) -> Result<Arc<AtomicU64>, ActorProcessingErr> {
        Ok(seen)
    }
    async fn handle(
        &self,
        _: ActorRef<Payload>,
        message: Payload,
        seen: &mut Arc<AtomicU64>,
    ) -> Result<(), ActorProcessingErr> {
        std::hint::black_box(message.0);
        seen.fetch_add(1, Relaxed);
        Ok(())
    }
}

/// CPU nanoseconds for each of `count`.
async fn cpu<F: Future<Output = ()>>(count: u64, work: F) -> f64 {
    let start = ProcessTime::now();
    work.await;
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Bare casts, at most [`WINDOW`] unprocessed: the anchor.
async fn casts() -> f64 {
    let seen = Arc::new(AtomicU64::new(0));
    let (sink, _) = Actor::spawn(None, Sink, seen.clone()).await.unwrap();
    let cost = cpu(CASTS, async {
        for sent in 0..CASTS {
            while sent - seen.load(Relaxed) >= WINDOW {
                tokio::task::yield_now().await;
            }
            sink.cast(Payload([sent; 8])).unwrap();
        }
        while seen.load(Relaxed) < CASTS {
            tokio::task::yield_now().await;
        }
    })
    .await;
    sink.stop(None);
    cost
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pool(slots: u32, capacity: u32) -> PoolConfig {
    let sim = SimConfig { first_token_us: 0, token_us: 0, preload_us: 0, ..SimConfig::default() };
    let mut pool = PoolConfig { slots, sim: Some(sim), self_test: false, ..PoolConfig::new("p", "sim", "m") };
    pool.queue.capacity = capacity;
    pool
}

async fn start(pool: PoolConfig) -> Orchestrator {
    let retention = RetentionConfig { tasks: 256, ..RetentionConfig::default() };
    let builder = Orchestrator::builder().config(Config { retention, ..Config::default() });
    let orchestrator = builder.pool(pool, SimEngine::new).start().await.unwrap();
    orchestrator.until_ready().await;
    orchestrator
}

/// Whole tasks of one token: submitted, queued, placed, run, read to the end. `depth` of them are under way at once.
async fn whole_tasks(orchestrator: &Orchestrator, depth: u64, clients: &Arc<Vec<ClientId>>) -> f64 {
    let next = Arc::new(AtomicU64::new(0));
    cpu(TASKS, async {
        let submitters: Vec<_> = (0..depth)
            .map(|_| {
                let (orchestrator, next, clients) = (orchestrator.clone(), next.clone(), clients.clone());
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Relaxed);
                        if number >= TASKS {
                            return;
                        }
                        let client = clients[(number % clients.len() as u64) as usize].clone();
                        let request = TaskRequest::completion("the sky is").max_tokens(1).client(client);
                        let mut stream = orchestrator.submit(request).await.unwrap().stream();
                        while stream.next().await.is_some() {}
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.await.unwrap();
        }
    })
    .await
}

/// An engine that hangs: what is dispatched never ends, what is queued stays.
async fn submit_to_dispatch() -> f64 {
    struct Hang(Arc<AtomicU64>, Arc<tokio::sync::Notify>);
    impl Engine for Hang {
        async fn preload(&self) -> Result<EngineInfo, EngineError> {
            Ok(EngineInfo::new("1", "d"))
        }
        async fn generate<'a>(&'a self, _: Job<'a>, _: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
            if self.0.fetch_add(1, Relaxed) + 1 == COUNT {
                self.1.notify_one();
            }
            std::future::pending().await
        }
    }
    const COUNT: u64 = 1_000;
    let (begun, all) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
    let done = all.clone();
    let builder = Orchestrator::builder().pool(pool(COUNT as u32, 4096), move |_| Hang(begun.clone(), all.clone()));
    let orchestrator = builder.start().await.unwrap();
    orchestrator.until_ready().await;
    cpu(COUNT, async {
        for _ in 0..COUNT {
            orchestrator.submit(TaskRequest::completion("x").max_tokens(1)).await.unwrap();
        }
        done.notified().await; // Spinning would be counted as work.
    })
    .await
}

/// Long tasks: what one more token costs, with this many readers.
async fn tokens(orchestrator: &Orchestrator, readers: usize) -> f64 {
    const TOKENS: u32 = 2_000;
    const LONG_TASKS: u64 = 50;
    cpu(LONG_TASKS * u64::from(TOKENS), async {
        for _ in 0..LONG_TASKS {
            let request = TaskRequest::completion("the sky is").max_tokens(TOKENS);
            let submitted = orchestrator.submit(request).await.unwrap();
            let streams: Vec<_> = (0..readers.max(1))
                .map(|_| {
                    let mut stream = submitted.stream();
                    tokio::spawn(async move { while readers > 0 && stream.next().await.is_some() {} })
                })
                .collect();
            for stream in streams {
                stream.await.unwrap();
            }
            while orchestrator.view().tasks_open > 0 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await
}

async fn compare(name: &str, mut subject: impl AsyncFnMut() -> f64) {
    let (mut anchor, mut ours, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let cast = casts().await;
        let cost = subject().await;
        anchor.push(cast);
        ours.push(cost);
        ratios.push(cost / cast);
    }
    let (anchor, ours, ratio) = (median(anchor), median(ours), median(ratios));
    println!("{name:48} {ours:9.0} ns CPU   bare cast {anchor:6.0} ns   ratio {ratio:6.2}");
}

async fn measure(runtime: &str) {
    for clients in [1, 10_000] {
        let ids = (0..clients).map(|number| ClientId::parse(&format!("c{number}")).unwrap()).collect();
        let ids = Arc::new(ids);
        for depth in [1, 64, 1024] {
            let orchestrator = start(pool(16, 2048)).await;
            let name = format!("{runtime} whole task, {depth} under way, {clients} clients");
            compare(&name, async || whole_tasks(&orchestrator, depth, &ids).await).await;
        }
    }
    compare(&format!("{runtime} submit to dispatch"), async || submit_to_dispatch().await).await;
    let orchestrator = start(pool(16, 2048)).await;
    for readers in [0, 1, 8] {
        compare(&format!("{runtime} one token, {readers} readers"), async || tokens(&orchestrator, readers).await)
            .await;
    }
}

fn main() {
    if let Some(rounds) = std::env::args().skip_while(|argument| argument != "--count").nth(1) {
        let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return one.block_on(async {
            let orchestrator = start(pool(16, 2048)).await;
            let ids = Arc::new((0..100).map(|number| ClientId::parse(&format!("c{number}")).unwrap()).collect());
            for _ in 0..rounds.parse::<u32>().expect("--count wants a number") {
                whole_tasks(&orchestrator, 64, &ids).await;
            }
        });
    }
    if std::env::args().any(|argument| argument == "--profile") {
        // For a profiler: nothing but whole tasks.
        let two = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return two.block_on(async {
            let orchestrator = start(pool(16, 2048)).await;
            let ids = Arc::new(vec![ClientId::anonymous()]);
            for _ in 0..20 {
                println!("{:.0} ns", whole_tasks(&orchestrator, 64, &ids).await);
            }
        });
    }
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    one.block_on(measure("1 thread:"));
    let two = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    two.block_on(measure("2 threads:"));
}
