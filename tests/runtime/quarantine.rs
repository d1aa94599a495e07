//! A slot whose engine does not confirm a stop: it is given to nobody, and costs nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use orchestrator_core::core::lifecycle::ReplicaState;
use orchestrator_core::gpu::sim::SimEngine;
use orchestrator_core::gpu::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use orchestrator_core::{Cause, Env, Event, Orchestrator, ReplicaView};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::{millisecond, pool, pool_id, read_whole, request, until_idle};

/// The engine's slot 0, which it leaves only when it is told to.
#[derive(Default)]
struct Clings {
    clings: AtomicBool,
    let_go: Notify,
    loads: AtomicU32,
    /// Runs in slot 0 while it was not left. Must stay 0.
    conflicts: AtomicU32,
}

struct Clinging(SimEngine, Arc<Clings>);

impl Engine for Clinging {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        self.1.loads.fetch_add(1, SeqCst);
        self.1.clings.store(false, SeqCst);
        Engine::preload(&self.0).await
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if job.slot == 0 && self.1.clings.swap(true, SeqCst) {
            self.1.conflicts.fetch_add(1, SeqCst);
        }
        let result = Engine::generate(&self.0, job, out).await;
        if job.slot == 0 && result.is_ok() {
            self.1.clings.store(false, SeqCst); // A run that is stopped, by a drop or by a word, does not come here.
        }
        result
    }

    async fn released(&self, slot: u32) {
        if slot == 0 && self.1.clings.load(SeqCst) {
            self.1.let_go.notified().await;
            self.1.clings.store(false, SeqCst);
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        let slots_busy = Some(u32::from(self.1.clings.load(SeqCst)));
        Ok(Telemetry { slots_busy, ..Engine::probe(&self.0).await? })
    }
}

const STOP: Duration = Duration::from_millis(100);

/// A replica of two slots, slot 0 of which clings to a cancelled run, beside a task of so many milliseconds in the
/// other.
async fn start(beside_ms: u32) -> (Orchestrator, Arc<Clings>, tokio::task::JoinHandle<(String, Event)>) {
    let clings = Arc::new(Clings::default());
    let mut config = pool("a", 1, 2, millisecond());
    config.timeouts.stop_ms = STOP.as_millis() as u64;
    let of_engine = clings.clone();
    let factory = move |context: &EngineContext| Clinging(SimEngine::new(context), of_engine.clone());
    let orchestrator = Orchestrator::builder().env(Env::simulated(3)).pool(config, factory).start().await.unwrap();
    orchestrator.until_ready().await;
    let clinging = orchestrator.submit(request("clinging", 4_000)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await; // Slot 0 goes first.
    let beside = orchestrator.submit(request("beside", beside_ms)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    orchestrator.cancel(&clinging.task_id);
    let beside = tokio::spawn(read_whole(beside.stream()));
    (orchestrator, clings, beside)
}

fn replica(orchestrator: &Orchestrator) -> ReplicaView {
    orchestrator.pools()[0].replicas[0].clone()
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_left_late_comes_back_by_the_engines_own_view() {
    let (orchestrator, clings, beside) = start(1_000).await;
    tokio::time::sleep(4 * STOP).await;
    let seen = replica(&orchestrator);
    assert_eq!((seen.slots_quarantined, seen.stop_timeouts, seen.slots_used), (1, 1, 2));
    assert!(seen.state.is_ready(), "the other slot serves on");
    clings.let_go.notify_one();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let seen = replica(&orchestrator);
    assert_eq!((seen.slots_quarantined, seen.slots_used), (0, 1), "at once");
    let next = orchestrator.submit(request("next", 5)).await.unwrap();
    assert!(matches!(read_whole(next.stream()).await.1, Event::End(_)), "in slot 0 again");
    assert!(matches!(beside.await.unwrap().1, Event::End(_)));
    until_idle(&orchestrator).await;
    let seen = replica(&orchestrator);
    assert_eq!((seen.restarts, seen.slot_leaks, orchestrator.pools()[0].resumed), (0, 0, 0));
    assert_eq!((clings.loads.load(SeqCst), clings.conflicts.load(SeqCst)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_gets_no_more_tasks_serves_again_when_the_slot_is_left_at_last() {
    let (orchestrator, clings, beside) = start(3_000).await;
    tokio::time::sleep(11 * STOP + STOP / 2).await;
    assert_eq!(replica(&orchestrator).state, ReplicaState::Suspect, "its time is over");
    let waits = orchestrator.submit(request("waits", 5)).await.unwrap();
    clings.let_go.notify_one();
    assert!(matches!(read_whole(waits.stream()).await.1, Event::End(_)), "beside the long one, in slot 0");
    assert!(!beside.is_finished() && replica(&orchestrator).state.is_ready());
    assert!(matches!(beside.await.unwrap().1, Event::End(_)));
    until_idle(&orchestrator).await;
    assert_eq!((replica(&orchestrator).restarts, clings.conflicts.load(SeqCst)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_never_leaves_a_slot_is_restarted_when_that_costs_nobody_anything() {
    let (orchestrator, clings, beside) = start(500).await;
    let (_, end) = beside.await.unwrap();
    assert!(matches!(end, Event::End(end) if end.attempts == 1), "the task beside it was not disturbed");
    let idle_since = Instant::now();
    until_idle(&orchestrator).await;
    assert!(idle_since.elapsed() <= STOP + Duration::from_millis(2), "{:?}", idle_since.elapsed());
    orchestrator.until_pool(&pool_id("a"), |state| state.takes_tasks()).await;
    let next = orchestrator.submit(request("next", 5)).await.unwrap();
    assert!(matches!(read_whole(next.stream()).await.1, Event::End(_)));
    let seen = replica(&orchestrator);
    assert_eq!((seen.restarts, seen.deaths.get(&Cause::Hung)), (1, Some(&1)));
    assert_eq!((seen.slots_quarantined, seen.slot_leaks, orchestrator.pools()[0].resumed), (0, 0, 0));
    assert_eq!((clings.loads.load(SeqCst), clings.conflicts.load(SeqCst)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_never_idle_gets_no_more_tasks_in_the_end_and_no_task_is_disturbed() {
    let (orchestrator, clings, beside) = start(100).await;
    let begin = Instant::now();
    let mut streams = Vec::new();
    while replica(&orchestrator).restarts == 0 {
        // One slot is always taken, so there is no good moment.
        let submitted = orchestrator.submit(request(&format!("t{}", streams.len()), 60)).await.unwrap();
        streams.push(tokio::spawn(read_whole(submitted.stream())));
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(begin.elapsed() < 20 * STOP, "it is restarted at last");
    }
    assert!(begin.elapsed() >= 10 * STOP, "not before its time: {:?}", begin.elapsed());
    for stream in streams.into_iter().chain([beside]) {
        let (_, end) = stream.await.unwrap();
        assert!(matches!(&end, Event::End(end) if end.attempts == 1), "{end:?}");
    }
    until_idle(&orchestrator).await;
    assert_eq!((clings.loads.load(SeqCst), clings.conflicts.load(SeqCst)), (2, 0));
    assert_eq!(replica(&orchestrator).slot_leaks, 0);
}
