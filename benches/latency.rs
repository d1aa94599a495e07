//! What a client waits for beside the engine: cancel to the next task's start, a worker's death to the second attempt's
//! start, and the verdict of admission with 64 submitters at once. Real time, two threads; prints p50, p99 and the
//! longest.
//!
//! `cargo bench --bench latency`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestrator_core::config::{Config, DeviceRef, PoolConfig, ReplicaConfig, RestartConfig, SimConfig};
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Exit, Finish, Job, SimEngine, TokenOutput};
use orchestrator_core::{Event, Orchestrator, TaskRequest, TaskStream};
use tokio::sync::Notify;

fn report(name: &str, mut durations: Vec<Duration>) {
    durations.sort_unstable();
    let at = |part: f64| durations[((durations.len() - 1) as f64 * part) as usize];
    println!("{name:52} {:6} times: p50 {:?}, p99 {:?}, longest {:?}", durations.len(), at(0.5), at(0.99), at(1.0));
}

fn sim(slots: u32, token_us: u64) -> PoolConfig {
    let sim = SimConfig { first_token_us: 0, token_us, preload_us: 0, ..SimConfig::default() };
    PoolConfig { slots, sim: Some(sim), ..PoolConfig::new("p", "sim", "m") }
}

async fn until_started(stream: &mut TaskStream) {
    while !matches!(stream.next().await.unwrap().1, Event::Started(_)) {}
}

/// One slot that is always taken, and one task that waits for it: cancelled to started.
async fn cancel_to_next_start() -> Vec<Duration> {
    let builder = Orchestrator::builder().pool(sim(1, 1_000), SimEngine::new);
    let orchestrator = builder.start().await.unwrap();
    orchestrator.until_ready().await;
    let submit = async || orchestrator.submit(TaskRequest::completion("x").max_tokens(3_000)).await.unwrap();
    let mut running = submit().await;
    until_started(&mut running.stream()).await;
    let mut seen = Vec::new();
    for _ in 0..3_000 {
        let waiting = submit().await;
        let mut stream = waiting.stream();
        let begin = Instant::now();
        orchestrator.cancel(&running.task_id);
        until_started(&mut stream).await;
        seen.push(begin.elapsed());
        running = waiting;
    }
    seen
}

/// An engine that dies when it is told to, as a process would.
struct Mortal(Arc<Notify>);

impl Engine for Mortal {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("1", "d"))
    }
    async fn generate<'a>(&'a self, _: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        out.push("x")?;
        std::future::pending().await
    }
    async fn failure(&self) -> EngineError {
        self.0.notified().await;
        EngineError::Exited { how: Exit::Signal(9), said: "".into() }
    }
}

/// Two replicas, one task: its worker dies, and it starts on the other.
async fn death_to_second_attempt() -> Vec<Duration> {
    let kills: Vec<Arc<Notify>> = (0..2).map(|_| Arc::default()).collect();
    let mut pool = PoolConfig { self_test: false, ..PoolConfig::new("p", "mortal", "m") };
    pool.replicas = (0..2)
        .map(|index| ReplicaConfig { devices: vec![DeviceRef::Index(index)], ..ReplicaConfig::default() })
        .collect();
    pool.restart = RestartConfig { intensity: 1_000, backoff_ms: 0, backoff_max_ms: 0, ..RestartConfig::default() };
    pool.resume.attempts_max = 1_000;
    let told = kills.clone();
    let builder =
        Orchestrator::builder().pool(pool, move |context| Mortal(told[context.replica.index as usize].clone()));
    let orchestrator = builder.start().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..500 {
        while !orchestrator.pools()[0].replicas.iter().all(|replica| replica.state.is_ready()) {
            tokio::task::yield_now().await;
        }
        let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(5)).await.unwrap();
        let mut stream = submitted.stream();
        until_started(&mut stream).await;
        let replica = orchestrator.task(&submitted.task_id).unwrap().replica_id.unwrap();
        let begin = Instant::now();
        kills[replica.index as usize].notify_one();
        until_started(&mut stream).await;
        seen.push(begin.elapsed());
        orchestrator.cancel(&submitted.task_id);
    }
    seen
}

/// Submission to verdict, with this many submitters that each wait for theirs before the next.
async fn verdicts(submitters: usize) -> Vec<Duration> {
    let mut pool = sim(16, 0);
    pool.queue.capacity = 4_096;
    let builder = Orchestrator::builder().config(Config::default()).pool(pool, SimEngine::new);
    let orchestrator = builder.start().await.unwrap();
    orchestrator.until_ready().await;
    let tasks: Vec<_> = (0..submitters)
        .map(|_| {
            let orchestrator = orchestrator.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for _ in 0..64_000 / submitters {
                    let begin = Instant::now();
                    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(1)).await.unwrap();
                    seen.push(begin.elapsed());
                    submitted.stream().collect().await;
                }
                seen
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all
}

fn main() {
    let two = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    two.block_on(async {
        report("cancel to the next task's start in that slot", cancel_to_next_start().await);
        report("a worker's death to the second attempt's start", death_to_second_attempt().await);
        report("the verdict of admission, 1 submitter", verdicts(1).await);
        report("the verdict of admission, 64 submitters", verdicts(64).await);
    });
}
