//! What an attempt was lost to and a worker died of is told apart, and a client's fault is held against nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use orchestrator_core::gpu::sim::SimEngine;
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Exit, Finish, Job, TokenOutput};
use orchestrator_core::{Cause, Env, ErrorCode, Event, Orchestrator, ReplicaView};

use crate::support::{hush_planned_panics, millisecond, pool, pool_id, read_whole, request, until_idle};

/// How the engine fails, once.
#[derive(Clone, Debug, PartialEq)]
enum Fault {
    /// A run ends with this, and the engine is well.
    Run(EngineError),
    /// The engine as a whole fails with this, under a run.
    Engine(EngineError),
    /// A run ends with this, and the engine does not answer any more.
    RunAndProbe(EngineError),
    /// It cannot be loaded.
    Load(EngineError),
    /// Its code panics.
    Panic,
    /// The worker actor panics.
    WorkerPanics,
    /// It gives no token any more.
    Hangs,
}

/// The simulated engine with one fault.
struct Failing {
    engine: SimEngine,
    fault: Fault,
    left: Arc<AtomicBool>,
    failed: tokio::sync::Notify,
    is_mute: AtomicBool,
    env: Env,
}

impl Engine for Failing {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        match &self.fault {
            Fault::Load(error) if self.left.swap(false, SeqCst) => Err(error.clone()),
            _ => Engine::preload(&self.engine).await,
        }
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if matches!(self.fault, Fault::Load(_)) || !self.left.swap(false, SeqCst) {
            return Engine::generate(&self.engine, job, out).await;
        }
        out.push(" first").ok();
        match &self.fault {
            Fault::Run(error) => Err(error.clone()),
            Fault::RunAndProbe(error) => {
                self.is_mute.store(true, SeqCst);
                Err(error.clone())
            }
            Fault::Panic => std::panic::panic_any(orchestrator_core::env::InjectedPanic("attempt")),
            Fault::WorkerPanics => {
                self.env.arm_panic("worker");
                Err(EngineError::Lost("and nobody is there to hear of it".into()))
            }
            Fault::Engine(_) => {
                self.failed.notify_one();
                std::future::pending().await
            }
            Fault::Hangs | Fault::Load(_) => std::future::pending().await,
        }
    }

    async fn probe(&self) -> Result<orchestrator_core::gpu::Telemetry, EngineError> {
        match &self.fault {
            Fault::RunAndProbe(error) if self.is_mute.load(SeqCst) => Err(error.clone()),
            _ => Engine::probe(&self.engine).await,
        }
    }

    async fn failure(&self) -> EngineError {
        self.failed.notified().await;
        match &self.fault {
            Fault::Engine(error) => error.clone(),
            other => panic!("{other:?} does not fail the engine"),
        }
    }
}

/// Runs two tasks on an engine with this fault; the first meets it. Returns what is known of the replica then.
async fn meet(fault: Fault) -> (Event, ReplicaView, String) {
    hush_planned_panics();
    let env = Env::simulated(3);
    let (left, of_engine) = (Arc::new(AtomicBool::new(true)), fault.clone());
    let mut config = pool("a", 1, 1, millisecond());
    config.timeouts.idle_ms = 500;
    config.resume.on_loss = Some(orchestrator_core::core::resume::OnLoss::Fail);
    let engine_env = env.clone();
    let factory = move |context: &orchestrator_core::gpu::EngineContext| Failing {
        engine: SimEngine::new(context),
        fault: of_engine.clone(),
        left: left.clone(),
        failed: tokio::sync::Notify::new(),
        is_mute: AtomicBool::new(false),
        env: engine_env.clone(),
    };
    let orchestrator = Orchestrator::builder().env(env).pool(config, factory).start().await.unwrap();
    let (_, first) = read_whole(orchestrator.submit(request("first", 5)).await.unwrap().stream()).await;
    orchestrator.until_pool(&pool_id("a"), |state| state.takes_tasks()).await;
    let (_, second) = read_whole(orchestrator.submit(request("second", 5)).await.unwrap().stream()).await;
    assert!(matches!(second, Event::End(_)), "it serves again: {second:?}");
    until_idle(&orchestrator).await;
    let replica = orchestrator.pools()[0].replicas[0].clone();
    let message = replica.last_death.as_ref().map(|death| death.message.clone()).unwrap_or_default();
    (first, replica, message.to_string())
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_died_of_and_an_attempt_was_lost_to_is_told_apart() {
    let text = |text: &str| text.to_owned();
    let exited = |how, said: &str| EngineError::Exited { how, said: said.into() };
    let oom = EngineError::OutOfMemory(text("no KV block is free").into());
    let lost = EngineError::DeviceLost(text("XID 79").into());
    // What it does; what its worker died of, if it did; what the attempt was lost to, if it was.
    let cases = [
        (Fault::Engine(exited(Exit::Code(3), "bye")), Some(Cause::ExitCode), Some(Cause::ExitCode)),
        (Fault::Engine(exited(Exit::Signal(9), "")), Some(Cause::Signal), Some(Cause::Signal)),
        (
            Fault::Engine(exited(Exit::Signal(6), "terminate: std::bad_alloc")),
            Some(Cause::OutOfMemory),
            Some(Cause::OutOfMemory),
        ),
        (Fault::Engine(lost.clone()), Some(Cause::DeviceLost), Some(Cause::DeviceLost)),
        (Fault::Engine(EngineError::Unreachable(text("x").into())), Some(Cause::Unreachable), Some(Cause::Unreachable)),
        (Fault::RunAndProbe(EngineError::Lost(text("reset").into())), Some(Cause::Lost), Some(Cause::Lost)),
        (Fault::Run(EngineError::Lost(text("reset by peer").into())), None, Some(Cause::Lost)),
        (Fault::Run(EngineError::Lost(text("CUDA error: out of memory").into())), None, Some(Cause::OutOfVram)),
        (Fault::Run(EngineError::Garbled(text("{]").into())), None, Some(Cause::Garbled)),
        (Fault::Run(oom), None, Some(Cause::OutOfMemory)),
        (Fault::Run(lost), None, Some(Cause::DeviceLost)),
        (Fault::Run(EngineError::Refused(text("too long").into())), None, Some(Cause::Client)),
        (Fault::Load(EngineError::Preload(text("no such file").into())), Some(Cause::Load), None),
        (Fault::Load(exited(Exit::Code(1), "failed to allocate buffer")), Some(Cause::OutOfMemory), None),
        (Fault::Hangs, None, Some(Cause::Hung)),
        (Fault::Panic, None, Some(Cause::Bug)),
        (Fault::WorkerPanics, Some(Cause::Bug), Some(Cause::Lost)),
    ];
    for (fault, death, loss) in cases {
        let (end, replica, message) = meet(fault.clone()).await;
        let once = |cause: Option<Cause>| cause.into_iter().map(|cause| (cause, 1)).collect::<BTreeMap<_, _>>();
        assert_eq!(replica.deaths, once(death), "{fault:?}");
        assert_eq!(replica.attempts_failed, once(loss), "{fault:?}");
        assert_eq!(replica.last_death.as_ref().map(|death| death.cause), death, "{fault:?}");
        assert_eq!(replica.restarts, u64::from(death.is_some()), "{fault:?}");
        match loss {
            None => assert!(matches!(end, Event::End(_)), "{fault:?}: the task never met it"),
            Some(loss) => {
                let Event::Error(error) = end else { panic!("{fault:?}: {end:?}") };
                let code = match loss {
                    Cause::Client => ErrorCode::InvalidParams,
                    Cause::Hung => ErrorCode::DecodeTimeout,
                    _ => ErrorCode::WorkerReset,
                };
                assert_eq!(error.code, code, "{fault:?}");
            }
        }
        if let Fault::Engine(error) | Fault::Load(error) = fault {
            assert_eq!(message, error.whole().as_str(), "the words of it are kept");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_that_the_engine_refuses_trip_no_breaker() {
    struct Picky(SimEngine);
    impl Engine for Picky {
        async fn preload(&self) -> Result<EngineInfo, EngineError> {
            Engine::preload(&self.0).await
        }
        async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
            match job.request.prompt.contains("bad") {
                true => Err(EngineError::Refused("the prompt is bad".into())),
                false => Engine::generate(&self.0, job, out).await,
            }
        }
    }
    let mut config = pool("a", 1, 2, millisecond());
    config.restart.intensity = 1; // One death too many would open the breaker.
    let picky = |context: &orchestrator_core::gpu::EngineContext| Picky(SimEngine::new(context));
    let orchestrator = Orchestrator::builder().env(Env::simulated(3)).pool(config, picky).start().await.unwrap();
    orchestrator.until_ready().await;
    for number in 0..1_000 {
        let good = orchestrator.submit(request(&format!("good{number}"), 3)).await.unwrap();
        let mut wrong = request(&format!("bad{number}"), 3);
        wrong.prompt = "a bad prompt".into();
        let (_, end) = read_whole(orchestrator.submit(wrong).await.unwrap().stream()).await;
        let Event::Error(error) = end else { panic!("{end:?}") };
        assert_eq!((error.code, error.retriable), (ErrorCode::InvalidParams, false));
        assert!(error.message.contains("the prompt is bad"), "{}", error.message);
        assert!(matches!(read_whole(good.stream()).await.1, Event::End(_)), "beside it all goes on");
    }
    let pool = &orchestrator.pools()[0];
    assert_eq!((pool.resumed, pool.replicas[0].restarts, pool.completed), (0, 0, 1_000));
    assert!(pool.replicas[0].state.is_ready() && pool.replicas[0].deaths.is_empty());
    assert_eq!(pool.replicas[0].attempts_failed, BTreeMap::from([(Cause::Client, 1_000)]));
}
