//! A pool: one engine, one model, one configuration, and its workers.

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::config::{
    AntiAffinity, CTX_DEFAULT, ConfigError, CostConfig, MemoryConfig, ProcessConfig, QueueConfig, RestartConfig,
    ResumeConfig, SimConfig, TimeoutConfig,
};
use crate::core::id::{DeviceId, DeviceMask};
use crate::core::pool::memory::Need;
use crate::core::pool::model::ModelSpec;
use crate::core::task::Workload;
use crate::core::task::resume::DeterminismClass;

/// One pool: one engine, one model, one configuration, with a queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct PoolConfig {
    /// Its name, unique: 1 to 128 letters, digits, '-', '_', '.' or ':'.
    pub id: String,
    /// The engine: `sim`, `llamacpp`, `vllm`, `tgi`, `triton` or `openai` (any server of that shape), or the name of
    /// one that the host program brings.
    pub engine: String,
    /// The model: its name of at most 256 characters, or the absolute path of its file of at most 4,095 bytes.
    pub model: String,
    /// Other names by which tasks may ask for its model. Pools with different models may have one in common: the first
    /// of them serves it, until a rollout sends a share to another (ORCH-3033).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What it serves: `completion`, `embedding`, `rerank`.
    #[serde(default = "PoolConfig::workloads_default")]
    pub workloads: Vec<Workload>,
    /// The model's files with their SHA-256 digests, which are checked before each load (ORCH-3037).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_files: Vec<ModelFile>,
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
    /// How to start the engine; `{port}`, `{port2}` and `{port3}` (free ones), `{slots}`, `{model}`, `{ctx}` (of all
    /// slots), `{ctx_one}`, `{tensor_split}` and `{index}` are replaced, once. Where an argument begins with `{model}`,
    /// the model must not begin with '-'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The environment variable that holds the engine's key, which goes to it as a bearer token. The key itself is in
    /// no file. No engine that is started here has the variable, unless its pool names it in `process.env_inherit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// What its engines' processes are given of the host, and as whom they run.
    #[serde(default)]
    pub process: ProcessConfig,
    /// Where its replicas must not be.
    #[serde(default)]
    pub anti_affinity: AntiAffinity,
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
    /// What its engines make of the same prompt, parameters and seed: an engine that the self-test finds to be worse
    /// does not become Ready. Left out, nothing is claimed before long runs, made while a replica is idle, have shown
    /// it.
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
    fn workloads_default() -> Vec<Workload> {
        vec![Workload::Completion]
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
            aliases: Vec::new(),
            workloads: Self::workloads_default(),
            model_files: Vec::new(),
            quant: unspecified(),
            ctx: None,
            sampler_profile_version: Self::profile_default(),
            bytes_per_token: Self::bytes_per_token_default(),
            url: None,
            command: None,
            api_key_env: None,
            process: ProcessConfig::default(),
            anti_affinity: AntiAffinity::default(),
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
            _ if !self.model_files.is_empty() => {
                Some("its model_files are another model's, and would be checked instead; change the configuration")
            }
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
    pub fn is_peer_of(&self, other: &PoolConfig) -> bool {
        self.engine == other.engine && self.model_spec() == other.model_spec()
    }

    /// What a load of one replica needs in device memory, where the size of the model is known.
    pub fn need(&self) -> Option<Need> {
        let memory = &self.memory;
        let tokens = u64::from(self.ctx.unwrap_or(CTX_DEFAULT)).saturating_mul(self.slots.into());
        let kv = memory.kv_tokens.unwrap_or(tokens).saturating_mul(memory.kv_bytes_per_token);
        let slots = kv.saturating_add(memory.scratch_bytes.saturating_mul(self.slots.into()));
        memory.model_bytes.map(|model| Need { model, slots, reserve: memory.reserve_bytes })
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
        /// How the model is divided over several devices: a share for each of `devices`, in their order; together 1.
        /// Must be there when they are not alike (ORCH-3012).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tensor_split: Option<Vec<f64>> = None,
        /// Shares its devices with other workers, and may use this much of each one's memory, in bytes. Left out, its
        /// devices are its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub shared_bytes: Option<u64> = None,
    }
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct ModelFile {
    /// Where it lies.
    pub path: String,
    /// Its SHA-256 digest: 64 hexadecimal digits.
    pub sha256: String,
}

impl ReplicaConfig {
    /// The shares of its devices in the order of its mask, which is the order in which the engine sees them.
    ///
    /// Without a split each has the same.
    pub fn shares(&self) -> Vec<f64> {
        let mut named: Vec<(String, Option<f64>)> =
            self.devices.iter().map(|device| (device.to_string(), None)).collect();
        for (place, share) in named.iter_mut().zip(self.tensor_split.iter().flatten()) {
            place.1 = Some(*share);
        }
        named.sort_by(|one, other| one.0.cmp(&other.0));
        let even = 1.0 / named.len().max(1) as f64;
        named.into_iter().map(|(_, share)| share.unwrap_or(even)).collect()
    }

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

impl std::fmt::Display for DeviceRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceRef::Index(index) => index.fmt(f),
            DeviceRef::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

fn mask(devices: &[DeviceRef], path: &str) -> Result<DeviceMask, ConfigError> {
    let parsed: Result<Vec<DeviceId>, _> = devices.iter().map(|device| DeviceId::parse(&device.to_string())).collect();
    parsed.map(DeviceMask::new).map_err(|error| ConfigError::new(path, error.to_string()))
}
