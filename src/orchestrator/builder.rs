//! What a runtime is made of, and how its parts come together.

use std::sync::Arc;
use std::time::Duration;

use crate::actors::devices::Devices;
use crate::actors::gate::IntakeGate;
use crate::actors::gpu_monitor::Probe;
use crate::actors::runtime::{RuntimeShared, Settings};
use crate::actors::shared::PoolShared;
use crate::config::{Config, ConfigError, PoolConfig, resolve};
use crate::core::device::Inventory;
use crate::core::health::policy;
use crate::core::id::DeviceMask;
use crate::env::Env;
use crate::gpu::devices::DeviceProbe;
use crate::gpu::engine::{Engine, EngineContext, EngineFactory};
use crate::orchestrator::handle::Orchestrator;
use crate::orchestrator::life::Life;

/// What a runtime is made of.
pub struct Builder {
    pub(super) config: Config,
    pub(super) factories: Vec<EngineFactory>,
    pub(super) env: Option<Env>,
    pub(super) probe: Probe,
}

/// Why a runtime could not be started. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigError>),
    /// The tree of actors could not be started.
    #[error("the actors could not be started: {0}")]
    Actors(String),
}

impl Builder {
    /// Adds a pool, and what makes an engine for each life of each of its workers.
    #[must_use]
    pub fn pool<E, F>(mut self, config: PoolConfig, factory: F) -> Self
    where
        E: Engine,
        F: Fn(&EngineContext) -> E + Send + Sync + 'static,
    {
        self.config.pools.push(config);
        self.factories.push(Arc::new(move |context| Arc::new(factory(context))));
        self
    }

    /// Sets everything but the pools.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = Config { pools: self.config.pools, ..config };
        self
    }

    /// Sets where time and chance come from; without it, they are real.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Sets what looks at the devices: [`gpu::nvml::open`](crate::gpu::nvml::open) for real ones. Without it each device that the
    /// configuration names is simulated, and well.
    #[must_use]
    pub fn devices(mut self, probe: Arc<dyn DeviceProbe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Starts the runtime. Pools load their models behind it; tasks may be submitted at once and wait.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(self) -> Result<Orchestrator, StartError> {
        let faults = self.config.faults();
        if !faults.is_empty() {
            return Err(StartError::Config(faults));
        }
        let env = self.env.unwrap_or_else(Env::real);
        let runtime =
            assemble(&self.config, self.factories, env, self.probe).map_err(|error| StartError::Config(vec![error]))?;
        let life = Life::start(runtime.clone()).await.map_err(|error| StartError::Actors(error.to_string()))?;
        Ok(Orchestrator { runtime, life: Arc::new(life) })
    }
}

/// The devices there are, by who can see them.
pub(super) fn inventory(probe: Option<&Arc<dyn DeviceProbe>>) -> Inventory {
    probe.map_or_else(|| Inventory::simulated("nobody asked"), |probe| probe.inventory())
}

fn assemble(
    config: &Config,
    factories: Vec<EngineFactory>,
    env: Env,
    probe: Probe,
) -> Result<Arc<RuntimeShared>, ConfigError> {
    let inventory = inventory(probe.as_ref());
    // Pools that cannot be on these devices say so when they are loaded; the others serve.
    let resolved = resolve(config, &inventory);
    resolved.faults.iter().for_each(|fault| tracing::error!(%fault, "this cannot be served on these devices"));
    let masks: Vec<DeviceMask> = resolved.config.pools.iter().map(PoolConfig::mask).collect::<Result<_, _>>()?;
    let named = DeviceMask::new(masks.iter().flat_map(|mask| mask.devices().to_vec()).collect());
    let wait = Duration::from_millis(config.gpu.recover_ms);
    let devices = Arc::new(Devices::new(&inventory, &named, policy(wait), env.clone()));
    let mut pools = Vec::new();
    for (position, factory) in factories.into_iter().enumerate().take(config.pools.len()) {
        let around = (env.clone(), devices.clone());
        pools.push(PoolShared::new((position as u16, position), &resolved, around, factory)?);
    }
    let (given, resolved) = (Arc::new(config.clone()), Arc::new(resolved.config));
    let settings = Settings { given, resolved, generation: 1 };
    let gate = IntakeGate::new(places(config), config.texts_bytes_max);
    Ok(Arc::new(RuntimeShared::new(settings, env, (devices, probe), gate, pools)))
}

/// Most tasks that may be anywhere: what queues and slots hold, and those between two actors.
pub(super) fn places(config: &Config) -> usize {
    let of = |pool: &PoolConfig| pool.queue.capacity as usize + pool.slots as usize * pool.replicas.len();
    config.intake_margin as usize + config.pools.iter().map(of).sum::<usize>()
}
