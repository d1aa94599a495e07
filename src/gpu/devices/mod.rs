//! Where devices and what is known of them come from: NVIDIA's driver, or a simulation.

#[cfg(feature = "nvml")]
pub mod nvml;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::device::{DeviceSample, Inventory, Observation};
use crate::core::id::DeviceId;

/// Where what was seen of a device goes. Called from any thread; never waits.
pub type DeviceSink = Arc<dyn Fn(DeviceId, Observation) + Send + Sync>;

/// Looks at devices. Nothing here may wait for a driver: what is seen goes to the sink, whenever it is.
pub trait DeviceProbe: Send + Sync + 'static {
    /// The devices as they were when the probe was opened.
    fn inventory(&self) -> Inventory;

    /// Sends what is seen from now on there, and no longer where it went before.
    fn attach(&self, sink: DeviceSink);

    /// Asks for a look at one device; the answer goes to the sink. While an earlier look has no answer it is ignored.
    fn look(&self, device: &DeviceId);
}

/// Devices that do what they are told: for tests and simulations.
#[derive(Clone)]
pub struct SimDevices(Arc<Inner>);

struct Inner {
    inventory: Inventory,
    sink: Mutex<Option<DeviceSink>>,
    answers: Mutex<BTreeMap<DeviceId, Answer>>,
}

/// What a look at a device gives.
#[derive(Default)]
struct Answer {
    /// `None` is that it is well; `Some(None)` is no answer yet.
    given: Option<Option<Observation>>,
    /// A look has had no answer yet.
    is_owed: bool,
}

impl SimDevices {
    /// These devices, all of them well.
    pub fn new(inventory: Inventory) -> Self {
        let answers = Mutex::default();
        SimDevices(Arc::new(Inner { inventory, sink: Mutex::new(None), answers }))
    }

    /// From now on a look at this device gives that; `None` is no answer, until there is another.
    pub fn set(&self, device: &DeviceId, answer: Option<Observation>) {
        let owed = {
            let mut answers = self.0.answers.lock();
            let entry = answers.entry(device.clone()).or_default();
            entry.given = Some(answer.clone());
            answer.filter(|_| std::mem::take(&mut entry.is_owed))
        };
        if let Some(seen) = owed {
            self.report(device, seen);
        }
    }

    /// The driver reports something of this device by itself.
    pub fn report(&self, device: &DeviceId, seen: Observation) {
        let sink = self.0.sink.lock().clone();
        if let Some(sink) = sink {
            sink(device.clone(), seen);
        }
    }
}

impl DeviceProbe for SimDevices {
    fn inventory(&self) -> Inventory {
        self.0.inventory.clone()
    }

    fn attach(&self, sink: DeviceSink) {
        *self.0.sink.lock() = Some(sink);
    }

    fn look(&self, device: &DeviceId) {
        let given = {
            let mut answers = self.0.answers.lock();
            let entry = answers.entry(device.clone()).or_default();
            entry.is_owed = entry.given == Some(None);
            entry.given.clone()
        };
        let well = || {
            let memory_total = self.0.inventory.get(device).and_then(|device| device.memory);
            let memory_used = memory_total.map(|_| Default::default());
            Some(Observation::Sample(DeviceSample { memory_total, memory_used, ..DeviceSample::default() }))
        };
        if let Some(seen) = given.unwrap_or_else(well) {
            self.report(device, seen);
        }
    }
}
