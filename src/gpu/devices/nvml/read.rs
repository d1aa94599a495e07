//! What the driver says, as values. A field that it does not support is `None`; a device that it has lost is an
//! observation.

use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::core::device::{DeviceInfo, DeviceSample, Inventory, Mig, Observation, Origin};
use crate::core::id::DeviceId;
use crate::core::units::VramBytes;

/// Most CPUs that are asked for, in words of 64.
const CPU_WORDS: usize = 64;
/// Most NVLinks that a device has.
const NVLINKS_MAX: u32 = 18;

/// Every device that the driver knows. One that cannot be asked for its name is left out, and said so.
pub(super) fn inventory(nvml: &Nvml) -> Result<Inventory, NvmlError> {
    let version = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    let mut devices = Vec::new();
    for index in 0..nvml.device_count()? {
        let listed = nvml.device_by_index(index).and_then(|device| whole(&device, index, &mut devices));
        if let Err(error) = listed {
            tracing::warn!(index, %error, "a device cannot be listed");
        }
    }
    Ok(Inventory { origin: Origin::Driver { version }, devices })
}

/// Lists a device, and its instances behind it.
fn whole(device: &Device<'_>, index: u32, devices: &mut Vec<DeviceInfo>) -> Result<(), NvmlError> {
    let mut info = describe(device)?;
    info.index = Some(index);
    let is_divided = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    let mut parts = Vec::new();
    if is_divided {
        for at in 0..device.mig_device_count().unwrap_or(0) {
            // Numbers without an instance are gaps.
            let Ok(part) = device.mig_device_by_index(at).and_then(|part| describe(&part)) else { continue };
            parts.push(DeviceInfo {
                numa_node: part.numa_node.or(info.numa_node),
                cpus: if part.cpus.is_empty() { info.cpus.clone() } else { part.cpus.clone() },
                mig: Mig::PartOf(info.id.clone()),
                ..part
            });
        }
        info.mig = Mig::Divided(parts.iter().map(|part| part.id.clone()).collect());
    }
    devices.push(info);
    devices.extend(parts);
    Ok(())
}

fn describe(device: &Device<'_>) -> Result<DeviceInfo, NvmlError> {
    let uuid = device.uuid()?;
    let id = DeviceId::parse(&uuid).map_err(|_| NvmlError::Unknown)?;
    let capability = device.cuda_compute_capability().ok();
    let pcie = device.current_pcie_link_gen().ok().zip(device.current_pcie_link_width().ok());
    let links = (0..NVLINKS_MAX).map_while(|link| device.link_wrapper_for(link).is_active().ok());
    let numa_node = device.numa_node_id().ok();
    Ok(DeviceInfo {
        name: device.name().unwrap_or_default(),
        memory: device.memory_info().ok().map(|memory| VramBytes(memory.total)),
        compute_capability: capability
            .and_then(|known| Some((u32::try_from(known.major).ok()?, u32::try_from(known.minor).ok()?))),
        numa_node,
        cpus: device.cpu_affinity(CPU_WORDS).map(|words| cpus(&words)).unwrap_or_default(),
        pci: device.pci_info().ok().map(|pci| pci.bus_id),
        pcie,
        nvlinks: links.filter(|active| *active).count() as u32,
        ..DeviceInfo::unknown(id)
    })
}

/// Numbers of the bits that are set.
fn cpus(words: &[std::ffi::c_ulong]) -> Vec<u32> {
    let bits = words.iter().enumerate().flat_map(|(at, word)| {
        (0..u64::BITS).filter(move |bit| *word >> bit & 1 == 1).map(move |bit| at as u32 * u64::BITS + bit)
    });
    bits.collect()
}

/// Looks at one device.
pub(super) fn observe(nvml: &Nvml, id: &DeviceId) -> Observation {
    // Anew each time: what a handle stands for may have gone and come back.
    match nvml.device_by_uuid(id.as_str()).and_then(|device| sample(&device)) {
        Ok(sample) => Observation::Sample(sample),
        Err(NvmlError::GpuLost) => Observation::Lost,
        Err(NvmlError::ResetRequired) => Observation::ResetRequired,
        Err(NvmlError::NotFound | NvmlError::InvalidArg | NvmlError::Uninitialized) => Observation::Missing,
        Err(_) => Observation::Late, // It has said nothing of the device; three in a row are a failure.
    }
}

/// What a field gives; an error that says that the device is out goes on, every other is "not known".
fn field<T>(value: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => Err(error),
        Err(_) => Ok(None),
    }
}

fn sample(device: &Device<'_>) -> Result<DeviceSample, NvmlError> {
    let memory = field(device.memory_info())?;
    let utilization = field(device.utilization_rates())?;
    let processes = field(device.running_compute_processes())?.unwrap_or_default();
    let used = |memory| match memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    let mut processes: Vec<(u32, Option<u64>)> =
        processes.into_iter().map(|process| (process.pid, used(process.used_gpu_memory))).collect();
    processes.sort_unstable();
    Ok(DeviceSample {
        // What the driver keeps for itself is not free either.
        memory_used: memory.as_ref().map(|memory| VramBytes(memory.total.saturating_sub(memory.free))),
        memory_total: memory.map(|memory| VramBytes(memory.total)),
        utilization_percent: utilization.map(|rates| rates.gpu),
        temperature_c: field(device.temperature(TemperatureSensor::Gpu))?,
        power_mw: field(device.power_usage())?,
        power_limit_mw: field(device.enforced_power_limit())?,
        throttle_reasons: field(device.current_throttle_reasons())?.map(|reasons| reasons.bits()),
        ecc_uncorrected: field(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?,
        reset_pending: field(device.are_pages_pending_retired())?.unwrap_or(false),
        processes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_numbered_over_all_words() {
        assert_eq!(cpus(&[0b101, 0, 1 << 63]), [0, 2, 191]);
        assert!(cpus(&[]).is_empty());
    }
}
