//! Who an engine says that it is, and whether it may join the others of its pool.
//!
//! Spec: ORCH-3032, ORCH-3046.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::revision::Revision;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::gpu::engine::{EngineError, EngineInfo};

/// What a pool's replicas say of themselves must be the same, or their tokens would not be (ORCH-3046): the first of
/// those with one model says what it is. What this one says is noted in its place.
///
/// # Errors
/// [`EngineError::Preload`] when it is not like the others, or its context is too short.
pub(crate) fn check_identity(
    pool: &PoolShared,
    place: &ReplicaShared,
    started_with: Option<&Arc<Revision>>,
    info: EngineInfo,
) -> Result<Arc<ReplicaIdentity>, EngineError> {
    // What it was started with: its place may have been given another one since.
    let revision = started_with.cloned().unwrap_or_else(|| place.revision());
    match (info.ctx, revision.spec.ctx) {
        (Some(ctx), Some(wanted)) if ctx.0 < wanted => {
            let text = format!("a slot has a context of {ctx} tokens, the pool is configured for {wanted}");
            return Err(EngineError::Preload(text.into()));
        }
        _ => {}
    }
    let identity = Arc::new(ReplicaIdentity {
        replica: place.id.clone(),
        engine: pool.config.engine.clone(),
        engine_version: info.engine_version,
        model_digest: info.model_digest,
        process_id: info.process_id,
        spec: revision.spec.clone(),
        ctx: info.ctx.map(|ctx| ctx.0),
        generation: revision.generation,
    });
    let ours = Arc::new((identity.engine_version.clone(), identity.model_digest.clone()));
    let is_served = pool.revision().generation == revision.generation;
    let mut pinned = pool.model.pinned.lock(); // Over both, the look and the join: two loads cannot pass each other.
    let others = pool.replicas.iter().filter(|other| other.id != identity.replica);
    let theirs = others.filter_map(|other| other.loaded.identity.lock().clone());
    let theirs = theirs.into_iter().find(|theirs| theirs.generation == revision.generation);
    if let Some(theirs) = theirs.map(|theirs| (theirs.engine_version.clone(), theirs.model_digest.clone()))
        && theirs != *ours
    {
        return Err(EngineError::Preload(format!("{ours:?} is not the replica set's {theirs:?}").into()));
    }
    // The pool goes by the name of what it served first, until it is reloaded: a server that was exchanged does not
    // take it over.
    let first = pinned.as_ref().filter(|first| is_served && !pool.is_remote() && first.1 != ours.1);
    if let Some(first) = first {
        return Err(EngineError::Preload(format!(
            "the engine serves another model than before: its digest is {}, the pool's is {}; reload the pool to take it",
            ours.1, first.1
        ).into()));
    }
    if is_served {
        *pinned = Some(ours);
        if let (Some(ctx), None) = (info.ctx, revision.spec.ctx) {
            pool.model.ctx.store(ctx.0, Relaxed);
        }
    }
    *place.loaded.identity.lock() = Some(identity.clone());
    Ok(identity)
}
