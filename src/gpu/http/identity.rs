//! Whether a server is still the one that was loaded: same name, same model, same text (ORCH-3037, ORCH-3045).

use crate::gpu::engine::{EngineError, EngineInfo};
use crate::gpu::http::refusal::lost;
use crate::gpu::http::server::Server;

impl Server {
    /// Notes what the server said that it is when it was loaded.
    pub(crate) fn knows(&self, info: &EngineInfo) {
        let _ = self.known.set((info.engine_version.clone(), info.model_digest.clone())); // Loaded once.
    }

    /// Makes sure, before a run, that the server is still the one that was loaded: the connection that the run will
    /// have is open behind it.
    ///
    /// # Errors
    /// [`EngineError::Replaced`] when it is another one, [`EngineError::Unreachable`], and else [`EngineError::Busy`]:
    /// nothing has run.
    pub(crate) async fn recognise_for_run<F>(&self, identify: impl FnOnce() -> F) -> Result<(), EngineError>
    where
        F: Future<Output = Result<EngineInfo, EngineError>>,
    {
        self.client()?.reserve().await.map_err(lost)?;
        self.recognise(identify).await.map_err(|error| match error {
            EngineError::Replaced(_) | EngineError::Unreachable(_) | EngineError::Busy { .. } => error,
            other => {
                EngineError::Busy { retry_after: None, said: format!("it does not say what it serves: {other}").into() }
            }
        })
    }

    /// Makes sure that the server is still the one that was loaded, where another may have come in its place: a
    /// connection is new, or was found closed. `identify` asks it.
    ///
    /// # Errors
    /// [`EngineError::Replaced`] when it is another one; what it answers when it cannot be asked.
    pub(crate) async fn recognise<F>(&self, identify: impl FnOnce() -> F) -> Result<(), EngineError>
    where
        F: Future<Output = Result<EngineInfo, EngineError>>,
    {
        let gaps = self.client()?.gaps();
        let Some(gap) = gaps.open() else { return Ok(()) };
        self.compare(identify().await)?;
        gaps.clear(gap);
        Ok(())
    }

    /// Compares what the server says that it is with what it was when it was loaded.
    ///
    /// # Errors
    /// [`EngineError::Replaced`] when it is another one; what it answered when it could not be asked.
    pub(crate) fn compare(&self, says: Result<EngineInfo, EngineError>) -> Result<(), EngineError> {
        let info = says.map_err(|error| match error {
            EngineError::Preload(text) => EngineError::Replaced(text), // It does not serve the model any more.
            other => other,
        })?;
        let found = (info.engine_version, info.model_digest);
        match self.known.get() {
            Some(known) if *known != found => {
                Err(EngineError::Replaced(format!("it was {known:?} when it was loaded, and says {found:?}").into()))
            }
            _ => Ok(()),
        }
    }
}
