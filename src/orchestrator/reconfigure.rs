//! Another configuration while the runtime serves: checked whole, then put in force in one step (ORCH-3031).

use std::sync::Arc;

use crate::actors::pool::messages::PoolSupervisorMsg;
use crate::actors::pool::pools::Table;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::Settings;
use crate::actors::runtime::messages::RootMsg;
use crate::config::check::change;
use crate::config::{Config, ConfigChange, ConfigError, PoolConfig, resolve};
use crate::core::id::{DeviceMask, PoolId};
use crate::core::pool::model::{ModelChange, ModelSpec};
use crate::core::pool::rollout::{Rollout, RolloutSpec};
use crate::core::task::error::TaskError;
use crate::orchestrator::builder::{Builder, places};
use crate::orchestrator::handle::Orchestrator;

impl Orchestrator {
    /// The configuration that is in force, as it was given.
    pub fn config(&self) -> Arc<Config> {
        self.runtime.settings().given
    }

    /// The number of the configuration that is in force: 1 at the start, and one more for each change.
    pub fn config_generation(&self) -> u64 {
        self.runtime.settings().generation
    }

    /// Pools that are not in the configuration any more, and not through with their tasks yet.
    pub fn leaving(&self) -> Vec<PoolId> {
        self.runtime.pools.table().leaving.iter().map(|pool| pool.id.clone()).collect()
    }

    /// Every rollout of a model by percentage, the newest last (ORCH-3033).
    pub fn rollouts(&self) -> Vec<Rollout> {
        self.runtime.rollouts.all().to_vec()
    }

    /// Begins to send a share of the tasks to a pool with a new model, and goes on or back by how it does (ORCH-3033).
    ///
    /// # Errors
    /// `INVALID_PARAMS`: the spec is none, a pool is not there, the pools have no alias in common, or one of them is
    /// part of a rollout that is under way.
    pub fn begin_rollout(&self, spec: RolloutSpec) -> Result<Rollout, TaskError> {
        self.runtime.begin_rollout(spec)
    }

    /// Ends the rollout to this pool, so that everything goes to the old one. Returns whether there was one.
    pub fn end_rollout(&self, to: &PoolId) -> bool {
        self.runtime.end_rollout(to)
    }

    /// What another configuration would change.
    ///
    /// # Errors
    /// Every fault of it, and every setting that takes effect at the start only and differs. Nothing has changed.
    pub fn compare(&self, config: &Config) -> Result<ConfigChange, Vec<ConfigError>> {
        let faults = config.faults();
        if faults.is_empty() { change::compare(&self.config(), config) } else { Err(faults) }
    }

    /// What of a configuration without faults of its own cannot be on this host's devices, as they were found at the
    /// start. Asks no driver, and waits for nothing.
    pub fn device_faults(&self, config: &Config) -> Vec<ConfigError> {
        let inventory = self.runtime.probe.as_ref().map(|probe| probe.inventory());
        inventory.map_or_else(Vec::new, |inventory| resolve(config, &inventory).faults)
    }

    /// Puts another configuration in force. New pools are started, others get a new model or a successor, those that
    /// are not named any more finish what they have. Nothing that was accepted is lost: what waits in a pool that gets
    /// a successor goes over to it, unless it asks for what the successor has not; then, as in a pool that goes, it has
    /// the pool's `drain_ms` to be served. What clients may do, objectives and other settings are changed at the same
    /// moment.
    ///
    /// A pool that differs in its model only is reloaded as by [`Orchestrator::reload`]; should that be undone later,
    /// the pool keeps its old model, and [`PoolView::reload`](crate::PoolView::reload) says why.
    ///
    /// # Errors
    /// As [`Orchestrator::compare`]; besides, a pool whose model is to be changed and that is being reloaded, drained
    /// or stopped. Then nothing has changed.
    pub fn reconfigure(&self, mut to: Builder) -> Result<ConfigChange, Vec<ConfigError>> {
        let factories = to.factories()?;
        let config = to.config;
        let runtime = &self.runtime;
        let mut next_number = runtime.pools.begin_change();
        let plan = self.compare(&config)?;
        if plan.is_empty() {
            return Ok(plan);
        }
        let (now, before) = (runtime.pools.table(), runtime.settings());
        if runtime.pools.is_stopping() || self.has_ended() {
            return Err(vec![fault("pools", "the runtime is being stopped")]);
        }
        let inventory = crate::orchestrator::builder::inventory(runtime.probe.as_ref());
        let resolved = resolve(&config, &inventory);
        let masks = resolved.config.pools.iter().map(PoolConfig::mask).collect::<Result<Vec<DeviceMask>, _>>();
        runtime.devices.learn(&masks.map_err(|error| vec![error])?);
        // All that can fail comes first.
        let is_new = |id: &String| plan.added.contains(id) || plan.replaced.contains(id);
        let first_new = *next_number;
        let mut numbers = first_new;
        let mut serving: Vec<Arc<PoolShared>> = Vec::new();
        let mut successors: Vec<(Arc<PoolShared>, Option<Arc<PoolShared>>)> = Vec::new();
        for (row, (pool, factory)) in config.pools.iter().zip(factories).enumerate() {
            let known = now.serving.iter().find(|known| known.id.as_str() == pool.id);
            match known.filter(|_| !is_new(&pool.id)) {
                Some(known) => serving.push(known.clone()),
                None => {
                    let number = u16::try_from(numbers).map_err(|_| vec![fault("pools", NUMBERS_USED_UP)])?;
                    numbers += 1;
                    let around = (runtime.env.clone(), runtime.devices.clone());
                    let fresh =
                        PoolShared::new((number, row), &resolved, around, factory).map_err(|error| vec![error])?;
                    successors.extend(known.map(|known| (known.clone(), Some(fresh.clone()))));
                    serving.push(fresh);
                }
            }
        }
        serving.extend(now.serving.iter().filter(|pool| pool.is_remote()).cloned()); // Not of any configuration.
        let gone = now.serving.iter().filter(|pool| plan.removed.iter().any(|id| pool.id.as_str() == id));
        successors.extend(gone.map(|pool| (pool.clone(), None)));
        begin_reloads(&config, &plan.reloaded, &now)?;

        // From here on nothing fails.
        *next_number = numbers;
        let leaving = now.leaving.iter().chain(successors.iter().map(|(pool, _)| pool)).cloned().collect();
        runtime.pools.set(Table { serving, leaving });
        let remote = serving_places(&runtime.pools.table());
        runtime.gate.set_limit(places(&config) + remote);
        runtime.gate.set_texts_bytes_max(config.texts_bytes_max);
        let wanted = config.objectives.wanted();
        runtime.pools.table().every().for_each(|pool| *pool.figures.objectives.lock() = wanted);
        let (given, resolved) = (Arc::new(config), Arc::new(resolved.config));
        runtime.clients.update(&given);
        runtime.set_settings(Settings { given, resolved, generation: before.generation + 1 });
        for (pool, successor) in successors {
            pool.leave(successor, first_new);
        }
        runtime.actors.root.cast(RootMsg::PoolsChanged); // Nobody there: the next root starts all there are.
        for id in &plan.reloaded {
            let pool = now.serving.iter().find(|pool| pool.id.as_str() == id);
            pool.map(|pool| pool.actors.supervisor.cast(PoolSupervisorMsg::Reload)); // Nobody there: the next one finds the reload.
        }
        tracing::info!(generation = before.generation + 1, ?plan, "another configuration is in force");
        Ok(plan)
    }
}

/// Tasks that the pools of other nodes may have here.
pub(super) fn serving_places(table: &Table) -> usize {
    let remote = table.serving.iter().filter(|pool| pool.is_remote());
    remote.map(|pool| pool.config.queue.capacity as usize + pool.config.slots as usize).sum()
}

/// A pool's number is never given to another: what is on its way may still name it.
pub(super) const NUMBERS_USED_UP: &str =
    "65,536 pools have been started since the service was; restart it to add others";

fn fault(path: &str, message: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), message: message.into() }
}

/// Begins the reloads of a change: all, or none.
fn begin_reloads(config: &Config, ids: &[String], table: &Table) -> Result<(), Vec<ConfigError>> {
    let mut begun: Vec<&Arc<PoolShared>> = Vec::new();
    for id in ids {
        let pool = table.serving.iter().find(|pool| pool.id.as_str() == id);
        let row = config.pools.iter().position(|pool| pool.id == *id);
        let Some((pool, row)) = pool.zip(row) else { continue };
        match pool.begin_reload(&to_spec(config.pools[row].model_spec())) {
            Ok(()) => begun.push(pool),
            Err(error) => {
                for pool in begun {
                    pool.give_up_reload("another part of the configuration could not be changed");
                    pool.actors.supervisor.cast(PoolSupervisorMsg::Reload); // Nobody there: the next one finds the reload.
                }
                return Err(vec![fault(&format!("pools[{row}].model"), error.message)]);
            }
        }
    }
    Ok(())
}

fn to_spec(spec: ModelSpec) -> ModelChange {
    ModelChange {
        model: Some(spec.model),
        quant: Some(spec.quant),
        ctx: spec.ctx,
        sampler_profile_version: Some(spec.sampler_profile_version),
        undo: false,
    }
}
