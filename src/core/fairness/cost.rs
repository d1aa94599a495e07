//! What a task costs, in weighted tokens and in virtual time (FAIR-1).

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::core::units::Tokens;

/// Virtual time: cost times [`SCALE`] divided by a weight. 128 bits never overflow: at 2^32 weighted tokens a second
/// they last for 10^19 seconds.
pub type Virtual = i128;

/// Units of virtual time for one weighted token at weight 1. Large, so that a weight of a million still tells single
/// tokens apart.
pub const SCALE: Virtual = 1 << 32;

/// Largest weight of a class or a client.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// What a token costs, in units of one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostWeights {
    /// Of a prompt's token: all of them are computed at once.
    pub prompt: u32,
    /// Of a generated token: each is a step of its own.
    pub output: u32,
}

impl Default for CostWeights {
    fn default() -> Self {
        CostWeights { prompt: 1, output: 2 }
    }
}

impl CostWeights {
    /// The cost of this many tokens.
    pub const fn cost(self, prompt: Tokens, output: Tokens) -> u64 {
        self.prompt as u64 * prompt.0 as u64 + self.output as u64 * output.0 as u64
    }
}

/// What `cost` comes to at this weight. Rounded up: nothing is free.
pub const fn price(cost: u64, weight: u32) -> Virtual {
    if weight == 1 {
        return cost as Virtual * SCALE;
    }
    if cost < 1 << 31 {
        // Every cost but the largest, at a fifth of the price of a division in 128 bits.
        return (cost << 32).div_ceil(weight as u64) as Virtual;
    }
    let (scaled, weight) = (cost as Virtual * SCALE, weight as Virtual);
    (scaled + weight - 1) / weight
}
const _: () = assert!(SCALE == 1 << 32);

/// What is known of a task's size when it is dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Length of its prompt.
    pub prompt: Tokens,
    /// Most tokens that it may generate.
    pub output_max: Tokens,
    /// How many are expected while the client's own average is not known.
    pub output_guess: Tokens,
}

impl Size {
    /// A task of this size; its client may say how many tokens it expects, else the most are expected.
    pub fn new(prompt: Tokens, output_max: Tokens, output_expected: Option<Tokens>) -> Self {
        Size { prompt, output_max, output_guess: output_expected.unwrap_or(output_max).min(output_max) }
    }
}

/// What was computed for a task in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nothing: it was never begun, or comes back to be run again.
    Nothing,
    /// It was begun and broken off: what had been produced by then.
    Part {
        /// Prompt tokens.
        prompt: Tokens,
        /// Generated tokens.
        output: Tokens,
    },
    /// It ran to its end.
    Whole {
        /// Prompt tokens.
        prompt: Tokens,
        /// Generated tokens; they count in the client's average.
        output: Tokens,
    },
}

/// A client's usual output: an exponentially weighted mean, in 1/16 tokens, up to 2^28 tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::core) struct UsualOutput(Option<NonZeroU32>);

impl UsualOutput {
    const SCALE: u32 = 16;

    /// The mean, rounded up; `None` before the first sample.
    pub(in crate::core) fn tokens(self) -> Option<Tokens> {
        // What is known is kept one higher, so that no output at all is known too.
        self.0.map(|scaled| Tokens((scaled.get() - 1).div_ceil(Self::SCALE)))
    }

    /// A new sample weighs one eighth, as in TCP's round-trip estimate (RFC 6298); the first is taken as it is.
    pub(in crate::core) fn record(&mut self, output: Tokens) {
        let sample = output.0.min(u32::MAX / Self::SCALE - 1) * Self::SCALE;
        let mean = self.0.map_or(sample, |mean| mean.get() - 1 - (mean.get() - 1) / 8 + sample / 8);
        self.0 = NonZeroU32::new(mean.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_free_and_no_weight_loses_a_token() {
        assert_eq!(price(0, 7), 0);
        for weight in [1, 3, 9, WEIGHT_MAX] {
            assert!(price(1, weight) > 0 && price(1_000, weight) < price(1_001, weight));
        }
        assert!(price(u64::from(u32::MAX) * 1_000 * 2, 1) > 0);
        for cost in [(1 << 31) - 1, 1 << 31, (1 << 31) + 1] {
            let exact = (Virtual::from(cost) * SCALE + 6) / 7;
            assert_eq!(price(cost, 7), exact, "both ways of dividing agree");
        }
    }

    #[test]
    fn the_usual_output_follows_what_comes_by_an_eighth() {
        let mut usual = UsualOutput::default();
        assert_eq!(usual.tokens(), None);
        usual.record(Tokens(80));
        assert_eq!(usual.tokens(), Some(Tokens(80)), "the first is taken as it is");
        let mut exact = 80.0;
        for output in [160, 160, 0, 0, 7, 1_000, 1_000, 3] {
            usual.record(Tokens(output));
            exact += (f64::from(output) - exact) / 8.0;
            let mean = f64::from(usual.tokens().expect("there are samples").0);
            assert!((mean - exact).abs() <= 1.5, "{mean} beside {exact}");
        }
        usual.record(Tokens(u32::MAX));
        assert!(usual.tokens() < Some(Tokens(u32::MAX / 16)), "and nothing overflows");
        let mut none = UsualOutput::default();
        none.record(Tokens(0));
        assert_eq!(none.tokens(), Some(Tokens(0)), "no output at all is known too");
    }
}
