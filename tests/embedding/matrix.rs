//! Each method of an engine, and each way in which a stranger's code fails in it, on one thread and on several: the
//! worker dies of a cause that says so and comes back, every accepted task ends, and nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use orchestrator_core::config::{RestartConfig, TimeoutConfig};
use orchestrator_core::gpu::{EngineContext, Telemetry};
use orchestrator_core::prelude::*;
use orchestrator_core::{Cause, PoolState};
use parking_lot::{Condvar, Mutex};

use super::{Alive, OneAlive, words};

/// Runtimes of each case, all at once.
const ROUNDS: usize = 100;
const TOKENS: u32 = 4;

/// Where an engine's code fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Factory,
    Preload,
    SelfTest,
    BeforeTokens,
    BetweenTokens,
    BehindTokens,
    Released,
    Probe,
    Failure,
    Drop,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Panic,
    /// It does not come back.
    Hang,
    /// It returns an error, where it can.
    Error,
    /// It goes on and on, and lets others run.
    Endless,
}

/// What each case comes to: what the worker dies of, and what the attempt is lost to.
fn documented(at: At, how: How) -> (Option<Cause>, Option<Cause>) {
    match (at, how) {
        (At::BeforeTokens | At::BetweenTokens | At::BehindTokens, How::Panic) => (None, Some(Cause::EnginePanic)),
        (At::BeforeTokens | At::BetweenTokens | At::BehindTokens, How::Error) => (None, Some(Cause::Lost)),
        // Its budget ends it, whatever the engine does behind it.
        (At::BetweenTokens, How::Endless) => (None, None),
        (At::BeforeTokens | At::BetweenTokens | At::BehindTokens, _) => (None, Some(Cause::Hung)),
        (_, How::Panic) => (Some(Cause::EnginePanic), None),
        (At::Factory | At::Released, _) if how != How::Error => (Some(Cause::Hung), None),
        (At::Probe, How::Hang | How::Endless) => (Some(Cause::Unreachable), None),
        (At::Probe | At::Failure, How::Error) => (Some(Cause::Lost), None),
        (At::Preload | At::SelfTest | At::Factory, _) => (Some(Cause::Load), None),
        // What an engine leaves is waited for before the next one is loaded, for `term_ms` and ten seconds: here longer
        // than a load may take.
        (At::Drop, How::Hang | How::Endless) => (Some(Cause::Load), None),
        // A watch that finds nothing never comes back.
        _ => (None, None),
    }
}

/// Holds threads that hang until the case is over.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn wait(&self) {
        let mut open = self.0.lock();
        while !*open {
            self.1.wait(&mut open);
        }
    }

    fn open(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }
}

/// What the engines of one runtime share.
struct Case {
    at: At,
    how: How,
    lives: AtomicU32,
    /// The run that fails has.
    fired: AtomicBool,
    alive: Alive,
    gate: Gate,
}

struct Faulty {
    case: Arc<Case>,
    /// This life's engine fails; later ones are well.
    is_first: bool,
    probes: AtomicU32,
    _alive: OneAlive,
}

impl Case {
    fn make(self: &Arc<Self>) -> Result<Faulty, EngineError> {
        let is_first = self.lives.fetch_add(1, SeqCst) == 0;
        let engine = Faulty { case: self.clone(), is_first, probes: AtomicU32::new(0), _alive: self.alive.one() };
        if is_first && self.at == At::Factory {
            self.fail_at_once()?;
        }
        Ok(engine)
    }

    fn fail_at_once(&self) -> Result<(), EngineError> {
        match self.how {
            How::Panic => panic!("a stranger's bug"),
            How::Hang | How::Endless => self.gate.wait(),
            How::Error => return Err(EngineError::other("a stranger's error")),
        }
        Ok(())
    }
}

impl Faulty {
    /// Fails here, if this is where.
    async fn at(&self, at: At) -> Result<(), EngineError> {
        if self.case.at != at || !self.is_first {
            return Ok(());
        }
        match self.case.how {
            How::Panic => panic!("a stranger's bug"),
            How::Hang => std::future::pending().await,
            How::Error => Err(EngineError::other("a stranger's error")),
            How::Endless => loop {
                tokio::task::yield_now().await;
            },
        }
    }

    /// Fails in one run of a task's, here.
    async fn once(&self, at: At) -> Result<(), EngineError> {
        if self.case.at == at && !self.case.fired.swap(true, SeqCst) { self.at(at).await } else { Ok(()) }
    }
}

impl Engine for Faulty {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        self.at(At::Preload).await?;
        Ok(EngineInfo::new("faulty-1", "none"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if job.is_self_test {
            self.at(At::SelfTest).await?;
        } else {
            self.once(At::BeforeTokens).await?;
        }
        for index in 0..job.request.max_tokens.0 {
            out.push(&format!("{index} "))?;
            if index == 1 && !job.is_self_test {
                if (self.case.at, self.case.how) == (At::BetweenTokens, How::Endless) && self.is_first {
                    let mut next = index + 1;
                    loop {
                        let _ = out.push(&format!("{next} ")); // Whatever it is told.
                        next += 1;
                        tokio::task::yield_now().await;
                    }
                }
                self.once(At::BetweenTokens).await?;
            }
            tokio::task::yield_now().await;
        }
        if !job.is_self_test {
            self.once(At::BehindTokens).await?;
        }
        if job.request.prompt == "goes on" {
            std::future::pending::<()>().await;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }

    async fn released(&self, _: u32) {
        if self.case.fired.load(SeqCst) {
            let _ = self.at(At::Released).await;
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        if self.probes.fetch_add(1, SeqCst) > 0 {
            self.at(At::Probe).await?; // The first is the self-test's.
        }
        Ok(Telemetry::default())
    }

    async fn failure(&self) -> EngineError {
        match self.at(At::Failure).await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if self.is_first && self.case.at == At::Drop {
            let _ = self.case.fail_at_once();
        }
    }
}

/// Times short enough for a test: a test of this kind waits for them in real time, all its runtimes at once.
fn pool() -> PoolConfig {
    let mut pool = PoolConfig::new("p", "faulty", "m");
    pool.slots = 2;
    pool.timeouts = TimeoutConfig {
        preload_ms: 1_500,
        idle_ms: 1_500,
        wall_ms: 60_000,
        stop_ms: 200,
        term_ms: 100,
        ..TimeoutConfig::default()
    };
    pool.restart = RestartConfig { backoff_ms: 10, backoff_max_ms: 50, ..RestartConfig::default() };
    pool
}

/// One runtime, from its start to its stop. Returns what its worker died of, and what its attempts were lost to.
async fn round(case: Arc<Case>) -> (Vec<Cause>, Vec<Cause>, Vec<String>) {
    let maker = case.clone();
    let builder = Orchestrator::builder().pool(pool(), move |_: &EngineContext| maker.make());
    let orchestrator = builder.start().await.unwrap();
    let submit = |prompt: &str| orchestrator.submit_when_room(TaskRequest::completion(prompt).max_tokens(TOKENS));
    let submitted = [submit("a").await.unwrap(), submit("b").await.unwrap(), submit("c").await.unwrap()];
    let mut streams: Vec<_> = submitted.iter().map(Submitted::stream).collect();
    for stream in streams.drain(..) {
        let (text, end) = stream.collect().await;
        assert!(matches!(end, Some(Event::End(_))), "{:?} {:?}: {end:?}", case.at, case.how);
        assert_eq!(text, words(TOKENS), "{:?} {:?}", case.at, case.how);
    }
    if case.at == At::Released {
        // A run that is cancelled has to be left.
        let goes_on = submit("goes on").await.unwrap();
        let mut stream = goes_on.stream();
        while !matches!(stream.next().await, Some((_, Event::Token { .. }))) {}
        case.fired.store(true, SeqCst);
        orchestrator.cancel(&goes_on.task_id);
    }
    let (dies, _) = documented(case.at, case.how);
    if case.at == At::Drop {
        let id = PoolId::parse("p").unwrap();
        orchestrator.reload(&id, &orchestrator_core::ModelChange::to_model("other")).unwrap();
        orchestrator.until_reloaded(&id).await.unwrap();
    }
    let deaths = || orchestrator.pools()[0].replicas[0].deaths.clone();
    if dies.is_some() {
        crate::support::eventually("the worker dies", || !deaths().is_empty()).await;
    }
    let ready = || orchestrator.pools()[0].state == PoolState::Ready;
    crate::support::eventually("the pool is Ready again", ready).await;
    let after = submit("again").await.unwrap().stream().collect().await;
    assert!(matches!(after.1, Some(Event::End(_))), "{:?}", after.1);
    let left = || orchestrator.pools().remove(0);
    crate::support::eventually("every slot is free", || left().slots_used == 0 && left().unsettled == 0).await;
    let view = left();
    let replica = &view.replicas[0];
    let said = replica.last_death.iter().map(|death| death.message.to_string()).collect();
    if case.at == At::Drop && case.how != How::Panic || case.at == At::Factory {
        case.gate.open(); // Else the end would wait for it.
    }
    orchestrator.stop(Duration::from_secs(10)).await;
    (replica.deaths.keys().copied().collect(), replica.attempts_failed.keys().copied().collect(), said)
}

async fn every_case(at: At) {
    let _alone = crate::support::alone().await;
    join_all([How::Panic, How::Hang, How::Error, How::Endless].map(|how| one_case(at, how))).await;
}

async fn one_case(at: At, how: How) {
    if matches!((at, how), (At::Released | At::Drop, How::Error)) {
        return; // They return nothing.
    }
    let alive = Alive::default();
    let new = || Case {
        at,
        how,
        lives: AtomicU32::new(0),
        fired: AtomicBool::new(false),
        alive: alive.clone(),
        gate: Gate::default(),
    };
    let rounds = join_all((0..ROUNDS).map(|_| tokio::spawn(round(Arc::new(new()))))).await;
    let (dies, lost) = documented(at, how);
    for (deaths, attempts, said) in rounds.into_iter().map(Result::unwrap) {
        assert_eq!(deaths, dies.into_iter().collect::<Vec<_>>(), "{at:?} {how:?}: {said:?}");
        // What runs when a worker dies is lost to the same.
        let lost: Vec<Cause> = lost.into_iter().collect();
        assert!(attempts == lost || attempts.iter().copied().eq(dies), "{at:?} {how:?}: {attempts:?} {said:?}");
        if how == How::Panic && dies.is_some() {
            assert!(said[0].contains("a stranger's bug"), "{said:?}");
        }
    }
    crate::support::eventually("no engine is left", || alive.count() == 0).await;
}

macro_rules! cases {
    ($($name:ident: $at:ident),* $(,)?) => {$(
        mod $name {
            use super::{At, every_case};

            #[tokio::test]
            async fn on_one_thread() {
                every_case(At::$at).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_two_threads() {
                every_case(At::$at).await;
            }
        }
    )*};
}

cases! {
    factory: Factory,
    preload: Preload,
    self_test: SelfTest,
    before_tokens: BeforeTokens,
    between_tokens: BetweenTokens,
    behind_tokens: BehindTokens,
    released: Released,
    probe: Probe,
    failure: Failure,
    drop_: Drop,
}
