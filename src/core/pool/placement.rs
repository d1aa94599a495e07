//! Which replica runs a task (ORCH-3008, ORCH-3011, ORCH-3019).
//!
//! Among the Ready replicas inside the mask that have a free slot, the best by one fixed key: not where the task was
//! just lost, session affinity, load, free VRAM, measured speed, position. Integers only, so the same situation gives
//! the same answer everywhere, and every answer can say why, replica by replica.

use serde::Serialize;

use crate::core::id::DeviceMask;
use crate::core::units::VramBytes;

/// What placement knows of one replica, as of now.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its position in the pool.
    pub index: u16,
    /// Whether its model is loaded and its engine answers.
    pub ready: bool,
    /// The devices that it uses.
    pub mask: &'a DeviceMask,
    /// Places for running tasks.
    pub slots: u32,
    /// Places that are taken.
    pub slots_used: u32,
    /// Device memory that is free for KV caches; 0 when unknown.
    pub vram_free: VramBytes,
    /// Measured tokens a second, all slots together; 0 when unknown.
    pub tokens_per_s: u32,
    /// Tokens that its KV cache holds, when that is known.
    pub kv_tokens: Option<u64>,
    /// Tokens of it that are set aside for running tasks.
    pub kv_reserved: u64,
}

/// What the task and its pool demand.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// The devices that the pool may use: a law, not a preference.
    pub mask: &'a DeviceMask,
    /// The replica that served the task's session last, if it may be used again.
    pub affinity: Option<u16>,
    /// The replica on which the task's last attempt was lost: any other comes first.
    pub avoid: Option<u16>,
    /// Tokens that the task may come to need in the KV cache: its prompt and its budget.
    pub kv_tokens: u64,
}

/// Why a replica can or cannot take a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It can.
    Fits,
    /// Its model is not loaded, or its engine is down.
    NotReady,
    /// It uses a device that the pool may not use.
    OutsideMask,
    /// Every slot is taken.
    NoFreeSlot,
    /// Its KV cache has no room for the task beside those that run.
    NoKvRoom,
}

/// Judges one replica.
pub fn fit(candidate: &Candidate<'_>, demand: &Demand<'_>) -> Fit {
    if !candidate.mask.is_within(demand.mask) {
        Fit::OutsideMask
    } else if !candidate.ready {
        Fit::NotReady
    } else if candidate.slots_used >= candidate.slots {
        Fit::NoFreeSlot
    } else if !has_kv_room(candidate, demand) {
        Fit::NoKvRoom
    } else {
        Fit::Fits
    }
}

/// A task that runs alone always fits: the engine says what becomes of one that is larger than its whole cache.
fn has_kv_room(candidate: &Candidate<'_>, demand: &Demand<'_>) -> bool {
    let after = candidate.kv_reserved.saturating_add(demand.kv_tokens);
    candidate.slots_used == 0 || candidate.kv_tokens.is_none_or(|tokens| after <= tokens)
}

/// Chooses the replica for a task, or `None` when no replica fits. O(replicas).
pub fn place<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>, demand: &Demand<'_>) -> Option<u16> {
    let fitting = candidates.into_iter().filter(|candidate| fit(candidate, demand) == Fit::Fits);
    fitting.reduce(|best, other| if is_better(&other, &best, demand) { other } else { best }).map(|best| best.index)
}

/// Whether `a` comes before `b` by the fixed rule. The position decides last, so no two replicas are equal.
fn is_better(a: &Candidate<'_>, b: &Candidate<'_>, demand: &Demand<'_>) -> bool {
    let avoided = |candidate: &Candidate<'_>| demand.avoid == Some(candidate.index);
    let warm = |candidate: &Candidate<'_>| demand.affinity == Some(candidate.index);
    // used_a / slots_a < used_b / slots_b without division: cross-multiplied, and 32-bit factors cannot overflow.
    let load_a = u64::from(a.slots_used) * u64::from(b.slots);
    let load_b = u64::from(b.slots_used) * u64::from(a.slots);
    (avoided(a).cmp(&avoided(b)))
        .then(warm(b).cmp(&warm(a)))
        .then(load_a.cmp(&load_b))
        .then(b.vram_free.cmp(&a.vram_free))
        .then(b.tokens_per_s.cmp(&a.tokens_per_s))
        .then(a.index.cmp(&b.index))
        .is_lt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::DeviceId;

    fn mask(names: &[&str]) -> DeviceMask {
        DeviceMask::new(names.iter().map(|name| DeviceId::parse(name).expect("valid")).collect())
    }

    fn candidate(index: u16, mask: &DeviceMask, used: u32, slots: u32) -> Candidate<'_> {
        let (vram_free, tokens_per_s) = (VramBytes(0), 0);
        let (kv_tokens, kv_reserved) = (None, 0);
        Candidate { index, ready: true, mask, slots, slots_used: used, vram_free, tokens_per_s, kv_tokens, kv_reserved }
    }

    #[test]
    fn takes_the_least_loaded_by_share_of_its_slots() {
        let gpu = mask(&["0"]);
        let demand = Demand { mask: &gpu, affinity: None, avoid: None, kv_tokens: 0 };
        // 3 of 8 is less load than 2 of 4.
        assert_eq!(place([candidate(0, &gpu, 2, 4), candidate(1, &gpu, 3, 8)], &demand), Some(1));
        assert_eq!(place([candidate(0, &gpu, 3, 8), candidate(1, &gpu, 2, 4)], &demand), Some(0));
        assert_eq!(
            place([candidate(0, &gpu, 1, 2), candidate(1, &gpu, 1, 8), candidate(2, &gpu, 1, 4)], &demand),
            Some(1)
        );
    }

    #[test]
    fn a_device_outside_the_mask_is_never_used_however_idle() {
        let (law, outside) = (mask(&["0"]), mask(&["0", "1"]));
        let demand = Demand { mask: &law, affinity: Some(1), avoid: None, kv_tokens: 0 };
        let candidates = [candidate(0, &law, 3, 4), candidate(1, &outside, 0, 4)];
        assert_eq!(place(candidates, &demand), Some(0));
        assert_eq!(fit(&candidates[1], &demand), Fit::OutsideMask);
        assert_eq!(place([candidates[1]], &demand), None);
    }

    #[test]
    fn nothing_is_placed_before_ready_or_without_a_slot() {
        let gpu = mask(&["0"]);
        let demand = Demand { mask: &gpu, affinity: None, avoid: None, kv_tokens: 0 };
        let cold = Candidate { ready: false, ..candidate(0, &gpu, 0, 4) };
        let full = candidate(1, &gpu, 4, 4);
        assert_eq!((fit(&cold, &demand), fit(&full, &demand)), (Fit::NotReady, Fit::NoFreeSlot));
        assert_eq!(place([cold, full], &demand), None);
    }

    #[test]
    fn what_a_task_may_come_to_need_in_the_cache_counts_beside_its_slot() {
        let gpu = mask(&["0"]);
        let busy = Candidate { kv_tokens: Some(1_000), kv_reserved: 700, ..candidate(0, &gpu, 1, 4) };
        let demand = |kv_tokens| Demand { mask: &gpu, affinity: None, avoid: None, kv_tokens };
        assert_eq!((fit(&busy, &demand(300)), fit(&busy, &demand(301))), (Fit::Fits, Fit::NoKvRoom));
        let alone = Candidate { slots_used: 0, kv_reserved: 0, ..busy };
        assert_eq!(fit(&alone, &demand(5_000)), Fit::Fits, "alone it is the engine's to say");
        assert_eq!(fit(&Candidate { kv_tokens: None, ..busy }, &demand(u64::MAX)), Fit::Fits, "not known");
    }

    #[test]
    fn ties_break_by_affinity_load_vram_speed_and_position_in_that_order() {
        let gpu = mask(&["0"]);
        let base = candidate(0, &gpu, 1, 4);
        let others = [
            (Candidate { index: 1, slots_used: 2, ..base }, Some(1)), // affinity outweighs load
            (Candidate { index: 1, slots_used: 0, ..base }, None),    // load outweighs VRAM
            (Candidate { index: 1, vram_free: VramBytes(1), ..base }, None),
            (Candidate { index: 1, tokens_per_s: 1, ..base }, None),
        ];
        for (other, affinity) in others {
            let demand = Demand { mask: &gpu, affinity, avoid: None, kv_tokens: 0 };
            let richer = Candidate { tokens_per_s: u32::from(other.tokens_per_s > 0) ^ 1, ..base };
            assert_eq!(place([richer, other], &demand), Some(1), "{other:?}");
        }
        let demand = Demand { mask: &gpu, affinity: None, avoid: None, kv_tokens: 0 };
        assert_eq!(place([Candidate { index: 1, ..base }, base], &demand), Some(0));
    }

    #[test]
    fn a_task_goes_anywhere_rather_than_where_it_was_just_lost() {
        let gpu = mask(&["0"]);
        let demand = Demand { mask: &gpu, affinity: Some(0), avoid: Some(0), kv_tokens: 0 };
        assert_eq!(place([candidate(0, &gpu, 0, 4), candidate(1, &gpu, 3, 4)], &demand), Some(1));
        assert_eq!(place([candidate(0, &gpu, 0, 4), candidate(1, &gpu, 4, 4)], &demand), Some(0), "else it goes there");
    }
}
