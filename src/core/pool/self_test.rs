//! What an engine has shown of itself.

use serde::Serialize;

use crate::core::task::resume::DeterminismClass;

/// What the self-test of one load has shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SelfTest {
    /// Time of a decode of 16 tokens, in milliseconds.
    pub decode_ms: f64,
    /// Time from the end of a stopped decode until the engine had left its slot, in milliseconds.
    pub stop_ms: f64,
    /// What the same prompt, parameters and seed give, as far as that may be relied upon: what is stated, what the
    /// engine is known for, or what long runs have shown. What is not known is `none`; a divergence lowers it.
    pub determinism_class: DeterminismClass,
    /// Whether the short decodes of this test repeated themselves alone. Where they did not, a lost attempt cannot be
    /// run again.
    pub repeats_alone: bool,
    /// Tokens of long runs that were compared, alone and in a backlog.
    pub tokens_compared: u64,
    /// Other tokens were seen than an earlier run gave: what long runs still show does not raise the class any more.
    pub has_diverged: bool,
}

impl SelfTest {
    /// A run gave other tokens than an earlier one: less is to be relied upon.
    pub(crate) fn lower(&mut self) {
        self.has_diverged = true;
        self.determinism_class = match self.determinism_class {
            DeterminismClass::BatchInvariant => DeterminismClass::SingleSlot,
            DeterminismClass::SingleSlot | DeterminismClass::None => DeterminismClass::None,
        };
    }
}
