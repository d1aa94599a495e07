//! Changing what a pool serves while it serves (ORCH-3031).

use crate::actors::pool::messages::PoolSupervisorMsg;
use crate::actors::pool::revision::ReloadView;
use crate::core::id::PoolId;
use crate::core::pool::model::ModelChange;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// Begins to reload a pool: its replicas are left, ended and started with the new model, one after the other;
    /// waiting tasks keep their places. The pool serves one model at every moment and changes over when half of the
    /// replicas have the new one. It is undone, and the reason kept in [`ReloadView::reason`], when a replica with the
    /// new model does not load, fails its self-test or dies before the end, or when a replica's tasks have not ended
    /// within the pool's `drain_ms`.
    ///
    /// Tasks that name a model, a sampler profile or a context which the pool has not any more end with
    /// `POOL_UNAVAILABLE` at that moment. A task that loses its worker behind its first token is not resumed on another
    /// model: it ends with `WORKER_RESET`.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a change that cannot be, or no such pool; `POOL_UNAVAILABLE` when the pool drains, has
    /// stopped, or is being reloaded already. A reload that is being undone may be followed by another at once.
    pub fn reload(&self, pool: &PoolId, change: &ModelChange) -> Result<ReloadView, TaskError> {
        let unknown = || TaskError::new(ErrorCode::InvalidParams, format!("there is no pool {pool}"));
        let pool = self.pool_shared(pool).ok_or_else(unknown)?;
        pool.begin_reload(change)?;
        pool.actors.supervisor.cast(PoolSupervisorMsg::Reload); // Nobody there: the next one finds the reload.
        pool.reload_view().ok_or_else(|| TaskError::new(ErrorCode::Internal, "a reload that began is unknown"))
    }

    /// Waits until no reload of a pool is under way, and returns the last one; `None` when there was none, or no such
    /// pool.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless; the reload goes on.
    pub async fn until_reloaded(&self, pool: &PoolId) -> Option<ReloadView> {
        let shared = self.pool_shared(pool)?;
        self.until_pool(pool, |_| !shared.is_reloading()).await;
        shared.reload_view()
    }
}
