//! Which side of a rollout a task is for: the table of rollouts, which outlives the actor that moves them on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use crate::actors::pool::pools::Table;
use crate::actors::pool::shared::PoolShared;
use crate::actors::quota::clients::Policy;
use crate::core::id::PoolId;
use crate::core::pool::rollout::Rollout;
use crate::core::task::TaskRequest;

/// The rollouts, the newest last; at most one for each new pool.
#[derive(Default)]
pub(crate) struct Rollouts {
    table: RwLock<Arc<Vec<Rollout>>>,
    /// Held by whoever changes the table.
    pub(in crate::actors) change: Mutex<()>,
    /// Whether there is any: admission need not look at the table.
    any: AtomicBool,
}

impl Rollouts {
    /// All of them.
    pub(crate) fn all(&self) -> Arc<Vec<Rollout>> {
        self.table.read().clone()
    }

    pub(in crate::actors) fn set(&self, table: Vec<Rollout>) {
        self.any.store(!table.is_empty(), Relaxed);
        *self.table.write() = Arc::new(table);
    }

    /// The pools that this task is not for, because a rollout sends it to the other side.
    pub(crate) fn set_aside(&self, request: &TaskRequest, policy: &Policy, pools: &Table) -> Vec<PoolId> {
        if !self.any.load(Relaxed) {
            return Vec::new();
        }
        let mut aside = Vec::new();
        for rollout in self.all().iter() {
            let find = |id: &PoolId| pools.serving.iter().find(|pool| pool.id == *id);
            let (Some(old), Some(new)) = (find(&rollout.spec.from), find(&rollout.spec.to)) else { continue };
            let is_named = |pool: &PoolShared| request.model_ref.as_ref() == Some(&pool.revision().spec.model);
            let asks =
                |pool: &PoolShared| request.model_ref.as_ref().is_none_or(|name| pool.config.aliases.contains(name));
            let may_use = |pool: &PoolShared| request.may_use(&pool.id) && policy.allows(&pool.id);
            if is_named(old) || is_named(new) || !(asks(old) && asks(new) && may_use(old) && may_use(new)) {
                continue; // It asks for one of the two models and no other, or has no choice.
            }
            let takes_new = rollout.picks_new(key(request)) && new.state().takes_tasks();
            aside.push(if takes_new { old.id.clone() } else { new.id.clone() });
        }
        aside
    }
}

/// What stays on one side: a conversation, else a task.
fn key(request: &TaskRequest) -> u64 {
    use xxhash_rust::xxh3::xxh3_64;
    match (&request.session_id, &request.task_id) {
        (Some(session), _) => xxh3_64(format!("{} {session}", request.client_id).as_bytes()),
        (None, Some(task)) => task.stable_hash(),
        // An id was not chosen: its prompt decides, and the same prompt goes the same way.
        (None, None) => xxh3_64(request.prompt.as_bytes()),
    }
}
