//! Every tunable: what it means, its unit, its default and why. Checked once, then passed on by value (ORCH-3030).

mod check;
mod clients;
mod order;
mod resume;
mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::{DeviceId, DeviceMask};
use crate::core::model::ModelSpec;
use crate::core::restart::{Backoff, Excess, RestartPolicy};
use crate::core::resume::DeterminismClass;

pub use clients::{ClientConfig, LimitConfig, QuotaConfig};
pub use order::{ClassOrder, ClassWeights, CostConfig, MemoryConfig, QueueConfig};
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
        /// Places at the intake gate beyond what the queues and slots hold, for tasks between two actors. With too few,
        /// a full queue's policy is never asked; 256 is more than two cores have in flight at once.
        pub intake_margin: u32 = 256,
        /// How long a task whose last reader is gone waits for one to come back, in milliseconds; then it is cancelled,
        /// unless it says `on_disconnect: keep`.
        pub disconnect_grace_ms: u64 = 10_000,
        /// Largest prompt, in bytes.
        pub prompt_bytes_max: u32 = 1024 * 1024,
        /// The HTTP API of the service; an embedded runtime has none.
        pub http: HttpConfig = HttpConfig::default(),
    }
}

section! {
    /// The HTTP API of the service.
    pub struct HttpConfig {
        /// Address and port to listen on; `--listen` comes first.
        pub listen: String = "127.0.0.1:7700".into(),
        /// Largest body of a request, in bytes. JSON may need several bytes for one of the prompt.
        pub body_bytes_max: u32 = 8 * 1024 * 1024,
        /// Time between two comments on a stream without events, in milliseconds: proxies close silent connections.
        pub keep_alive_ms: u64 = 15_000,
        /// Time between two `metrics` events on a stream, in milliseconds.
        pub metrics_ms: u64 = 1_000,
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
        pub bytes: u64 = 256 * 1024 * 1024,
        /// Longest time since a task's end, in milliseconds.
        pub age_ms: u64 = 600_000,
    }
}

/// One pool: one engine, one model, one configuration, with a queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct PoolConfig {
    /// Its name, unique: 1 to 128 letters, digits, '-', '_', '.' or ':'.
    pub id: String,
    /// The engine: `sim` or `llamacpp`, or the name of one that the host program brings.
    pub engine: String,
    /// The model: its name, or the path of its file.
    pub model: String,
    /// Quantisation of the model, part of the replica set's identity.
    #[serde(default = "unspecified")]
    pub quant: String,
    /// Longest context of one task in tokens, prompt and generation together. Left out, it is what the engine says, and
    /// 4096 until it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctx: Option<u32>,
    /// Name of the sampler settings that the pool pins (ORCH-3046).
    #[serde(default = "PoolConfig::profile_default")]
    pub sampler_profile_version: String,
    /// Bytes of prompt that make one token on average, for the estimate before the queue. 4 fits English text.
    #[serde(default = "PoolConfig::bytes_per_token_default")]
    pub bytes_per_token: u32,
    /// Where the engine answers already, such as `http://127.0.0.1:8080`. With `{index}` replaced by the replica's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How to start the engine; `{port}`, `{slots}`, `{model}`, `{ctx}` (of all slots) and `{index}` are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Tasks that one replica runs at once (ORCH-3019).
    #[serde(default = "PoolConfig::slots_default")]
    pub slots: u32,
    /// The devices that the pool may use. Left out, it is all that its replicas name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceRef>>,
    /// The workers, one for each entry.
    #[serde(default = "PoolConfig::replicas_default")]
    pub replicas: Vec<ReplicaConfig>,
    /// The queue.
    #[serde(default)]
    pub queue: QueueConfig,
    /// What tokens cost, for fairness between clients and classes.
    #[serde(default)]
    pub cost: CostConfig,
    /// What a task holds in device memory, for the quotas of clients.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Deadlines.
    #[serde(default)]
    pub timeouts: TimeoutConfig,
    /// What its engines make of the same seed: an engine that the self-test finds to be worse does not become Ready. Left out, it is
    /// what the self-test finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub determinism_class: Option<DeterminismClass>,
    /// Whether an engine must show what it can before it gets a task: decode twice, stop, be measured (ORCH-3049).
    #[serde(default = "PoolConfig::self_test_default")]
    pub self_test: bool,
    /// What happens when a worker fails.
    #[serde(default)]
    pub restart: RestartConfig,
    /// What becomes of its tasks then.
    #[serde(default)]
    pub resume: ResumeConfig,
    /// The simulated engine's manners; only for `engine: sim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sim: Option<SimConfig>,
}

fn unspecified() -> String {
    "none".into()
}

impl PoolConfig {
    fn profile_default() -> String {
        "1".into()
    }
    fn bytes_per_token_default() -> u32 {
        4
    }
    fn self_test_default() -> bool {
        true
    }
    fn slots_default() -> u32 {
        1
    }
    fn replicas_default() -> Vec<ReplicaConfig> {
        vec![ReplicaConfig::default()]
    }

    /// A pool with one replica and everything else by default.
    pub fn new(id: impl Into<String>, engine: impl Into<String>, model: impl Into<String>) -> Self {
        PoolConfig {
            id: id.into(),
            engine: engine.into(),
            model: model.into(),
            quant: unspecified(),
            ctx: None,
            sampler_profile_version: Self::profile_default(),
            bytes_per_token: Self::bytes_per_token_default(),
            url: None,
            command: None,
            slots: Self::slots_default(),
            devices: None,
            replicas: Self::replicas_default(),
            queue: QueueConfig::default(),
            cost: CostConfig::default(),
            memory: MemoryConfig::default(),
            timeouts: TimeoutConfig::default(),
            determinism_class: None,
            self_test: Self::self_test_default(),
            restart: RestartConfig::default(),
            resume: ResumeConfig::default(),
            sim: None,
        }
    }

    /// What it serves.
    pub fn model_spec(&self) -> ModelSpec {
        ModelSpec {
            model: self.model.clone(),
            quant: self.quant.clone(),
            ctx: self.ctx,
            sampler_profile_version: self.sampler_profile_version.clone(),
        }
    }

    /// Why a reload could not make its engines serve this instead of that: nothing would tell them.
    pub(crate) fn cannot_serve(&self, to: &ModelSpec, from: &ModelSpec) -> Option<&'static str> {
        let is_told = self.command.iter().flatten().any(|part| part.contains("{model}"));
        match (&self.url, &self.command) {
            _ if to.model == from.model => None,
            (Some(_), _) => {
                Some("what runs at its url decides about the model; change it there and reload without a model")
            }
            (None, Some(_)) if !is_told => Some("its command has no {model}, so it would start the same one again"),
            _ => None,
        }
    }

    /// The same pool with another model.
    pub fn with_model(&self, spec: &ModelSpec) -> PoolConfig {
        let ModelSpec { model, quant, ctx, sampler_profile_version } = spec.clone();
        PoolConfig { model, quant, ctx, sampler_profile_version, ..self.clone() }
    }

    /// Whether the configuration makes the two pools one replica set, as far as it can know (ORCH-3007).
    pub fn is_sibling_of(&self, other: &PoolConfig) -> bool {
        self.engine == other.engine && self.model_spec() == other.model_spec()
    }

    /// The devices that the pool may use (ORCH-3011).
    ///
    /// # Errors
    /// [`ConfigError`] when a device has no valid name.
    pub fn mask(&self) -> Result<DeviceMask, ConfigError> {
        match &self.devices {
            Some(devices) => mask(devices, &format!("pools[{}].devices", self.id)),
            None => {
                let all: Vec<DeviceRef> = self.replicas.iter().flat_map(|replica| replica.devices.clone()).collect();
                mask(&all, &format!("pools[{}].replicas", self.id))
            }
        }
    }
}

section! {
    /// One worker.
    pub struct ReplicaConfig {
        /// The devices that it uses, by index or UUID. None means no GPU.
        pub devices: Vec<DeviceRef> = Vec::new(),
    }
}

impl ReplicaConfig {
    /// The devices as a mask.
    ///
    /// # Errors
    /// [`ConfigError`] when a device has no valid name.
    pub fn mask(&self) -> Result<DeviceMask, ConfigError> {
        mask(&self.devices, "replicas.devices")
    }
}

/// A device as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum DeviceRef {
    /// Its index on this machine, from 0.
    Index(u32),
    /// Its UUID.
    Uuid(String),
}

fn mask(devices: &[DeviceRef], path: &str) -> Result<DeviceMask, ConfigError> {
    let parse = |device: &DeviceRef| match device {
        DeviceRef::Index(index) => DeviceId::parse(&index.to_string()),
        DeviceRef::Uuid(uuid) => DeviceId::parse(uuid),
    };
    let parsed: Result<Vec<DeviceId>, _> = devices.iter().map(parse).collect();
    parsed.map(DeviceMask::new).map_err(|error| ConfigError::new(path, error.to_string()))
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
        /// Longest wait until an engine confirms that a stopped task has left its slot. Then the slot is quarantined until the engine
        /// does; the engine is restarted as soon as no other task runs on it, and gets no more tasks after ten times this.
        pub stop_ms: u64 = 5_000,
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
