//! Each call of the driver that the device layer makes: what it gives, and how long it takes.

use std::ffi::OsStr;
use std::time::Instant;

use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde_json::{Value, json};

/// A call by the name of the driver's function, as what it gives.
type Call = (&'static str, fn(&Nvml, &Device<'_>) -> Result<Value, NvmlError>);

/// Those of a look first, then those of the start, then what only a person asks for.
const CALLS: [Call; 23] = [
    ("nvmlDeviceGetHandleByUUID", |nvml, device| nvml.device_by_uuid(device.uuid()?).map(|_| Value::Null)),
    ("nvmlDeviceGetMemoryInfo_v2", |_, device| {
        device.memory_info().map(|memory| json!({ "total": memory.total, "free": memory.free, "used": memory.used, "reserved": memory.reserved }))
    }),
    ("nvmlDeviceGetUtilizationRates", |_, device| {
        device.utilization_rates().map(|rates| json!({ "gpu": rates.gpu, "memory": rates.memory }))
    }),
    ("nvmlDeviceGetComputeRunningProcesses_v3", |_, device| {
        let processes = device.running_compute_processes()?;
        let used = |memory: &UsedGpuMemory| match memory {
            UsedGpuMemory::Used(bytes) => json!(bytes),
            UsedGpuMemory::Unavailable => Value::Null,
        };
        Ok(json!(
            processes.iter().map(|process| json!([process.pid, used(&process.used_gpu_memory)])).collect::<Vec<_>>()
        ))
    }),
    ("nvmlDeviceGetTemperature", |_, device| device.temperature(TemperatureSensor::Gpu).map(|degrees| json!(degrees))),
    ("nvmlDeviceGetPowerUsage", |_, device| device.power_usage().map(|milliwatts| json!(milliwatts))),
    ("nvmlDeviceGetEnforcedPowerLimit", |_, device| device.enforced_power_limit().map(|milliwatts| json!(milliwatts))),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", |_, device| {
        device.current_throttle_reasons().map(|reasons| json!(reasons.bits()))
    }),
    ("nvmlDeviceGetTotalEccErrors", |_, device| {
        device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).map(|errors| json!(errors))
    }),
    ("nvmlDeviceGetRetiredPagesPendingStatus", |_, device| {
        device.are_pages_pending_retired().map(|pending| json!(pending))
    }),
    ("nvmlDeviceGetUUID", |_, device| device.uuid().map(|uuid| json!(uuid))),
    ("nvmlDeviceGetName", |_, device| device.name().map(|name| json!(name))),
    ("nvmlDeviceGetCudaComputeCapability", |_, device| {
        device.cuda_compute_capability().map(|capability| json!([capability.major, capability.minor]))
    }),
    ("nvmlDeviceGetPciInfo_v3", |_, device| device.pci_info().map(|pci| json!(pci.bus_id))),
    ("nvmlDeviceGetCurrPcieLinkGeneration", |_, device| {
        device.current_pcie_link_gen().map(|generation| json!(generation))
    }),
    ("nvmlDeviceGetCurrPcieLinkWidth", |_, device| device.current_pcie_link_width().map(|width| json!(width))),
    ("nvmlDeviceGetNvLinkState", |_, device| device.link_wrapper_for(0).is_active().map(|active| json!(active))),
    ("nvmlDeviceGetNumaNodeId", |_, device| device.numa_node_id().map(|node| json!(node))),
    ("nvmlDeviceGetCpuAffinity", |_, device| device.cpu_affinity(64).map(|words| json!(words))),
    ("nvmlDeviceGetMigMode", |_, device| device.mig_mode().map(|mode| json!([mode.current, mode.pending]))),
    ("nvmlDeviceGetEccMode", |_, device| {
        device.is_ecc_enabled().map(|ecc| json!([ecc.currently_enabled, ecc.pending_enabled]))
    }),
    ("nvmlDeviceGetClockInfo", |_, device| {
        Ok(json!({ "sm": device.clock_info(Clock::SM)?, "memory": device.clock_info(Clock::Memory)? }))
    }),
    ("nvmlDeviceGetPerformanceState", |_, device| device.performance_state().map(|state| json!(state.as_c()))),
];

/// Makes every call so many times on every device.
///
/// # Errors
/// One line, when there is no driver.
pub(crate) fn measure(library: Option<&OsStr>, rounds: u32) -> Result<Value, String> {
    let mut builder = Nvml::builder();
    if let Some(path) = library {
        builder.lib_path(path);
    }
    let nvml = builder.init().map_err(|error| error.to_string())?;
    let count = nvml.device_count().map_err(|error| error.to_string())?;
    let mut measured = Vec::new();
    for index in 0..count {
        let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
        for (name, call) in CALLS {
            let (given, times) = timed(rounds, || call(&nvml, &device));
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            let (value, error) = match given {
                Ok(value) => (value, Value::Null),
                Err(NvmlError::NotSupported) => (Value::Null, json!("not supported")),
                Err(error) => (Value::Null, json!(error.to_string())),
            };
            measured.push(json!({
                "index": index, "call": name, "value": value, "error": error,
                "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0),
            }));
        }
    }
    Ok(json!({ "rounds": rounds, "calls": measured }))
}

/// What a call gave the last time, and how long each took in microseconds, ascending.
fn timed(rounds: u32, call: impl Fn() -> Result<Value, NvmlError>) -> (Result<Value, NvmlError>, Vec<f64>) {
    let mut times = Vec::new();
    let mut one = || {
        let began = Instant::now();
        let given = call();
        times.push(began.elapsed().as_secs_f64() * 1_000_000.0);
        given
    };
    let mut given = one();
    for _ in 1..rounds {
        given = one();
    }
    times.sort_unstable_by(f64::total_cmp);
    (given, times)
}
