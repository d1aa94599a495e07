//! Order and bound of a queue: capacities, policies, shares, costs.

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::core::fairness::{CostWeights, WEIGHT_MAX};
use crate::core::queue::overflow::{Bounds, FullPolicy};
use crate::planted::seeded_bug;

section! {
    /// The bound of a queue, and who goes when it is full (ORCH-3004, ORCH-3005).
    pub struct QueueConfig {
        /// Most waiting tasks of the pool.
        pub capacity: u32 = 256,
        /// Most waiting interactive tasks; left out, the pool's capacity.
        pub interactive: Option<u32> = None,
        /// Most waiting batch tasks; left out, the pool's capacity.
        pub batch: Option<u32> = None,
        /// Who goes when it is full.
        pub full_policy: FullPolicy = FullPolicy::Reject,
        /// Part of the room, in percent, that a client with its share or more does not get. Only with the policies that
        /// may refuse a newcomer: what waits is kept there, so room for those who come later has to be kept too. 10
        /// leaves most of the room to whoever is alone.
        pub reserve_percent: u32 = 10,
        /// How the classes share the pool.
        pub order: ClassOrder = ClassOrder::Weighted,
        /// Shares of the classes while both wait, with `order: weighted`.
        pub weights: ClassWeights = ClassWeights::default(),
    }
}

section! {
    /// Shares of the classes. An idle class leaves its share to the other.
    pub struct ClassWeights {
        /// Of interactive tasks.
        pub interactive: u32 = 9,
        /// Of batch tasks.
        pub batch: u32 = 1,
    }
}

/// How the classes share a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum ClassOrder {
    /// By their weights, in tokens: none starves.
    #[default]
    Weighted,
    /// Interactive tasks always first, by a weight of a million to one. A busy interactive class starves batch tasks.
    Strict,
}

impl QueueConfig {
    /// The bounds as the queue takes them.
    pub fn bounds(&self) -> Bounds {
        let class = |own: Option<u32>| own.unwrap_or(self.capacity).min(self.capacity);
        let extra = u32::from(seeded_bug!(RoomForOneMore));
        let class = [class(self.interactive) + extra, class(self.batch) + extra];
        Bounds { pool: self.capacity + extra, class, policy: self.full_policy, reserve_percent: self.reserve_percent }
    }

    /// Weights of the classes, by [`Priority::index`](crate::core::task::Priority::index).
    pub fn class_weights(&self) -> [u32; 2] {
        match self.order {
            ClassOrder::Weighted => [self.weights.interactive, self.weights.batch],
            ClassOrder::Strict => [WEIGHT_MAX, 1],
        }
    }
}

section! {
    /// What tokens cost.
    pub struct CostConfig {
        /// Of a prompt's token: all of them are computed at once.
        pub prompt: u32 = CostWeights::default().prompt,
        /// Of a generated token: each is a step of its own.
        pub output: u32 = CostWeights::default().output,
    }
}

impl CostConfig {
    /// The costs as the accounts take them.
    pub fn weights(&self) -> CostWeights {
        CostWeights { prompt: self.prompt, output: self.output }
    }
}

section! {
    /// What a task holds in device memory while it runs (ORCH-3036), and what its model needs before (ORCH-3003).
    pub struct MemoryConfig {
        /// KV cache of one token, prompt and generation alike, in bytes. 128 KiB fits an 8-billion model with grouped
        /// heads.
        pub kv_bytes_per_token: u64 = 131_072,
        /// Scratch memory of one task beside its KV cache, in bytes.
        pub scratch_bytes: u64 = 0,
        /// The model's weights in device memory, in bytes. Left out, the size of `model_files`; without either, a load
        /// is not checked for room before it is begun.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub model_bytes: Option<u64> = None,
        /// What is to stay free on each device beside the model and the KV caches, in bytes: a driver's context takes
        /// some 500 MB.
        pub reserve_bytes: u64 = 512 * 1024 * 1024,
        /// Host memory that a load needs, in bytes. Left out, the host's is not checked.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub host_bytes: Option<u64> = None,
        /// Tokens that the KV cache of one replica holds, of all its tasks together: a task that would not fit beside
        /// those that run waits. Left out, what the engine says; without either, slots alone are counted.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub kv_tokens: Option<u64> = None,
    }
}
