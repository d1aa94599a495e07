//! Whether a model fits into memory before it is loaded (ORCH-3003), and how many slots a device that ran out of memory
//! is good for (ORCH-3039).

use std::time::Duration;

use crate::core::units::{Timestamp, VramBytes};

/// What a load needs on its devices, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The model's weights.
    pub model: u64,
    /// KV caches and scratch memory of all slots.
    pub slots: u64,
    /// What is to stay free on each device.
    pub reserve: u64,
}

impl Need {
    /// What it needs on a device that takes this share of the model, 0 to 1.
    pub fn on_device(&self, share: f64) -> VramBytes {
        let divided = self.model.saturating_add(self.slots) as f64 * share;
        VramBytes((divided.ceil() as u64).saturating_add(self.reserve))
    }
}

/// Slots that a worker is good for. Each time its device runs out of memory there is room for one fewer than ran then;
/// each quiet period gives one back, since what took the memory may have been another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotEstimate {
    total: u32,
    now: u32,
    changed_at: Timestamp,
}

/// How long what is said of one want of memory may take.
pub const SETTLE: Duration = Duration::from_secs(2);
/// How long without running out of memory gives a slot back.
pub const QUIET: Duration = Duration::from_secs(600);

impl SlotEstimate {
    /// All slots that are configured.
    pub const fn new(total: u32) -> Self {
        SlotEstimate { total, now: total, changed_at: Timestamp::from_micros(0) }
    }

    /// How many may be used.
    pub const fn get(&self) -> u32 {
        self.now
    }

    /// The device ran out of memory while this many tasks ran. One slot always stays. Whoever says so within [`SETTLE`]
    /// of another means the same: a whole batch is lost at once, task by task.
    pub fn on_out_of_vram(&mut self, now: Timestamp, running: u32) {
        if self.now < self.total && now.since(self.changed_at) < SETTLE {
            return;
        }
        self.now = self.now.min(running).saturating_sub(1).max(1);
        self.changed_at = now;
    }

    /// The device ran out of memory while the engine was loaded for this many: the next load asks for half.
    pub fn on_load_out_of_vram(&mut self, now: Timestamp) {
        self.now = (self.now / 2).max(1);
        self.changed_at = now;
    }

    /// Time has passed; returns whether a slot came back.
    pub fn on_time(&mut self, now: Timestamp) -> bool {
        let is_due = self.now < self.total && now.since(self.changed_at) >= QUIET;
        if is_due {
            self.now += 1;
            self.changed_at = now;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_model_needs_its_share_and_the_whole_reserve_on_each_device() {
        let need = Need { model: 700, slots: 300, reserve: 50 };
        assert_eq!(need.on_device(1.0), VramBytes(1050));
        assert_eq!((need.on_device(0.75), need.on_device(0.25)), (VramBytes(800), VramBytes(300)));
        assert_eq!(Need { model: u64::MAX, slots: 1, reserve: 1 }.on_device(1.0), VramBytes(u64::MAX));
    }

    #[test]
    fn a_device_that_ran_out_is_good_for_fewer_slots_until_it_has_been_quiet() {
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let mut slots = SlotEstimate::new(8);
        for running in (1..=6).rev() {
            slots.on_out_of_vram(at(10), running);
        }
        assert_eq!(slots.get(), 5, "six were lost at once, to one want of memory");
        slots.on_out_of_vram(at(12), 8);
        assert_eq!(slots.get(), 4);
        assert!(!slots.on_time(at(611)), "not quiet for long enough");
        assert!(slots.on_time(at(612)) && !slots.on_time(at(613)));
        assert_eq!(slots.get(), 5);
        slots.on_load_out_of_vram(at(650));
        assert_eq!(slots.get(), 2);
        for _ in 0..9 {
            slots.on_load_out_of_vram(at(700));
        }
        assert_eq!(slots.get(), 1, "one always stays");
        assert!((1..9).all(|period| slots.on_time(at(700 + period * 600)) == (period < 8)), "and never more than all");
    }
}
