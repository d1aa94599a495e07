//! An engine shows what it can before it gets a task (ORCH-3049).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use orchestrator_core::config::{PoolConfig, SimFaults};
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::core::resume::DeterminismClass;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Finish, Job, Repeats, Telemetry, TokenOutput};
use orchestrator_core::{Env, Event, Orchestrator};

use crate::support::{World, faulty, millisecond, pool, pool_id, read_whole, request, start};

fn tested(pool: PoolConfig) -> PoolConfig {
    PoolConfig { self_test: true, ..pool }
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_ready_when_its_engine_has_decoded_repeated_itself_and_stopped() {
    let World { orchestrator, stats } = start(Env::simulated(1), vec![tested(pool("a", 1, 2, millisecond()))]).await;
    orchestrator.until_ready().await;
    let replica = &orchestrator.pools()[0].replicas[0];
    let shown = replica.self_test.expect("it was tested");
    assert_eq!(shown.determinism_class, DeterminismClass::BatchInvariant);
    assert!(shown.decode_ms >= 16.0 && shown.stop_ms < 1.0, "{shown:?}");
    assert_eq!((replica.preload_failures, stats[0][0].slot_conflicts.load(Relaxed)), (0, 0));
    assert!(matches!(read_whole(orchestrator.submit(request("t", 3)).await.unwrap().stream()).await.1, Event::End(_)));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_loads_and_cannot_decode_never_gets_a_task() {
    let dies = SimFaults { die_ppm: 1_000_000, ..SimFaults::default() };
    let hangs = SimFaults { hang_first_ppm: 1_000_000, ..SimFaults::default() };
    for (faults, says) in [(dies, "self-test, decode"), (hangs, "not ready within")] {
        let mut broken = tested(pool("a", 1, 1, faulty(faults)));
        broken.timeouts.preload_ms = 5_000;
        let World { orchestrator, .. } = start(Env::simulated(1), vec![broken]).await;
        orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
        let replica = &orchestrator.pools()[0].replicas[0];
        assert!(
            replica.preload_failures >= 1 && replica.preload_successes == 0 && replica.self_test.is_none(),
            "{says}"
        );
        assert!(orchestrator.submit(request("t", 1)).await.is_err());
    }
}

/// An engine of one fault: it says something else each time, goes on computing when nobody wants more, or is busy for
/// nobody.
struct Odd {
    /// From which of these classes it is.
    class: DeterminismClass,
    active: std::sync::atomic::AtomicU32,
    stops: bool,
    busy: u32,
    said: AtomicU32,
    /// Tokens in front of those in which it differs.
    alike: u32,
    /// What it says of itself.
    repeats: Repeats,
}

impl Engine for Odd {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo { repeats: self.repeats, ..EngineInfo::new("1", "d") })
    }
    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let said = self.said.fetch_add(1, Relaxed);
        self.active.fetch_add(1, Relaxed);
        for index in 0..job.request.max_tokens.0 {
            let other = match self.class {
                DeterminismClass::None => said,
                DeterminismClass::SingleSlot => self.active.load(Relaxed),
                DeterminismClass::BatchInvariant => 0,
            };
            let other = if index < self.alike { 0 } else { other };
            out.push(&format!(" {}", index + other))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.active.fetch_sub(1, Relaxed); // Not those that are stopped: they are the last of the self-test.
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
    async fn probe(&self) -> Result<Telemetry, EngineError> {
        Ok(Telemetry { slots_busy: Some(self.busy), ..Telemetry::default() })
    }
    async fn released(&self, _: u32) {
        if !self.stops {
            std::future::pending::<()>().await;
        }
    }
}

async fn load(stops: bool, busy: u32) -> Orchestrator {
    load_of_class(DeterminismClass::BatchInvariant, stops, busy, tested(pool("a", 1, 1, millisecond()))).await
}

async fn load_of_class(class: DeterminismClass, stops: bool, busy: u32, pool: PoolConfig) -> Orchestrator {
    load_odd(class, (stops, busy), (0, Repeats::Unknowable), pool).await
}

async fn load_odd(
    class: DeterminismClass,
    (stops, busy): (bool, u32),
    (alike, repeats): (u32, Repeats),
    pool: PoolConfig,
) -> Orchestrator {
    let pool = PoolConfig { engine: "odd".into(), sim: None, ..pool };
    let factory =
        move |_: &_| Odd { class, active: AtomicU32::new(0), stops, busy, said: Default::default(), alike, repeats };
    let builder = Orchestrator::builder().env(Env::simulated(1)).pool(pool, factory);
    builder.start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_same_seed_gives_alone_and_in_a_batch_is_found_and_held_against_what_is_stated() {
    use DeterminismClass::{BatchInvariant, None as Never, SingleSlot};
    for class in [Never, SingleSlot, BatchInvariant] {
        for slots in [1, 2, 8] {
            for stated in [None, Some(Never), Some(SingleSlot), Some(BatchInvariant)] {
                let mut config = tested(pool("a", 1, slots, millisecond()));
                config.determinism_class = stated;
                let orchestrator = load_of_class(class, true, 0, config).await;
                // One slot says nothing about a batch.
                let is_true = stated.is_none_or(|stated| stated <= class || slots == 1 && class != Never);
                let want = if is_true { PoolState::Ready } else { PoolState::Unready };
                orchestrator.until_pool(&pool_id("a"), |state| state == want).await;
                let replica = orchestrator.pools()[0].replicas[0].clone();
                let found = replica.self_test.map(|shown| shown.determinism_class);
                // A short test refutes what is stated, and claims nothing by itself.
                let claimed = is_true.then_some(stated.unwrap_or(Never));
                assert_eq!(found, claimed, "{class:?} with {slots} slots, stated {stated:?}");
                let says = replica.last_death.map(|death| death.message).unwrap_or_default();
                assert_eq!(says.contains("determinism_class"), !is_true, "{says}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_long_runs_show_a_class_and_a_task_goes_before_them() {
    use DeterminismClass::{BatchInvariant, None as Never, SingleSlot};
    let up_to = Repeats::UpTo(BatchInvariant);
    // What the engine is; from which token on it differs; what it says of itself; its slots; what is claimed in the
    // end.
    let cases = [
        (BatchInvariant, 0, up_to, 4, BatchInvariant),
        (BatchInvariant, 0, up_to, 1, SingleSlot),
        (BatchInvariant, 0, Repeats::UpTo(SingleSlot), 4, SingleSlot),
        (BatchInvariant, 0, Repeats::Unknowable, 4, Never),
        (BatchInvariant, 0, Repeats::Always(BatchInvariant), 1, BatchInvariant),
        (SingleSlot, 200, up_to, 4, SingleSlot),
        (Never, 200, up_to, 4, Never),
        (Never, 0, up_to, 2, Never),
    ];
    for (class, alike, repeats, slots, want) in cases {
        let case = format!("{class:?} from token {alike} on, {repeats:?}, {slots} slots");
        let config = tested(pool("a", 1, slots, millisecond()));
        let orchestrator = load_odd(class, (true, 0), (alike, repeats), config).await;
        orchestrator.until_ready().await;
        let shown = || orchestrator.pools()[0].replicas[0].self_test.unwrap();
        let at_start = if matches!(repeats, Repeats::Always(_)) { want } else { Never };
        assert_eq!(shown().determinism_class, at_start, "{case}: nothing is claimed at once");
        // In the middle of a long run a task comes: it does not wait for it.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let begun = orchestrator.env().now();
        assert!(matches!(
            read_whole(orchestrator.submit(request("t", 3)).await.unwrap().stream()).await.1,
            Event::End(_)
        ));
        assert!(orchestrator.env().now().since(begun) < Duration::from_millis(100), "{case}: a task goes first");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((shown().determinism_class, orchestrator.pools()[0].slots_used), (want, 0), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_stop_never_serves() {
    let orchestrator = load(false, 0).await;
    orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Unready).await;
    assert_eq!(orchestrator.pools()[0].replicas[0].preload_successes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_computes_for_nobody_is_counted_once_and_one_with_a_task_is_not() {
    for (busy, with_task, leaks) in [(0, false, 0), (1, true, 0), (2, true, 1), (1, false, 1)] {
        let orchestrator = load(true, busy).await;
        orchestrator.until_ready().await;
        if with_task {
            orchestrator.submit(request("t", 4_000)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(
            orchestrator.pools()[0].replicas[0].slot_leaks,
            0,
            "one look is not enough: a run may just have ended"
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(orchestrator.pools()[0].replicas[0].slot_leaks, leaks, "{busy} busy, with a task: {with_task}");
    }
}
