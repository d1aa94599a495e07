//! What the simulated engine says: it follows from `{prompt, seed, sampler_profile_version, model_digest}` alone
//! (ORCH-3045).

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const WORDS: [&str; 64] = [
    " the",
    " a",
    " of",
    " to",
    " and",
    " in",
    " is",
    " it",
    " on",
    " as",
    " with",
    " by",
    " slow",
    " quick",
    " bright",
    " quiet",
    " river",
    " mountain",
    " cloud",
    " engine",
    " token",
    " queue",
    " lane",
    " signal",
    " garden",
    " window",
    " letter",
    " number",
    " answer",
    " question",
    " morning",
    " winter",
    " runs",
    " waits",
    " turns",
    " opens",
    " closes",
    " begins",
    " ends",
    " carries",
    " follows",
    " leads",
    " holds",
    " keeps",
    " finds",
    " gives",
    " takes",
    " makes",
    " shows",
    " knows",
    " under",
    " over",
    " between",
    " behind",
    " before",
    " after",
    " again",
    " never",
    " always",
    " often",
    " here",
    " there",
    ".",
    ",",
];

/// Digest of a model that does not exist: its name's hash.
pub(in crate::gpu) fn digest(model: &str) -> String {
    format!("sim:{:016x}", xxh3_64(model.as_bytes()))
}

/// The text of one run: token `i` follows from the run's identity and `i`.
pub(in crate::gpu) struct SimText(u64);

/// What an undisturbed run of this prompt says, when no stop text ends it early. For tests that compare.
pub fn undisturbed(prompt: &str, seed: u64, tokens: u32, sampler_profile_version: &str, model: &str) -> String {
    let text = SimText::new(prompt, seed, sampler_profile_version, &digest(model));
    (0..tokens).map(|index| text.word(index)).collect()
}

impl SimText {
    pub(in crate::gpu) fn new(prompt: &str, seed: u64, profile: &str, model_digest: &str) -> Self {
        let mut hash = Xxh3::with_seed(seed);
        for part in [prompt, profile, model_digest] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        SimText(hash.digest())
    }

    pub(in crate::gpu) fn word(&self, index: u32) -> &'static str {
        WORDS[(self.mixed(index) % WORDS.len() as u64) as usize]
    }

    /// The finaliser of SplitMix64: neighbouring indices give unrelated numbers.
    pub(in crate::gpu) fn mixed(&self, index: u32) -> u64 {
        let mut mixed = self.0.wrapping_add(u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
