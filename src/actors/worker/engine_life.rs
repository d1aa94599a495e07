//! The two ends of an engine's life that are no calls of its own: the factory makes it, and it is dropped. Both run
//! code of whoever wrote it, which may panic, and which may block for as long as it likes: so both run on threads where
//! nobody else waits, and a load does not begin before what an earlier engine left is gone. In a simulation they run in
//! place, since threads of the system would have an order of their own.
//!
//! Spec: ORCH-3002, ORCH-3053.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::actors::pool::shared::PoolShared;
use crate::env::timeout_awake;
use crate::gpu::dyn_engine::{BoxedCall, DynEngine, catch};
use crate::gpu::engine::{EngineContext, EngineError, EngineInfo, Finish, Job, Teardown, Telemetry, TokenOutput};
use crate::gpu::threads;

/// Makes an engine within the pool's `preload_ms`.
///
/// # Errors
/// The factory panicked, or has not returned in time. An engine that it makes later is dropped.
///
/// # Cancel safety
/// Dropped, it leaves the factory running, and its engine is dropped behind it.
pub(in crate::actors) async fn make(
    pool: &Arc<PoolShared>,
    index: u16,
    context: EngineContext,
) -> Result<Arc<dyn DynEngine>, EngineError> {
    let (factory, site) = (pool.factory.clone(), context.site.clone());
    let whose = Arc::downgrade(pool);
    let make = move || {
        let engine = catch("the factory", || factory(&context))?;
        Ok(Husk { engine: Some(engine), pool: whose, index })
    };
    let made = if pool.env.is_simulated() {
        make()
    } else {
        let limit = Duration::from_millis(pool.config.timeouts.preload_ms);
        match timeout_awake(limit, threads::blocking(&Handle::current(), make)).await {
            Some(made) => made.unwrap_or_else(|_| Err(EngineError::Lost("the runtime ends".into()))),
            None => Err(EngineError::Hung(format!("the factory has not returned within {limit:?}").into())),
        }
    };
    let apart = (!pool.env.is_simulated()).then(|| (Handle::current(), site));
    Ok(Arc::new(Owned { husk: made?, apart }))
}

/// Lets go of an engine wherever it is dropped itself, and tells what that panics with.
struct Husk {
    engine: Option<Arc<dyn DynEngine>>,
    /// Whose it is. Not held: the pool holds its engines.
    pool: Weak<PoolShared>,
    index: u16,
}

impl Drop for Husk {
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else { return };
        let Err(error) = catch("drop", || drop(engine)) else { return };
        tracing::error!(%error, replica = self.index, "an engine could not be dropped");
        if let Some(pool) = self.pool.upgrade() {
            pool.replicas[self.index as usize].note_death_of(pool.env.now(), &error);
        }
    }
}

/// An engine from its factory to its end.
struct Owned {
    husk: Husk,
    /// Where it is dropped, and who waits for that; `None` is in place.
    apart: Option<(Handle, Teardown)>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let husk = Husk { engine: self.husk.engine.take(), pool: self.husk.pool.clone(), index: self.husk.index };
        if let Some((runtime, site)) = &self.apart {
            // A runtime that ends drops it in place.
            let gone = threads::blocking(runtime, move || drop(husk));
            site.leave(async move { drop(gone.await) });
        }
    }
}

impl Owned {
    fn engine(&self) -> &dyn DynEngine {
        match &self.husk.engine {
            Some(engine) => &**engine,
            None => unreachable!("it is taken when this is dropped"),
        }
    }
}

impl DynEngine for Owned {
    fn preload(&self) -> BoxedCall<'_, Result<EngineInfo, EngineError>> {
        self.engine().preload()
    }

    fn generate<'a>(
        &'a self,
        job: Job<'a>,
        out: &'a mut dyn TokenOutput,
    ) -> BoxedCall<'a, Result<Finish, EngineError>> {
        self.engine().generate(job, out)
    }

    fn released(&self, slot: u32) -> BoxedCall<'_, Result<(), EngineError>> {
        self.engine().released(slot)
    }

    fn probe(&self) -> BoxedCall<'_, Result<Telemetry, EngineError>> {
        self.engine().probe()
    }

    fn failure(&self) -> BoxedCall<'_, EngineError> {
        self.engine().failure()
    }
}
