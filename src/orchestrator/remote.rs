//! Pools of other nodes, as pools of this runtime: they come and go with their nodes, beside those of the
//! configuration.

use std::sync::Arc;

use crate::actors::pool::pools::Table;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::messages::RootMsg;
use crate::config::{Config, ConfigError, PoolConfig, resolve};
use crate::core::cluster::node::NodeName;
use crate::core::device::Inventory;
use crate::core::id::PoolId;
use crate::gpu::dyn_engine::EngineFactory;
use crate::orchestrator::builder::places;
use crate::orchestrator::handle::Orchestrator;
use crate::orchestrator::reconfigure::{NUMBERS_USED_UP, serving_places};

impl Orchestrator {
    /// Adds another node's pool.
    ///
    /// # Errors
    /// What is wrong with it; a pool of that name is there; the runtime is being stopped. Nothing has changed.
    pub(crate) fn add_remote(
        &self,
        (node, name): (&NodeName, &PoolId),
        config: PoolConfig,
        factory: EngineFactory,
    ) -> Result<Arc<PoolShared>, ConfigError> {
        let runtime = self.shared();
        let fault = |message: String| ConfigError { path: format!("pool {}", config.id), message };
        let one = Config { pools: vec![config.clone()], ..Config::default() };
        if let Some(fault) = one.faults().into_iter().next() {
            return Err(fault);
        }
        let mut next_number = runtime.pools.begin_change();
        let now = runtime.pools.table();
        if runtime.pools.is_stopping() || self.has_ended() {
            return Err(fault("the runtime is being stopped".into()));
        }
        if now.serving.iter().any(|pool| pool.id.as_str() == config.id) {
            return Err(fault("there is a pool of that name".into()));
        }
        let number = u16::try_from(*next_number).map_err(|_| fault(NUMBERS_USED_UP.into()))?;
        let resolved = resolve(&one, &Inventory::simulated("it has no devices here"));
        let around = (runtime.env.clone(), runtime.devices.clone());
        let pool = PoolShared::new((number, 0), &resolved, around, factory)?;
        pool.set_node(node.clone(), name.clone());
        *pool.figures.objectives.lock() = runtime.config().objectives.wanted();
        *next_number += 1;
        let serving = now.serving.iter().chain([&pool]).cloned().collect();
        runtime.pools.set(Table { serving, leaving: now.leaving.clone() });
        self.count_places();
        runtime.actors.root.cast(RootMsg::PoolsChanged); // Nobody there: the next root starts all there are.
        Ok(pool)
    }

    /// Lets another node's pool go. What waits in it goes to a pool of the same set, if there is one.
    pub(crate) fn remove_remote(&self, pool: &Arc<PoolShared>) {
        let runtime = self.shared();
        let next_number = runtime.pools.begin_change();
        let now = runtime.pools.table();
        let serving = now.serving.iter().filter(|other| !Arc::ptr_eq(other, pool)).cloned().collect();
        let successor = pool.peers().find(|peer| !peer.is_leaving());
        let leaving = now.leaving.iter().chain([pool]).cloned().collect();
        runtime.pools.set(Table { serving, leaving });
        self.count_places();
        pool.leave(successor, *next_number);
        runtime.actors.root.cast(RootMsg::PoolsChanged); // Nobody there: the next root starts all there are.
    }

    fn count_places(&self) {
        let runtime = self.shared();
        runtime.gate.set_limit(places(&runtime.settings().given) + serving_places(&runtime.pools.table()));
    }
}
