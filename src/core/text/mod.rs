//! Text from outside, bounded before it is kept.

pub mod line;
pub(crate) mod texts;
