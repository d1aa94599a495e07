//! Figures of devices for `/metrics`. A device that is not measured has none.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use crate::core::device::health::Condition;
use crate::core::units::VramBytes;
use crate::metrics::{Labels, counter, gauge, replica_labels};
use crate::views::{DeviceView, DevicesView, PoolView};

/// Writes every series of every device.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, devices: &DevicesView, pools: &[PoolView]) -> fmt::Result {
    let utilization =
        |device: &DeviceView| device.sample.as_ref()?.utilization_percent.map(|share| f64::from(share) / 100.0);
    by_worker(encoder, "gpu_utilization", "Share of the time that something computed", devices, pools, utilization)?;
    let used = |device: &DeviceView| device.sample.as_ref()?.memory_used.map(bytes);
    by_worker(encoder, "vram_used_bytes", "Device memory that is used, by whomever", devices, pools, used)?;
    let total = |device: &DeviceView| device.sample.as_ref()?.memory_total.map(bytes);
    by_device(encoder, "device_memory_bytes", "Device memory there is", devices, total)?;
    let usable = |device: &DeviceView| Some(f64::from(u8::from(!matches!(device.condition, Condition::Failed { .. }))));
    by_device(encoder, "device_usable", "Whether a device may be used", devices, usable)?;
    let temperature = |device: &DeviceView| device.sample.as_ref()?.temperature_c.map(f64::from);
    by_device(encoder, "device_temperature_celsius", "Temperature", devices, temperature)?;
    let power = |device: &DeviceView| device.sample.as_ref()?.power_mw.map(|power| f64::from(power) / 1000.0);
    by_device(encoder, "device_power_watts", "Power", devices, power)?;
    let throttle = |device: &DeviceView| {
        let reasons = device.sample.as_ref()?.throttle_reasons?;
        Some(f64::from(u8::from(reasons & !IDLE_CLOCKS != 0)))
    };
    by_device(
        encoder,
        "device_throttled",
        "Whether its clocks are held down, other than for idleness",
        devices,
        throttle,
    )?;
    let ecc = |device: &DeviceView| device.sample.as_ref()?.ecc_uncorrected.map(|errors| errors as f64);
    by_device(encoder, "device_ecc_uncorrected", "Uncorrected memory errors since the last reset", devices, ecc)?;
    let failures = devices.devices.iter().map(|device| (labels(device), device.failures));
    counter(encoder, "driver_reset_events", "Times that a device failed", failures)?;
    let xids = devices.devices.iter().flat_map(|device| {
        device.xids.iter().map(|(number, xid)| {
            let mut labels = labels(device);
            labels.push(("xid", number.to_string()));
            (labels, xid.count)
        })
    });
    counter(encoder, "device_xids", "XIDs that the driver reported", xids)
}

/// The driver's bit for clocks that are low because nothing runs.
const IDLE_CLOCKS: u64 = 1;

fn bytes(memory: VramBytes) -> f64 {
    memory.0 as f64
}

fn labels(device: &DeviceView) -> Labels {
    vec![("device", device.info.id.to_string())]
}

fn by_device(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    devices: &DevicesView,
    of: impl Fn(&DeviceView) -> Option<f64>,
) -> fmt::Result {
    gauge(encoder, name, help, devices.devices.iter().filter_map(|device| Some((labels(device), of(device)?))))
}

/// One series for each worker on each of its devices, as the contract has it.
fn by_worker(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    devices: &DevicesView,
    pools: &[PoolView],
    of: impl Fn(&DeviceView) -> Option<f64>,
) -> fmt::Result {
    let mut series = Vec::new();
    for pool in pools {
        for replica in &pool.replicas {
            for id in replica.devices.devices() {
                let device = devices.devices.iter().find(|device| device.info.id == *id);
                let Some(value) = device.and_then(&of) else { continue };
                let mut labels = replica_labels(pool, replica, &[]);
                labels.push(("device", id.to_string()));
                series.push((labels, value));
            }
        }
    }
    gauge(encoder, name, help, series)
}
