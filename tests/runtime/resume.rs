//! An attempt that is lost is run again, and whoever reads the stream does not see it: the same bytes, each token once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::resume::OnLoss;
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::gpu::sim::{SimEngine, undisturbed};
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Exit, Finish, Job, Stopped, TokenOutput};
use orchestrator_core::{Env, ErrorCode, Event, Orchestrator, TaskRequest};

use crate::support::{hush_planned_panics, millisecond, pool, read_whole, request, until_idle};

/// How an attempt is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The connection breaks.
    Lost,
    /// What comes makes no sense.
    Garbled,
    /// The engine's process ends, and the worker with it.
    Exits,
    /// The attempt's code panics.
    Panics,
    /// No token comes any more.
    Hangs,
    /// The worker actor panics.
    WorkerPanics,
}

const WAYS: [Way; 6] = [Way::Lost, Way::Garbled, Way::Exits, Way::Panics, Way::Hangs, Way::WorkerPanics];

/// What is to happen to the next attempts.
#[derive(Clone)]
struct Plan {
    way: Way,
    /// Tokens that an attempt gives before it is lost.
    tokens: u32,
    /// Attempts that are still to be lost.
    deaths: Arc<AtomicU32>,
    env: Env,
    /// From this token on, a second attempt gives others.
    differs_from: Option<u32>,
    /// Attempts that are not lost give so many tokens in one piece.
    tokens_a_piece: usize,
}

/// The simulated engine, of which attempts are lost by plan.
struct Mortal {
    engine: SimEngine,
    plan: Plan,
    exited: tokio::sync::Notify,
}

struct Cut<'a> {
    out: &'a mut dyn TokenOutput,
    left: Option<u32>,
    differs_in: Option<u32>,
}

/// Several tokens in one piece, as busy servers send them.
struct Pieces<'a> {
    out: &'a mut dyn TokenOutput,
    tokens: usize,
    held: Vec<String>,
}

impl Pieces<'_> {
    fn flush(&mut self) -> Result<(), Stopped> {
        self.out.push(&std::mem::take(&mut self.held).concat())
    }
}

impl TokenOutput for Pieces<'_> {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        self.held.push(text.to_owned());
        if self.held.len() < self.tokens { Ok(()) } else { self.flush() }
    }
}

impl TokenOutput for Cut<'_> {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        if self.left == Some(0) {
            return Err(Stopped);
        }
        self.left = self.left.map(|left| left - 1);
        let differs = self.differs_in == Some(0);
        self.differs_in = self.differs_in.map(|left| left.saturating_sub(1));
        self.out.push(if differs { " otherwise" } else { text })
    }
}

impl Engine for Mortal {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Engine::preload(&self.engine).await
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let Plan { way, tokens, ref deaths, ref env, differs_from, tokens_a_piece } = self.plan;
        let dies = deaths.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        let differs_in = if dies { None } else { differs_from };
        let mut pieces = Pieces { out, tokens: if dies { 1 } else { tokens_a_piece }, held: Vec::new() };
        let mut cut = Cut { out: &mut pieces, left: dies.then_some(tokens), differs_in };
        let result = Engine::generate(&self.engine, job, &mut cut).await;
        if !dies {
            pieces.flush().ok();
            return result;
        }
        match way {
            Way::Lost => Err(EngineError::Lost("the connection broke".into())),
            Way::Garbled => Err(EngineError::Garbled("0xff".into())),
            Way::Exits => {
                self.exited.notify_one();
                std::future::pending().await
            }
            Way::Panics => std::panic::panic_any(orchestrator_core::env::InjectedPanic("attempt")),
            Way::Hangs => std::future::pending().await,
            Way::WorkerPanics => {
                // At its next message, which is that the engine is suspected.
                env.arm_panic("worker");
                Err(EngineError::Lost("and nobody is there to hear of it".into()))
            }
        }
    }

    async fn failure(&self) -> EngineError {
        self.exited.notified().await;
        EngineError::Exited { how: Exit::Signal(9), said: "".into() }
    }
}

fn mortal_pool(replicas: u32) -> PoolConfig {
    let mut pool = pool("a", replicas, 1, millisecond());
    pool.timeouts.idle_ms = 500;
    pool.restart.backoff_ms = 10;
    pool.restart.intensity = 1000;
    pool
}

async fn start(pool: PoolConfig, plan: Plan) -> Orchestrator {
    hush_planned_panics();
    let builder = Orchestrator::builder().env(plan.env.clone());
    let factory = move |context: &_| Mortal {
        engine: SimEngine::new(context),
        plan: plan.clone(),
        exited: tokio::sync::Notify::new(),
    };
    let orchestrator = builder.pool(pool, factory).start().await.unwrap();
    orchestrator.until_ready().await;
    orchestrator
}

const LENGTH: u32 = 12;

fn task(number: u64) -> TaskRequest {
    request(&format!("t{number}"), LENGTH).seed(number)
}

async fn run(orchestrator: &Orchestrator, request: TaskRequest) -> (String, Event) {
    read_whole(orchestrator.submit(request).await.unwrap().stream()).await
}

fn plan(way: Way, tokens: u32, deaths: u32) -> Plan {
    Plan {
        way,
        tokens,
        deaths: Arc::new(AtomicU32::new(deaths)),
        env: Env::simulated(3),
        differs_from: None,
        tokens_a_piece: 1,
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_token_up_to_three_times_a_stream_is_the_undisturbed_one() {
    let (text, _) = run(&start(mortal_pool(1), plan(Way::Lost, 0, 0)).await, task(1)).await;
    let mut runs = 0;
    for way in WAYS {
        for replicas in [1, 2] {
            for tokens in 0..=LENGTH {
                for deaths in 1..=3 {
                    let plan = plan(way, tokens, deaths);
                    let orchestrator = start(mortal_pool(replicas), plan.clone()).await;
                    // `read_whole` checks that token indices are 0, 1, 2 and so on, each once.
                    let (seen, end) = run(&orchestrator, task(1)).await;
                    let case = format!("{way:?} behind {tokens} tokens, {deaths} times, {replicas} replicas");
                    assert_eq!(seen, text, "{case}");
                    let Event::End(end) = end else { panic!("{case}: {end:?}") };
                    assert_eq!((end.tokens_out, end.attempts), (LENGTH, deaths + 1), "{case}");
                    assert_eq!(plan.deaths.load(SeqCst), 0, "{case}");
                    until_idle(&orchestrator).await;
                    let view = &orchestrator.pools()[0];
                    assert_eq!((view.resumed, view.diverged, view.unsettled), (deaths.into(), 0, 0), "{case}");
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs in {} ways, each byte for byte the undisturbed one", WAYS.len());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_cuts_its_text_otherwise_the_second_time_is_resumed_byte_for_byte() {
    let (text, _) = run(&start(mortal_pool(1), plan(Way::Lost, 0, 0)).await, task(1)).await;
    for tokens in 0..=LENGTH {
        for tokens_a_piece in 1..=5 {
            let plan = Plan { tokens_a_piece, ..plan(Way::Lost, tokens, 1) };
            let (seen, end) = run(&start(mortal_pool(2), plan).await, task(1)).await;
            assert_eq!(seen, text, "behind {tokens} tokens, then {tokens_a_piece} a piece");
            assert!(matches!(end, Event::End(_)), "{end:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_repeat_itself_ends_the_task_and_is_never_spliced() {
    for differs in 0..8 {
        let plan = Plan { differs_from: Some(differs), ..plan(Way::Lost, 8, 1) };
        let orchestrator = start(mortal_pool(1), plan).await;
        let (seen, end) = run(&orchestrator, task(1)).await;
        let Event::Error(error) = end else { panic!("{end:?}") };
        assert_eq!(error.code, ErrorCode::WorkerReset);
        assert!(error.message.contains(&format!("token {differs} is not")), "{error}");
        assert!(!seen.contains("otherwise"), "{seen}");
        assert_eq!(orchestrator.pools()[0].diverged, 1);
    }
    // One that differs behind what was seen is just another continuation.
    let plan = Plan { differs_from: Some(8), ..plan(Way::Lost, 8, 1) };
    let orchestrator = start(mortal_pool(1), plan).await;
    assert!(matches!(run(&orchestrator, task(1)).await.1, Event::End(_)));
}

#[tokio::test(start_paused = true)]
async fn a_task_says_what_becomes_of_it_and_else_its_pool_does() {
    for (wish, tokens, again) in [
        (OnLoss::Resume, 5, true),
        (OnLoss::RestartIfNoToken, 0, true),
        (OnLoss::RestartIfNoToken, 1, false),
        (OnLoss::Fail, 0, false),
    ] {
        for of_task in [true, false] {
            let plan = plan(Way::Lost, tokens, 1);
            let mut pool = mortal_pool(2);
            let mut request = task(1);
            if of_task {
                (request.on_loss, pool.resume.on_loss) = (Some(wish), Some(OnLoss::Fail));
            } else {
                pool.resume.on_loss = Some(wish);
            }
            let orchestrator = start(pool, plan).await;
            let (seen, end) = run(&orchestrator, request).await;
            let ended_well = matches!(&end, Event::End(end) if end.finish_reason == FinishReason::Length);
            assert_eq!(ended_well, again, "{wish:?} behind {tokens} tokens: {end:?}");
            let reset = matches!(&end, Event::Error(error) if error.code == ErrorCode::WorkerReset);
            assert!(again || reset && seen.split_whitespace().count() <= tokens as usize);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_continues_is_asked_for_the_rest_and_says_behind_which_token() {
    for tokens in 0..=LENGTH {
        let mut request = task(1);
        request.on_loss = Some(OnLoss::Continue);
        let orchestrator = start(mortal_pool(2), plan(Way::Lost, tokens, 1)).await;
        let mut stream = orchestrator.submit(request.clone()).await.unwrap().stream();
        let (mut behind, mut text, mut end) = (Vec::new(), String::new(), None);
        while let Some((_, event)) = stream.next().await {
            match event {
                Event::Started(started) => behind.push(started.continues_behind),
                Event::Token { text: token, .. } => text += &token,
                other => end = Some(other),
            }
        }
        let begin = undisturbed(&request.prompt, 1, tokens, "1", "tiny");
        let rest = undisturbed(&(request.prompt.clone() + &begin), 1, LENGTH - tokens, "1", "tiny");
        assert_eq!(text, begin + &rest, "behind {tokens} tokens");
        assert_eq!(behind, [None, (tokens > 0).then_some(tokens)]);
        let Some(Event::End(end)) = end else { panic!("{end:?}") };
        assert_eq!((end.finish_reason, end.tokens_out, end.attempts), (FinishReason::Length, LENGTH, 2));
        assert_eq!(orchestrator.pools()[0].diverged, 0, "nothing is compared");
        until_idle(&orchestrator).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_an_engine_that_never_repeats_itself_no_resume_is_tried_that_nobody_asked_for() {
    use orchestrator_core::core::resume::DeterminismClass;
    for (class, wish, ends_well) in [
        (DeterminismClass::None, None, false),
        (DeterminismClass::None, Some(OnLoss::Resume), true),
        (DeterminismClass::None, Some(OnLoss::Continue), true),
        (DeterminismClass::SingleSlot, None, true),
    ] {
        let mut pool = mortal_pool(2);
        pool.determinism_class = Some(class);
        let request = TaskRequest { on_loss: wish, ..task(1) };
        let orchestrator = start(pool, plan(Way::Lost, 5, 1)).await;
        let (_, end) = run(&orchestrator, request).await;
        assert_eq!(matches!(end, Event::End(_)), ends_well, "{class:?} {wish:?} {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_kills_every_engine_ends_after_its_bound_and_leaves_the_set_alive() {
    let plan = plan(Way::Exits, 3, 4);
    let mut pool = mortal_pool(2);
    pool.restart = orchestrator_core::config::RestartConfig::default();
    let orchestrator = start(pool, plan.clone()).await;
    let (_, end) = run(&orchestrator, task(1)).await;
    assert!(matches!(&end, Event::Error(error) if error.code == ErrorCode::WorkerReset), "{end:?}");
    assert_eq!(plan.deaths.load(SeqCst), 0, "four attempts, and no fifth");
    orchestrator.until_ready().await;
    for number in 2..20 {
        let (_, end) = run(&orchestrator, task(number)).await;
        assert!(matches!(end, Event::End(_)), "the set serves: {end:?}");
    }
    let restarts: Vec<u64> = orchestrator.pools()[0].replicas.iter().map(|replica| replica.restarts).collect();
    assert_eq!(restarts.iter().sum::<u64>(), 4, "{restarts:?}: one for each attempt, and no breaker has opened");
}
