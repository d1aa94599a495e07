//! Devices as values: which there are, what one look at them gives, and how a configuration's names for them are
//! understood.

#[doc(hidden)]
pub mod health;
#[doc(hidden)]
pub mod xid;

use serde::Serialize;

use crate::core::id::DeviceId;
use crate::core::units::VramBytes;

/// What there is to know of a device that does not change while it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its UUID; of a simulated device, the name that the configuration gives it.
    pub id: DeviceId,
    /// Its index on this machine, from 0; `None` of a MIG instance.
    pub index: Option<u32>,
    /// Its product name.
    pub name: String,
    /// Its memory; `None` where it has none of its own or does not say.
    pub memory: Option<VramBytes>,
    /// Compute capability, such as (9, 0).
    pub compute_capability: Option<(u32, u32)>,
    /// The NUMA node that it is near to.
    pub numa_node: Option<u32>,
    /// The CPUs that it is near to, ascending; empty when unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u32>,
    /// Its address on the PCI bus.
    pub pci: Option<String>,
    /// PCIe generation and width.
    pub pcie: Option<(u32, u32)>,
    /// NVLinks that are up.
    pub nvlinks: u32,
    /// How it is divided.
    pub mig: Mig,
}

impl DeviceInfo {
    /// A whole device of which nothing else is known.
    pub fn unknown(id: DeviceId) -> Self {
        DeviceInfo {
            id,
            index: None,
            name: String::new(),
            memory: None,
            compute_capability: None,
            numa_node: None,
            cpus: Vec::new(),
            pci: None,
            pcie: None,
            nvlinks: 0,
            mig: Mig::Off,
        }
    }

    /// Whether a model may be split over the two without a word about how: both have the same name, memory and
    /// capability.
    pub fn is_like(&self, other: &DeviceInfo) -> bool {
        (&self.name, self.memory, self.compute_capability) == (&other.name, other.memory, other.compute_capability)
    }
}

/// Whether and how a device is divided (multi-instance GPU).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mig {
    /// It is whole.
    #[default]
    Off,
    /// It is divided into these; it cannot be used itself.
    Divided(Vec<DeviceId>),
    /// It is a part of this one.
    PartOf(DeviceId),
}

/// Where devices come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "source")]
pub enum Origin {
    /// NVIDIA's driver, of this version.
    Driver {
        /// The version.
        version: String,
    },
    /// There is no driver, or it is not to be asked: each name in the configuration is taken for a device.
    Simulated {
        /// Why.
        why: String,
    },
}

/// The devices of this host, as they were when it was looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Where they come from.
    #[serde(flatten)]
    pub origin: Origin,
    /// The devices, whole ones by index, each followed by its MIG instances.
    pub devices: Vec<DeviceInfo>,
}

/// Shortest part of a UUID that stands for the whole, in bytes: `GPU-` and four digits.
pub const PREFIX_BYTES_MIN: usize = 8;

impl Inventory {
    /// No devices, simulated.
    pub fn simulated(why: impl Into<String>) -> Self {
        Inventory { origin: Origin::Simulated { why: why.into() }, devices: Vec::new() }
    }

    /// Whether a driver stands behind it.
    pub fn is_real(&self) -> bool {
        matches!(self.origin, Origin::Driver { .. })
    }

    /// The device of this id.
    pub fn get(&self, id: &DeviceId) -> Option<&DeviceInfo> {
        self.devices.iter().find(|device| device.id == *id)
    }

    /// The device that a configuration means: by index, by UUID, or by the begin of a UUID that no other device shares.
    ///
    /// # Errors
    /// One line that says why it is none, and what there is.
    pub fn resolve(&self, name: &str) -> Result<&DeviceInfo, String> {
        let found = match name.parse::<u32>() {
            Ok(index) => self.devices.iter().find(|device| device.index == Some(index)),
            Err(_) => self.by_uuid(name)?,
        };
        let device = found.ok_or_else(|| format!("there is no device {name}; there is {}", self.known()))?;
        match &device.mig {
            Mig::Divided(parts) => {
                let parts: Vec<&str> = parts.iter().map(DeviceId::as_str).collect();
                let parts = if parts.is_empty() { "none yet".to_owned() } else { parts.join(", ") };
                Err(format!("device {name} is divided by MIG; name one of its instances: {parts}"))
            }
            Mig::Off | Mig::PartOf(_) => Ok(device),
        }
    }

    fn by_uuid(&self, name: &str) -> Result<Option<&DeviceInfo>, String> {
        if let Some(exact) = self.devices.iter().find(|device| device.id.as_str() == name) {
            return Ok(Some(exact));
        }
        if name.len() < PREFIX_BYTES_MIN {
            return Ok(None);
        }
        let mut matching = self.devices.iter().filter(|device| device.id.as_str().starts_with(name));
        match (matching.next(), matching.next()) {
            (Some(one), Some(other)) => {
                Err(format!("{name} may be {} or {}; write more of the UUID", one.id, other.id))
            }
            (one, _) => Ok(one),
        }
    }

    fn known(&self) -> String {
        let name = |device: &DeviceInfo| match device.index {
            Some(index) => format!("{index} ({})", device.id),
            None => device.id.to_string(),
        };
        let names = self.devices.iter().map(name);
        let names: Vec<String> = names.collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

/// What one look at a device gives. `None` is what the device does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceSample {
    /// Memory in use.
    pub memory_used: Option<VramBytes>,
    /// Memory there is.
    pub memory_total: Option<VramBytes>,
    /// Share of the time that something computed on it, in percent.
    pub utilization_percent: Option<u32>,
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Power in milliwatts, and the limit that is enforced.
    pub power_mw: Option<u32>,
    /// See there.
    pub power_limit_mw: Option<u32>,
    /// Why its clocks are held down, as the driver's bits; 0 is not at all.
    pub throttle_reasons: Option<u64>,
    /// Uncorrected ECC errors since the last reset.
    pub ecc_uncorrected: Option<u64>,
    /// Memory waits for a reset to be retired.
    pub reset_pending: bool,
    /// Processes that compute on it, ascending by id, with the memory of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<(u32, Option<u64>)>,
}

impl DeviceSample {
    /// Memory that is free.
    pub fn memory_free(&self) -> Option<VramBytes> {
        Some(VramBytes(self.memory_total?.0.saturating_sub(self.memory_used?.0)))
    }
}

/// What was seen of a device at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It answered.
    Sample(DeviceSample),
    /// It did not answer in time.
    Late,
    /// The driver says that it is lost.
    Lost,
    /// The driver says that it needs a reset.
    ResetRequired,
    /// The driver does not know it any more.
    Missing,
    /// The driver has reported this XID.
    Xid(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).expect("valid")
    }

    fn inventory() -> Inventory {
        let whole = |index, uuid| DeviceInfo { index: Some(index), ..DeviceInfo::unknown(id(uuid)) };
        let part = DeviceInfo { mig: Mig::PartOf(id("GPU-cccc-1")), ..DeviceInfo::unknown(id("MIG-1111")) };
        let divided = DeviceInfo { mig: Mig::Divided(vec![id("MIG-1111")]), ..whole(2, "GPU-cccc-1") };
        let origin = Origin::Driver { version: "570".into() };
        Inventory { origin, devices: vec![whole(0, "GPU-aaaa-1"), whole(1, "GPU-aaaa-2"), divided, part] }
    }

    #[test]
    fn a_name_means_one_device_or_says_why_not() {
        let inventory = inventory();
        let found = |name: &str| inventory.resolve(name).map(|device| device.id.to_string());
        assert_eq!(found("1"), Ok("GPU-aaaa-2".into()));
        assert_eq!(found("GPU-aaaa-1"), Ok("GPU-aaaa-1".into()));
        assert_eq!(found("MIG-1111"), Ok("MIG-1111".into()));
        for (name, words) in [
            ("7", "there is no device 7; there is 0 (GPU-aaaa-1), 1 (GPU-aaaa-2)"),
            ("GPU-dddd", "no device GPU-dddd"),
            ("GPU-aaaa", "may be GPU-aaaa-1 or GPU-aaaa-2"),
            ("GPU-", "no device GPU-"),
            ("2", "divided by MIG; name one of its instances: MIG-1111"),
        ] {
            let error = found(name).expect_err("it is none");
            assert!(error.contains(words), "{name}: {error}");
        }
    }
}
