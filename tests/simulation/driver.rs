//! The driver of a simulated world.

use std::time::Duration;

use orchestrator_core::core::DeviceId;
use orchestrator_core::core::device::{DeviceSample, Observation};
use orchestrator_core::gpu::SimDevices;

use super::world::Rng;

/// Devices that fail, come back, and are reported to have done what they did not do.
pub async fn driver(devices: SimDevices, ids: Vec<DeviceId>, mut dice: Rng) {
    for _ in 0..dice.below(5) {
        tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
        let id = &ids[dice.below(ids.len() as u64) as usize];
        match dice.below(4) {
            0 => devices.report(id, Observation::Xid(dice.one_of(&[13, 31, 63, 94]))),
            1 => devices.report(id, Observation::Xid(dice.one_of(&[48, 74, 79, 95]))),
            seen => {
                let answer = if seen == 2 { dice.one_of(&LOSSES) } else { 3 };
                let answers = [Observation::Lost, Observation::ResetRequired, Observation::Missing];
                devices.set(id, answers.get(answer).cloned()); // The fourth is no answer at all.
                tokio::time::sleep(Duration::from_millis(dice.below(1_500))).await;
                devices.set(id, Some(Observation::Sample(DeviceSample::default())));
            }
        }
    }
}

const LOSSES: [usize; 3] = [0, 1, 2];
