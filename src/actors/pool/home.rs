//! A pool as its tasks and its clients' limits know it, which lie below it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::actors::pool::messages::QueueMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::quota::clients::Waiter;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::actors::task::home::Home;
use crate::actors::task::record::TaskRecord;
use crate::config::PoolConfig;
use crate::core::id::{ClientId, PoolId};
use crate::core::pool::model::ModelSpec;
use crate::core::task::TaskRequest;
use crate::core::task::resume::LossRule;

impl PoolShared {
    /// The pool that a task's record calls its home.
    pub(crate) fn of(home: Arc<dyn Home>) -> Option<Arc<PoolShared>> {
        home.into_any().downcast().ok()
    }
}

impl Home for PoolShared {
    fn id(&self) -> &PoolId {
        &self.id
    }

    fn number(&self) -> u16 {
        self.position
    }

    fn config(&self) -> &PoolConfig {
        &self.config
    }

    fn spec(&self) -> Arc<ModelSpec> {
        self.revision().spec.clone()
    }

    fn ctx(&self) -> u32 {
        self.model.ctx.load(Relaxed)
    }

    fn allowed_as(&self) -> &PoolId {
        PoolShared::allowed_as(self)
    }

    fn is_remote(&self) -> bool {
        PoolShared::is_remote(self)
    }

    fn serves_the_same_as(&self, identity: &ReplicaIdentity) -> bool {
        PoolShared::serves_the_same_as(self, identity)
    }

    fn loss_rule(&self, request: &TaskRequest) -> LossRule {
        PoolShared::loss_rule(self, request)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Waiter for PoolShared {
    fn number(&self) -> u16 {
        self.position
    }

    fn release(&self, client: &ClientId) {
        self.actors.queue.cast(QueueMsg::Release { client: client.clone() }); // Lost: a new queue passes nobody over.
    }
}

impl TaskRecord {
    /// The pool whose queue has the task.
    pub(crate) fn pool(&self) -> Option<Arc<PoolShared>> {
        self.home().and_then(PoolShared::of)
    }
}
