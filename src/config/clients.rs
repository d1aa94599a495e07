//! What clients may do: weight, pools, rate limits, quotas.

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::core::admission::limits::{Limits, Quotas, Rate};

section! {
    /// What a client may do.
    pub struct ClientConfig {
        /// Its share of a busy pool beside the others of its class, 1 to 1,000,000.
        pub weight: u32 = 1,
        /// The pools that it may use, by name; left out, all.
        pub pools: Option<Vec<String>> = None,
        /// How fast it may send.
        pub limits: LimitConfig = LimitConfig::default(),
        /// How much it may have at once.
        pub quotas: QuotaConfig = QuotaConfig::default(),
    }
}

section! {
    /// How fast a client may send (ORCH-3006). A bucket starts full; a refused task takes nothing from it.
    pub struct LimitConfig {
        /// Tasks a second; left out, any number. `0.5` is one every two seconds.
        pub requests_per_s: Option<f64> = None,
        /// Tasks that may come at once; left out, those of one second, and one at least.
        pub requests_burst: Option<u32> = None,
        /// Tokens a second, prompt and generation together; left out, any number. A task takes its whole budget, and
        /// what it did not generate comes back when it ends.
        pub tokens_per_s: Option<f64> = None,
        /// Tokens that may come at once; left out, those of ten seconds. A larger task waits for a full bucket, and
        /// leaves a debt.
        pub tokens_burst: Option<u32> = None,
    }
}

section! {
    /// How much a client may have at once (ORCH-3036), in all pools together.
    pub struct QuotaConfig {
        /// Tasks that run. More wait, and others pass them by.
        pub running: Option<u32> = None,
        /// Tasks that wait. More are refused.
        pub queued: Option<u32> = None,
        /// Device memory of its running tasks, KV cache and scratch, in bytes. A task that does not fit beside the
        /// others waits; one that would not fit alone is refused.
        pub memory_bytes: Option<u64> = None,
    }
}

impl LimitConfig {
    /// The limits as admission takes them.
    pub fn limits(&self) -> Limits {
        let rate = |per_s: Option<f64>, burst: Option<u32>, seconds: f64| {
            per_s.map(|per_s| Rate::new(per_s, burst.unwrap_or_else(|| (per_s * seconds).ceil().max(1.0) as u32)))
        };
        Limits {
            requests: rate(self.requests_per_s, self.requests_burst, 1.0),
            tokens: rate(self.tokens_per_s, self.tokens_burst, 10.0),
        }
    }
}

impl QuotaConfig {
    /// The quotas as admission takes them.
    pub fn quotas(&self) -> Quotas {
        Quotas { running: self.running, queued: self.queued, memory_bytes: self.memory_bytes }
    }
}
