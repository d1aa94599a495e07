//! What can be seen of the host's devices.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use crate::core::device::health::Condition;
use crate::core::device::xid::{XidRule, xid};
use crate::core::device::{DeviceInfo, DeviceSample, Origin};
use crate::core::id::ReplicaId;
use crate::core::units::millis_ceil;
use crate::orchestrator::Orchestrator;

/// The devices of this host.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DevicesView {
    /// Where they come from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Each of them.
    pub devices: Vec<DeviceView>,
}

/// One device.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeviceView {
    /// What does not change while it is there.
    #[serde(flatten)]
    pub info: DeviceInfo,
    /// Where it stands.
    #[serde(flatten)]
    pub condition: Condition,
    /// What the last look gave; `None` before the first, and of a simulated device.
    pub sample: Option<DeviceSample>,
    /// How long ago that was, in milliseconds.
    pub sample_age_ms: Option<u64>,
    /// Times that it failed.
    pub failures: u64,
    /// XIDs that the driver reported, by number.
    pub xids: BTreeMap<u64, XidView>,
    /// The workers that use it.
    pub replicas: Vec<ReplicaId>,
}

/// One XID of a device.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct XidView {
    /// How often it was reported.
    pub count: u64,
    /// What it means.
    pub meaning: &'static str,
    /// What it does.
    pub effect: crate::core::device::xid::XidEffect,
}

impl Orchestrator {
    /// The devices of this host, as they stand now.
    pub fn devices(&self) -> DevicesView {
        let (shared, now) = (self.shared(), self.env().now());
        let table = shared.pools.table();
        let places = || table.every().flat_map(|pool| &pool.replicas);
        let all = shared.devices.all();
        let devices = all.iter().map(|device| {
            let sample = device.sample();
            let uses = places().filter(|place| place.placement.mask.devices().contains(&device.info.id));
            let seen = |(number, count): (u64, u64)| {
                let XidRule { meaning, effect, .. } = xid(number);
                (number, XidView { count, meaning, effect })
            };
            DeviceView {
                info: device.info.clone(),
                condition: device.condition(),
                sample_age_ms: sample.as_ref().map(|(at, _)| millis_ceil(now.since(*at))),
                sample: sample.map(|(_, sample)| (*sample).clone()),
                failures: device.failures.load(Relaxed),
                xids: device.xids().into_iter().map(seen).collect(),
                replicas: uses.map(|place| place.id.clone()).collect(),
            }
        });
        DevicesView { origin: shared.devices.origin.clone(), devices: devices.collect() }
    }
}
