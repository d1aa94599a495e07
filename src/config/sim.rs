//! The manners of the simulated engine.

use serde::{Deserialize, Serialize};

use crate::config::section;

section! {
    /// The simulated engine: how fast it is, and how it misbehaves.
    pub struct SimConfig {
        /// Time to the first token, in microseconds.
        pub first_token_us: u64 = 50_000,
        /// Time from one token to the next, in microseconds.
        pub token_us: u64 = 20_000,
        /// Time to load the model, in microseconds.
        pub preload_us: u64 = 100_000,
        /// KV cache of one token, in bytes.
        pub kv_bytes_per_token: u64 = 131_072,
        /// How it misbehaves.
        pub faults: SimFaults = SimFaults::default(),
    }
}

section! {
    /// Misbehaviour of the simulated engine. Rates are in millionths, of each token unless said otherwise.
    pub struct SimFaults {
        /// Preloads that are refused before one succeeds.
        pub refuse_preloads: u32 = 0,
        /// Tasks that hang before their first token.
        pub hang_first_ppm: u32 = 0,
        /// Tokens behind which the task hangs.
        pub hang_ppm: u32 = 0,
        /// Tokens at which the whole engine dies.
        pub die_ppm: u32 = 0,
        /// Tokens that come garbled.
        pub garble_ppm: u32 = 0,
        /// Tasks that are failed at once, while the engine answers questions.
        pub fail_fast_ppm: u32 = 0,
        /// Tasks that are turned away at once.
        pub busy_ppm: u32 = 0,
        /// For how long whoever is turned away is asked to leave the engine alone, in milliseconds; 0 does not say.
        pub busy_ms: u64 = 0,
        /// Questions for its health that are not answered.
        pub stall_probe_ppm: u32 = 0,
        /// The only replica that misbehaves in these last ways; left out, all do.
        pub only_replica: Option<u16> = None,
        /// Calls of its code that panic, its factory and its drop among them, and tokens at which a run does.
        pub panic_ppm: u32 = 0,
        /// Loads, questions for its health and stops that it never answers.
        pub hang_call_ppm: u32 = 0,
        /// Tokens at which a run ends as if it had been told to stop.
        pub fake_stop_ppm: u32 = 0,
        /// Stopped runs that go on in their slot: half of them for up to 20 seconds, the others for ever.
        pub stick_ppm: u32 = 0,
    }
}
