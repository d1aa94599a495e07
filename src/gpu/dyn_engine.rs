//! Engines behind a pointer, and the border around their code: a panic in a call ends that call with an error that has
//! its text, and takes nothing else along.
//!
//! Spec: ORCH-3053.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;

use crate::core::text::line::Line;
use crate::env::{ENGINE_PANIC, InjectedPanic};
use crate::gpu::engine::{Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};
use crate::planted::seeded_bug;

/// A boxed future of an [`Engine`] behind a pointer.
pub type BoxedCall<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An [`Engine`] behind a pointer, for host programs that choose among several at run time. Every [`Engine`] is one.
///
/// Each call costs an allocation. `Arc<dyn DynEngine>` and `Box<dyn DynEngine>` are engines again, so a factory may
/// return them. A panic in the engine's code comes back as [`EngineError::Panicked`].
///
/// ```
/// use std::sync::Arc;
/// use orchestrator_core::{Orchestrator, config::PoolConfig, gpu::{DynEngine, SimEngine}};
///
/// let builder = Orchestrator::builder().pool(PoolConfig::new("demo", "sim", "tiny"), |context| {
///     let engine: Arc<dyn DynEngine> = match context.pool.engine.as_str() {
///         "sim" => Arc::new(SimEngine::new(context)),
///         other => panic!("there is no engine {other}"),
///     };
///     engine
/// });
/// # drop(builder);
/// ```
pub trait DynEngine: Send + Sync + 'static {
    /// [`Engine::preload`].
    fn preload(&self) -> BoxedCall<'_, Result<EngineInfo, EngineError>>;
    /// [`Engine::generate`].
    fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput)
    -> BoxedCall<'a, Result<Finish, EngineError>>;
    /// [`Engine::released`]; an error when it panicked, which says nothing of the slot.
    fn released(&self, slot: u32) -> BoxedCall<'_, Result<(), EngineError>>;
    /// [`Engine::probe`].
    fn probe(&self) -> BoxedCall<'_, Result<Telemetry, EngineError>>;
    /// [`Engine::failure`].
    fn failure(&self) -> BoxedCall<'_, EngineError>;
}

impl<E: Engine> DynEngine for E {
    fn preload(&self) -> BoxedCall<'_, Result<EngineInfo, EngineError>> {
        Box::pin(Caught::new("preload", || Engine::preload(self)))
    }

    fn generate<'a>(
        &'a self,
        job: Job<'a>,
        out: &'a mut dyn TokenOutput,
    ) -> BoxedCall<'a, Result<Finish, EngineError>> {
        Box::pin(Caught::new("generate", || Engine::generate(self, job, out)))
    }

    fn released(&self, slot: u32) -> BoxedCall<'_, Result<(), EngineError>> {
        Box::pin(Caught::new("released", move || Engine::released(self, slot).map(Ok)))
    }

    fn probe(&self) -> BoxedCall<'_, Result<Telemetry, EngineError>> {
        Box::pin(Caught::new("probe", || Engine::probe(self)))
    }

    fn failure(&self) -> BoxedCall<'_, EngineError> {
        let failure = Caught::new("failure", || Engine::failure(self).map(Ok::<EngineError, EngineError>));
        Box::pin(failure.map(|caught| caught.unwrap_or_else(|panicked| panicked)))
    }
}

pin_project_lite::pin_project! {
    /// An engine's call. Where its code panics, before its first await or behind it, the call ends with an error that
    /// says so.
    struct Caught<F> {
        during: &'static str,
        // The error of a call that panicked before there was a future.
        at_once: Option<EngineError>,
        #[pin]
        call: Option<F>,
    }
}

impl<F> Caught<F> {
    fn new(during: &'static str, call: impl FnOnce() -> F) -> Self {
        match catch(during, call) {
            Ok(call) => Caught { during, at_once: None, call: Some(call) },
            Err(error) => Caught { during, at_once: Some(error), call: None },
        }
    }
}

impl<F: Future<Output = Result<T, EngineError>>, T> Future for Caught<F> {
    type Output = Result<T, EngineError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, EngineError>> {
        let this = self.project();
        match this.call.as_pin_mut() {
            Some(call) => match catch_unwind(AssertUnwindSafe(|| call.poll(context))) {
                Ok(polled) => polled,
                Err(payload) => Poll::Ready(Err(panicked(this.during, payload))),
            },
            // Polled behind its end, it never comes back.
            None => this.at_once.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        }
    }
}

/// What the engine's code returns; an error when it panicked.
///
/// # Errors
/// [`EngineError::Panicked`].
pub(crate) fn catch<T>(during: &'static str, call: impl FnOnce() -> T) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| panicked(during, payload))
}

/// What a panic of an engine's code says. One that a simulation planted in an actor of ours goes on its way.
fn panicked(during: &'static str, payload: Box<dyn Any + Send>) -> EngineError {
    let is_ours = payload.downcast_ref::<InjectedPanic>().is_some_and(|injected| injected.0 != ENGINE_PANIC);
    if is_ours || seeded_bug!(LosePanic) {
        resume_unwind(payload);
    }
    EngineError::Panicked { during, said: text_of(&*payload) }
}

/// The text of a panic.
pub(crate) fn text_of(payload: &(dyn Any + Send)) -> Line {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text").into()
}

impl Engine for dyn DynEngine {
    fn preload(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send {
        DynEngine::preload(self)
    }

    fn generate<'a>(
        &'a self,
        job: Job<'a>,
        out: &'a mut dyn TokenOutput,
    ) -> impl Future<Output = Result<Finish, EngineError>> + Send + 'a {
        DynEngine::generate(self, job, out)
    }

    async fn released(&self, slot: u32) {
        if let Err(error) = DynEngine::released(self, slot).await {
            resume_unwind(Box::new(error.to_string())); // It has been shown already; whoever holds this one hears of it, too.
        }
    }

    fn probe(&self) -> impl Future<Output = Result<Telemetry, EngineError>> + Send {
        DynEngine::probe(self)
    }

    fn failure(&self) -> impl Future<Output = EngineError> + Send {
        DynEngine::failure(self)
    }
}

/// The methods of an engine that another one stands for.
macro_rules! as_its_engine {
    ($($pointer:ty),*) => {$(
        impl<E: Engine + ?Sized> Engine for $pointer {
            fn preload(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send {
                (**self).preload()
            }

            fn generate<'a>(
                &'a self,
                job: Job<'a>,
                out: &'a mut dyn TokenOutput,
            ) -> impl Future<Output = Result<Finish, EngineError>> + Send + 'a {
                (**self).generate(job, out)
            }

            fn released(&self, slot: u32) -> impl Future<Output = ()> + Send {
                (**self).released(slot)
            }

            fn probe(&self) -> impl Future<Output = Result<Telemetry, EngineError>> + Send {
                (**self).probe()
            }

            fn failure(&self) -> impl Future<Output = EngineError> + Send {
                (**self).failure()
            }
        }
    )*};
}

as_its_engine!(Arc<E>, Box<E>);

/// An engine that could perhaps not be made: a factory may return this. The error is what its load fails with.
impl<E: Engine> Engine for Result<E, EngineError> {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Engine::preload(self.as_ref().map_err(Clone::clone)?).await
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        Engine::generate(self.as_ref().map_err(Clone::clone)?, job, out).await
    }

    async fn released(&self, slot: u32) {
        if let Ok(engine) = self {
            Engine::released(engine, slot).await;
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        Engine::probe(self.as_ref().map_err(Clone::clone)?).await
    }

    async fn failure(&self) -> EngineError {
        match self {
            Ok(engine) => Engine::failure(engine).await,
            Err(_) => std::future::pending().await, // Its load has said so.
        }
    }
}

/// Makes the engine of a worker's next life.
pub(crate) type EngineFactory = Arc<dyn Fn(&EngineContext) -> Arc<dyn DynEngine> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::TaskId;
    use crate::core::task::{FinishReason, TaskRequest};
    use crate::gpu::engine::Pieces;

    /// Panics in each of its methods, before the first await or behind it.
    struct Panics {
        at_once: bool,
    }

    impl Panics {
        async fn later<T>(&self, text: &str) -> T {
            tokio::task::yield_now().await;
            panic!("{text}")
        }

        fn at_once(&self) {
            assert!(!self.at_once, "at once");
        }
    }

    impl Engine for Panics {
        fn preload(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send {
            self.at_once();
            self.later("no model")
        }

        fn generate<'a>(
            &'a self,
            _: Job<'a>,
            _: &'a mut dyn TokenOutput,
        ) -> impl Future<Output = Result<Finish, EngineError>> + Send + 'a {
            self.at_once();
            self.later("no words")
        }

        fn released(&self, _: u32) -> impl Future<Output = ()> + Send {
            self.at_once();
            self.later("no end")
        }

        fn probe(&self) -> impl Future<Output = Result<Telemetry, EngineError>> + Send {
            self.at_once();
            self.later("no figures")
        }

        fn failure(&self) -> impl Future<Output = EngineError> + Send {
            self.at_once();
            self.later("no watch")
        }
    }

    async fn each(engine: &dyn DynEngine) -> Vec<String> {
        let (task_id, request) = (TaskId::parse("t").expect("valid"), TaskRequest::completion("x"));
        let mut out = Pieces::default();
        let said = |error: Option<EngineError>| error.map_or_else(String::new, |error| error.to_string());
        vec![
            said(engine.preload().await.err()),
            said(engine.generate(Job::new(&task_id, &request), &mut out).await.err()),
            said(engine.released(0).await.err()),
            said(engine.probe().await.err()),
            said(Some(engine.failure().await)),
        ]
    }

    #[tokio::test]
    async fn a_panic_in_any_call_is_its_error_with_its_text() {
        let want = [
            "the engine panicked in preload: no model",
            "the engine panicked in generate: no words",
            "the engine panicked in released: no end",
            "the engine panicked in probe: no figures",
            "the engine panicked in failure: no watch",
        ];
        assert_eq!(each(&Panics { at_once: false }).await, want);
        let at_once = each(&Panics { at_once: true }).await;
        assert!(at_once.iter().all(|said| said.ends_with(": at once")), "{at_once:?}");
    }

    #[tokio::test]
    async fn what_points_to_an_engine_is_one() {
        let shared: Arc<dyn DynEngine> = Arc::new(Panics { at_once: false });
        let boxed: Box<dyn DynEngine> = Box::new(shared);
        let said = each(&boxed).await;
        assert_eq!(said[0], "the engine panicked in preload: no model");
        assert!(said[2].contains("no end"), "{said:?}");
        let made: Result<Panics, EngineError> = Err(EngineError::Preload("no such file".into()));
        assert_eq!(
            DynEngine::preload(&made).await.err().map(|error| error.to_string()).as_deref(),
            Some("preload failed: no such file")
        );
    }

    #[tokio::test]
    async fn a_panic_that_was_planted_in_an_actor_is_no_engines() {
        struct Planted;
        impl Engine for Planted {
            async fn preload(&self) -> Result<EngineInfo, EngineError> {
                std::panic::panic_any(InjectedPanic("worker"))
            }
            async fn generate<'a>(&'a self, _: Job<'a>, _: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
                Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
            }
        }
        let ended = tokio::spawn(async { DynEngine::preload(&Planted).await.map(drop) }).await;
        assert!(ended.expect_err("it goes on its way").into_panic().is::<InjectedPanic>());
    }
}
