//! A pool as its tasks and its clients' limits know it, which lie below it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::actors::pool::lease::SlotOwner;
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
        let pool: Arc<dyn Any + Send + Sync> = home;
        pool.downcast().ok()
    }

    /// The same, to look at it.
    pub(in crate::actors) fn at(home: &dyn Home) -> Option<&PoolShared> {
        let pool: &dyn Any = home;
        pool.downcast_ref()
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

#[cfg(test)]
impl PoolShared {
    /// A pool by itself, whose devices are well. For tests.
    pub(crate) fn alone(
        pool: crate::config::PoolConfig,
        env: crate::env::Env,
        factory: crate::gpu::dyn_engine::EngineFactory,
    ) -> Arc<Self> {
        let config = crate::config::Config { pools: vec![pool], ..Default::default() };
        let inventory = crate::core::device::Inventory::simulated("a test");
        let resolved = crate::config::resolve(&config, &inventory);
        let policy = crate::core::device::health::policy(std::time::Duration::ZERO);
        let devices = crate::actors::pool::devices::Devices::new(
            &inventory,
            &crate::core::id::DeviceMask::default(),
            policy,
            env.clone(),
        );
        Self::new((0, 0), &resolved, (env, Arc::new(devices)), factory).expect("valid")
    }
}

impl SlotOwner for PoolShared {
    fn take(&self, replica: u16, kv_tokens: u64) -> Option<u32> {
        let capacity = &self.replicas[replica as usize].capacity;
        let slot = capacity.slots.take()?;
        capacity.kv.reserve(kv_tokens);
        Some(slot)
    }

    fn release(&self, replica: u16, slot: u32, kv_tokens: u64) {
        let capacity = &self.replicas[replica as usize].capacity;
        capacity.slots.release(slot);
        capacity.kv.give_back(kv_tokens);
        self.nudge_manager_if_starving();
    }
}
