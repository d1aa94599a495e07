//! What a runtime is made of, and how its parts come together.

use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::actors::kit::gate::IntakeGate;
use crate::actors::pool::devices::Devices;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::Probe;
use crate::actors::runtime::{Hook, RuntimeShared, Settings};
use crate::config::{Config, ConfigError, PoolConfig, resolve};
use crate::core::device::Inventory;
use crate::core::device::health::policy;
use crate::core::id::DeviceMask;
use crate::core::task::TaskRequest;
use crate::core::task::error::TaskError;
use crate::env::Env;
use crate::gpu::devices::DeviceProbe;
use crate::gpu::dyn_engine::EngineFactory;
use crate::gpu::engine::{Engine, EngineContext};
use crate::gpu::engines::registry::{EngineRegistry, boxed};
use crate::orchestrator::handle::Orchestrator;
use crate::orchestrator::life::Guardian;

/// What a runtime is made of.
#[derive(Default)]
pub struct Builder {
    pub(super) config: Config,
    /// By pool of the configuration; `None` is for the registry.
    pub(super) factories: Vec<Option<EngineFactory>>,
    pub(super) engines: EngineRegistry,
    pub(super) env: Option<Env>,
    pub(super) probe: Probe,
    pub(super) hook: Option<Hook>,
    pub(super) logs_tasks: bool,
}

/// Why a runtime could not be started. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigError>),
    /// There is no tokio runtime here: `start` was called outside of one.
    #[error("there is no tokio runtime here: call start inside of one, as in #[tokio::main]")]
    NoRuntime,
    /// The tokio runtime here has no timers.
    #[error("the tokio runtime has no timers: build it with enable_time() or enable_all()")]
    NoTimer,
    /// The tree of actors could not be started.
    #[error("the actors could not be started: {0}")]
    Actors(String),
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).field("engines", &self.engines).finish_non_exhaustive()
    }
}

impl Builder {
    /// Adds a pool, and what makes an engine for each life of each of its workers. The factory runs on a thread where
    /// it may block, may return a [`Result`] of an engine, and may panic: that is a failed load.
    #[must_use]
    pub fn pool<E, F>(mut self, config: PoolConfig, factory: F) -> Self
    where
        E: Engine,
        F: Fn(&EngineContext) -> E + Send + Sync + 'static,
    {
        self.config.pools.push(config);
        self.factories.push(Some(boxed(factory)));
        self
    }

    /// Sets everything but the pools that there are already, and adds those of the configuration: [`Builder::engines`]
    /// has to have what makes their engines.
    #[must_use]
    pub fn config(mut self, mut config: Config) -> Self {
        self.factories.extend(config.pools.iter().map(|_| None));
        self.config.pools.append(&mut config.pools);
        self.config = Config { pools: self.config.pools, ..config };
        self
    }

    /// Sets what makes the engines of the pools that came with a configuration.
    #[must_use]
    pub fn engines(mut self, engines: &EngineRegistry) -> Self {
        self.engines = engines.clone();
        self
    }

    /// What makes the engines of each pool.
    ///
    /// # Errors
    /// Each pool whose engine nothing makes.
    pub(super) fn factories(&mut self) -> Result<Vec<EngineFactory>, Vec<ConfigError>> {
        let given = std::mem::take(&mut self.factories).into_iter();
        let (mut made, mut faults) = (Vec::new(), Vec::new());
        for (row, (pool, factory)) in self.config.pools.iter().zip(given).enumerate() {
            match factory.or_else(|| self.engines.get(&pool.engine).cloned()) {
                Some(factory) => made.push(factory),
                None => faults.push(ConfigError {
                    path: format!("pools[{row}].engine"),
                    message: format!(
                        "nothing makes the engine {:?}: add the pool with Builder::pool, or give Builder::engines a registry that has it",
                        pool.engine
                    ),
                }),
            }
        }
        if faults.is_empty() { Ok(made) } else { Err(faults) }
    }

    /// Sets what is done with each request before admission sees it: it may refuse it with an error of its own, send it
    /// elsewhere (its model, pools, class), or mark it (its client, session, trace). It runs in `submit`, in the
    /// caller's task: it must not block.
    ///
    /// What other nodes of a cluster send has passed their hook already, and does not pass this one.
    #[must_use]
    pub fn before_admission(
        mut self,
        hook: impl Fn(&mut TaskRequest) -> Result<(), TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Logs the end of each task at `INFO`, under the target `orchestrator_core::task`, as the service does. Without it
    /// each step of a task is logged at `DEBUG`.
    #[must_use]
    pub fn log_tasks(mut self) -> Self {
        self.logs_tasks = true;
        self
    }

    /// Sets where time and chance come from; without it, they are real.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Sets what looks at the devices: `gpu::nvml::open` (feature `nvml`) for real ones. Without it each device that
    /// the configuration names is simulated, and well.
    #[must_use]
    pub fn devices(mut self, probe: Arc<dyn DeviceProbe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Starts the runtime. Pools load their models behind it; tasks may be submitted at once and wait.
    ///
    /// All of it lives on the tokio runtime that this is called on, and ends with that; the handle works on any.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(mut self) -> Result<Orchestrator, StartError> {
        let faults = self.config.faults();
        if !faults.is_empty() {
            return Err(StartError::Config(faults));
        }
        if Handle::try_current().is_err() {
            return Err(StartError::NoRuntime);
        }
        // Nobody can ask a runtime whether it has timers: making one panics where it has none.
        if catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_err() {
            return Err(StartError::NoTimer);
        }
        let factories = self.factories().map_err(StartError::Config)?;
        let env = self.env.unwrap_or_else(Env::real);
        let mut runtime =
            assemble(&self.config, factories, env, self.probe).map_err(|error| StartError::Config(vec![error]))?;
        (runtime.hook, runtime.ledger.logs_tasks) = (self.hook, self.logs_tasks);
        let runtime = Arc::new(runtime);
        let life = Guardian::start(runtime.clone()).await.map_err(|error| StartError::Actors(error.to_string()))?;
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
) -> Result<RuntimeShared, ConfigError> {
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
    Ok(RuntimeShared::new(settings, env, (devices, probe), gate, pools))
}

/// Most tasks that may be anywhere: what queues and slots hold, and those between two actors.
pub(super) fn places(config: &Config) -> usize {
    let of = |pool: &PoolConfig| pool.queue.capacity as usize + pool.slots as usize * pool.replicas.len();
    config.intake_margin as usize + config.pools.iter().map(of).sum::<usize>()
}
