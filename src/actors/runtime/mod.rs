//! What outlives the actors of one runtime: its parts, and the configuration that is in force.

pub(crate) mod cancel;
pub mod messages;
#[cfg(feature = "cluster")]
pub(crate) mod session_feed;
pub mod stream;
pub(crate) mod traffic_split;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::RwLock;

use crate::actors::kit::address::Address;
use crate::actors::kit::gate::IntakeGate;
use crate::actors::ledger::Ledger;
use crate::actors::ledger::rejections::RejectionCache;
use crate::actors::pool::devices::Devices;
use crate::actors::pool::pools::Pools;
use crate::actors::pool::shared::PoolShared;
use crate::actors::quota::clients::Clients;
use crate::actors::runtime::messages::{AdmissionMsg, GpuMonitorMsg, RolloutsMsg, RootMsg, SessionsMsg};
use crate::actors::runtime::traffic_split::Rollouts;
use crate::config::Config;
use crate::core::admission::{DEADLINE, NOT_ALLOWED, QUOTA, RATE_LIMIT};
use crate::core::task::TaskRequest;
use crate::core::task::error::TaskError;
use crate::env::Env;
use crate::gpu::devices::DeviceProbe;

/// One runtime.
pub(crate) struct RuntimeShared {
    pub(crate) env: Env,
    /// Written by the public handle.
    settings: RwLock<Settings>,
    /// The devices of this host.
    pub(crate) devices: Arc<Devices>,
    /// Where its actors can be reached.
    pub(crate) actors: RuntimeActors,
    /// What looks at them; `None` where nothing is to be seen.
    pub(crate) probe: Probe,
    pub(crate) ledger: Ledger,
    pub(crate) clients: Clients,
    pub(crate) gate: Arc<IntakeGate>,
    pub(crate) pools: Pools,
    /// Conversations that were served here, for other nodes.
    #[cfg(feature = "cluster")]
    pub(crate) warmed: crate::actors::runtime::session_feed::SessionLocations,
    /// Refusals before a task was accepted.
    pub(crate) refused: Refused,
    /// What the host program does with each request.
    pub(crate) hook: Option<Hook>,
    /// Models that are brought in by percentage.
    pub(crate) rollouts: Rollouts,
}

/// Refusals before a task was accepted.
pub(crate) struct Refused {
    /// Rejections before a task was accepted, by [`ErrorCode::ALL`](crate::ErrorCode::ALL).
    pub(crate) rejected: [AtomicU64; 9],
    /// Rejections by limits that are no queue's, by [`LIMITS`].
    pub(crate) limited: [AtomicU64; LIMITS.len()],
    pub(crate) refusals: RejectionCache,
}

/// Where its actors can be reached.
pub(crate) struct RuntimeActors {
    pub(crate) gpu_monitor: Address<GpuMonitorMsg>,
    /// Told when the pools have changed.
    pub(crate) root: Address<RootMsg>,
    pub(crate) admission: Address<AdmissionMsg>,
    pub(crate) sessions: Address<SessionsMsg>,
    pub(crate) rollouts_watch: Address<RolloutsMsg>,
}

/// The configuration that is in force.
#[derive(Clone)]
pub(crate) struct Settings {
    /// As it was given.
    pub(crate) given: Arc<Config>,
    /// With its devices by their UUIDs.
    pub(crate) resolved: Arc<Config>,
    /// 1 at the start; each change counts.
    pub(crate) generation: u64,
}

impl RuntimeShared {
    /// The parts of a runtime, none of which has begun to live.
    pub(crate) fn new(
        settings: Settings,
        env: Env,
        (devices, probe): (Arc<Devices>, Probe),
        gate: Arc<IntakeGate>,
        pools: Vec<Arc<PoolShared>>,
    ) -> Self {
        RuntimeShared {
            clients: Clients::new(&settings.given),
            ledger: Ledger::new(env.clone(), settings.given.retention.clone()),
            env,
            settings: RwLock::new(settings),
            devices,
            probe,
            gate,
            pools: Pools::new(pools),
            #[cfg(feature = "cluster")]
            warmed: Default::default(),
            hook: None,
            rollouts: Rollouts::default(),
            refused: Refused {
                rejected: Default::default(),
                limited: Default::default(),
                refusals: RejectionCache::default(),
            },
            actors: RuntimeActors {
                gpu_monitor: Address::default(),
                root: Address::default(),
                admission: Address::default(),
                sessions: Address::default(),
                rollouts_watch: Address::default(),
            },
        }
    }

    /// The configuration as of now. A short lock, read at admission.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.settings.read().resolved.clone()
    }

    /// The configuration as of now, as it was given and as it is meant.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.read().clone()
    }

    /// Puts another configuration in force. For the public handle, which has made the pools fit it.
    pub(crate) fn set_settings(&self, settings: Settings) {
        *self.settings.write() = settings;
    }
}

/// The policy that refuses a task whose client's texts have their part already.
pub(crate) const TEXTS: &str = "texts";

/// Policies that refuse before any queue is asked.
pub(crate) const LIMITS: [&str; 7] = ["gate", TEXTS, RATE_LIMIT, QUOTA, DEADLINE, NOT_ALLOWED, ROOM];

/// The policy that refuses a submission whose client has too many that wait for room already.
pub(crate) const ROOM: &str = "room";

/// What a host program does with a request before admission sees it.
pub(crate) type Hook = Arc<dyn Fn(&mut TaskRequest) -> Result<(), TaskError> + Send + Sync>;

/// The probe of a runtime, if it has one.
pub(crate) type Probe = Option<Arc<dyn DeviceProbe>>;
