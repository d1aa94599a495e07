//! Seeds: the same task gets the same seed on every machine (ORCH-3045).

use crate::core::id::TaskId;

/// The largest seed that a request may carry: engines take 32-bit seeds, and the largest value means "random" to some.
pub const SEED_MAX: u64 = (u32::MAX - 1) as u64;

/// The seed that a task runs with: its own, or one derived from its id.
///
/// The result is in `0..=SEED_MAX`, so every engine takes it unchanged.
pub fn effective_seed(requested: Option<u64>, id: &TaskId) -> u64 {
    requested.unwrap_or_else(|| id.stable_hash() % (SEED_MAX + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_left_out_follows_from_the_id_alone() {
        let id = TaskId::parse("job-1").expect("valid");
        // A fixed value: it must not change between releases, or replays of recorded tasks would differ.
        assert_eq!(effective_seed(None, &id), effective_seed(None, &id));
        assert_eq!(effective_seed(None, &id), 582_214_538);
        assert_ne!(effective_seed(None, &id), effective_seed(None, &TaskId::parse("job-2").expect("valid")));
        assert_eq!(effective_seed(Some(7), &id), 7);
    }
}
