//! Engines by the names that configurations have for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gpu::dyn_engine::{DynEngine, EngineFactory};
use crate::gpu::engine::{Engine, EngineContext};

/// What makes each engine that a configuration may name (`pools[].engine`). The service has one of its six engines; a
/// host program makes its own, and gives it to [`Builder::engines`](crate::Builder::engines).
///
/// ```
/// use orchestrator_core::gpu::{EngineRegistry, SimEngine};
///
/// let engines = EngineRegistry::new().with("sim", SimEngine::new);
/// assert_eq!(engines.names().collect::<Vec<_>>(), ["sim"]);
/// ```
#[derive(Clone, Default)]
pub struct EngineRegistry(BTreeMap<String, EngineFactory>);

impl EngineRegistry {
    /// One without engines.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one engine more, or another of that name. `factory` makes one for each life of each worker; it
    /// runs on a thread where it may block, may return a [`Result`] of an engine, and may panic: that is a failed load.
    #[must_use]
    pub fn with<E, F>(mut self, name: impl Into<String>, factory: F) -> Self
    where
        E: Engine,
        F: Fn(&EngineContext) -> E + Send + Sync + 'static,
    {
        self.0.insert(name.into(), boxed(factory));
        self
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&EngineFactory> {
        self.0.get(name)
    }
}

impl std::fmt::Debug for EngineRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// A factory of engines behind pointers.
pub(crate) fn boxed<E, F>(factory: F) -> EngineFactory
where
    E: Engine,
    F: Fn(&EngineContext) -> E + Send + Sync + 'static,
{
    Arc::new(move |context| Arc::new(factory(context)) as Arc<dyn DynEngine>)
}
