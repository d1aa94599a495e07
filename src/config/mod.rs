//! Every tunable: what it means, its unit, its default and why. Checked once, then passed on by value (ORCH-3030).

pub(crate) mod check;

mod clients;
mod cluster;
mod devices;
mod http;
mod objectives;
mod order;
mod pool;
mod process;
mod resume;
mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::pool::restart::{Backoff, Excess, RestartPolicy};

pub use check::change::ConfigChange;
pub use clients::{ClientConfig, LimitConfig, QuotaConfig};
pub use cluster::{ClusterConfig, NodeAntiAffinity, NodeTlsConfig};
pub use devices::{AntiAffinity, DriverUse, GpuConfig, Resolved, resolve};
pub use http::{AccessConfig, HttpConfig, TlsConfig};
pub use objectives::{BatchObjectives, InteractiveObjectives, ObjectivesConfig};
pub use order::{ClassOrder, ClassWeights, CostConfig, MemoryConfig, QueueConfig};
pub use pool::{DeviceRef, ModelFile, PoolConfig, ReplicaConfig};
pub use process::ProcessConfig;
pub use resume::ResumeConfig;
pub use sim::{SimConfig, SimFaults};

macro_rules! section {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
}

pub(crate) use section;

section! {
    /// A whole runtime.
    pub struct Config {
        /// The pools, in order: of two that would start a task at the same time, the first gets it.
        pub pools: Vec<PoolConfig> = Vec::new(),
        /// What certain clients may do, by their names.
        pub clients: BTreeMap<String, ClientConfig> = BTreeMap::new(),
        /// What every other client may do, each by itself.
        pub default_client: ClientConfig = ClientConfig::default(),
        /// Short-lived conversations.
        pub sessions: SessionConfig = SessionConfig::default(),
        /// How long the ends of tasks are remembered.
        pub retention: RetentionConfig = RetentionConfig::default(),
        /// What is wanted of the service, by class; measured all the time.
        pub objectives: ObjectivesConfig = ObjectivesConfig::default(),
        /// Places at the intake gate beyond what the queues and slots hold, for tasks between two actors. With too few,
        /// a full queue's policy is never asked; 256 is more than two cores have in flight at once.
        pub intake_margin: u32 = 256,
        /// How long a task whose last reader is gone waits for one to come back, in milliseconds; then it is cancelled,
        /// unless it says `on_disconnect: keep`.
        pub disconnect_grace_ms: u64 = 10_000,
        /// Largest prompt, in bytes.
        pub prompt_bytes_max: u32 = 1024 * 1024,
        /// Most bytes of the texts of all tasks that have not ended, those of up to 4 KiB not counted. One client alone
        /// gets half of it, and what it may have shrinks as others come.
        pub texts_bytes_max: u64 = 128 * 1024 * 1024,
        /// The devices of this host, and how they are watched.
        pub gpu: GpuConfig = GpuConfig::default(),
        /// What this host is called by `anti_affinity.host` of pools, beside its name.
        pub host_labels: Vec<String> = Vec::new(),
        /// The HTTP API of the service; an embedded runtime has none.
        pub http: HttpConfig = HttpConfig::default(),
        /// The cluster that the service is a node of; left out, it is none's. An embedded runtime starts its node
        /// itself.
        pub cluster: Option<ClusterConfig> = None,
        /// Who may use the service; an embedded runtime asks nobody.
        pub access: AccessConfig = AccessConfig::default(),
    }
}

section! {
    /// Short-lived conversations.
    pub struct SessionConfig {
        /// How long a conversation without a task is remembered, in milliseconds.
        pub ttl_ms: u64 = 600_000,
        /// Most conversations remembered; the one used longest ago goes first.
        pub capacity: u32 = 10_000,
    }
}

section! {
    /// How long the end of a task, and its log, are remembered. The first bound that is met decides.
    pub struct RetentionConfig {
        /// Most ended tasks.
        pub tasks: u32 = 10_000,
        /// Most memory of ended tasks, in bytes.
        pub bytes: u64 = 64 * 1024 * 1024,
        /// Longest time since a task's end, in milliseconds.
        pub age_ms: u64 = 600_000,
    }
}

section! {
    /// Deadlines, in milliseconds.
    pub struct TimeoutConfig {
        /// Longest run of one task (ORCH-3016).
        pub wall_ms: u64 = 300_000,
        /// Longest wait for the next token, the first included.
        pub idle_ms: u64 = 30_000,
        /// Longest start of an engine, its model's load included.
        pub preload_ms: u64 = 120_000,
        /// Longest drain; what still runs then is ended.
        pub drain_ms: u64 = 30_000,
        /// Longest wait until an engine confirms that a stopped task has left its slot. Then the slot is quarantined
        /// until the engine does; the engine is restarted as soon as no other task runs on it, and gets no more tasks
        /// after ten times this.
        pub stop_ms: u64 = 5_000,
        /// How long an engine's process has to end behind SIGTERM, before it and all of its group are killed.
        pub term_ms: u64 = 2_000,
        /// A task's expected run while none has been measured, for predictions only.
        pub run_guess_ms: u64 = 2_000,
    }
}

section! {
    /// What happens when a worker fails: restart with backoff; beyond the intensity its breaker opens.
    pub struct RestartConfig {
        /// Most restarts within the period.
        pub intensity: u32 = 5,
        /// The sliding window, in milliseconds. A worker that lived this long starts with a clean record.
        pub period_ms: u64 = 60_000,
        /// Wait before the first restart, doubled with each that follows, in milliseconds.
        pub backoff_ms: u64 = 250,
        /// Longest wait, in milliseconds.
        pub backoff_max_ms: u64 = 30_000,
        /// Largest random addition to a wait, in percent.
        pub jitter_percent: u32 = 20,
        /// How long an open breaker keeps the worker down, in milliseconds.
        pub breaker_open_ms: u64 = 60_000,
    }
}

impl RestartConfig {
    /// The rule as the supervisor takes it.
    pub fn policy(&self) -> RestartPolicy {
        let millis = Duration::from_millis;
        RestartPolicy {
            intensity: self.intensity,
            period: millis(self.period_ms),
            backoff: Backoff {
                base: millis(self.backoff_ms),
                max: millis(self.backoff_max_ms),
                jitter_percent: self.jitter_percent,
            },
            excess: Excess::OpenBreaker(millis(self.breaker_open_ms)),
        }
    }
}

/// What is wrong in a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConfigError {
    /// The field, such as `pools[0].slots`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigError {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        ConfigError { path: path.into(), message: message.into() }
    }
}

/// Context of a pool that names none, until its engine has said what it has.
pub const CTX_DEFAULT: u32 = 4096;
/// Most slots of one replica.
pub const SLOTS_MAX: u32 = 1024;
/// Most waiting tasks of one pool.
pub const QUEUE_CAPACITY_MAX: u32 = 10_000_000;
/// Longest of all deadlines, in milliseconds: a week.
pub const DEADLINE_MS_MAX: u64 = 7 * 24 * 3_600_000;
