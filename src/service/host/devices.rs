//! The host's devices, for the service: where they come from, and what a person sees of them.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;

use crate::config::{Config, DriverUse, GpuConfig, resolve};
use crate::core::device::{DeviceInfo, Inventory, Mig, Origin};
use crate::gpu::devices::DeviceProbe;
use crate::gpu::devices::nvml;
use crate::orchestrator::Orchestrator;
use crate::service::cli::output::say;
use crate::views::DevicesView;

/// How long the driver may take to list the devices: some seconds for each of eight that sleep.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The host's devices: from the driver, or simulated and why.
///
/// # Errors
/// One line, when a driver is required and there is none.
pub(crate) fn probe(config: &GpuConfig) -> Result<Result<Arc<dyn DeviceProbe>, String>, String> {
    if config.driver == DriverUse::Off {
        return Ok(Err("gpu.driver is off".into()));
    }
    match nvml::open(config.library.as_deref().map(OsStr::new), OPEN_TIMEOUT) {
        Ok(probe) => Ok(Ok(probe)),
        Err(error) if config.driver == DriverUse::Required => Err(format!("gpu.driver is required: {error}")),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// What of a configuration without faults cannot be on this host's devices, a line each.
///
/// # Errors
/// One line, when a driver is required and there is none.
pub(crate) fn faults(config: &Config) -> Result<Vec<String>, String> {
    let Ok(probe) = probe(&config.gpu)? else { return Ok(Vec::new()) };
    Ok(resolve(config, &probe.inventory()).faults.iter().map(ToString::to_string).collect())
}

/// Shows the host's devices.
///
/// # Errors
/// One line, when a driver is required and there is none.
pub(crate) fn list(library: Option<String>) -> Result<(), String> {
    match probe(&GpuConfig { library, ..GpuConfig::default() })? {
        Ok(probe) => show(&probe.inventory()),
        Err(why) => say(&format!("{why}: devices would be simulated")),
    }
    Ok(())
}

fn show(inventory: &Inventory) {
    if let Origin::Driver { version } = &inventory.origin {
        say(&format!("NVIDIA driver {version}, {} devices", inventory.devices.len()));
    }
    inventory.devices.iter().for_each(|device| say(&line(device)));
}

/// A device in one line.
fn line(device: &DeviceInfo) -> String {
    let index = device.index.map_or("-".to_owned(), |index| index.to_string());
    let memory = device.memory.map_or("memory unknown".to_owned(), |memory| format!("{} MiB", memory.0 >> 20));
    let capability = device.compute_capability.map_or(String::new(), |(major, minor)| format!(", sm_{major}{minor}"));
    let node = device.numa_node.map_or(String::new(), |node| format!(", NUMA node {node}"));
    let mig = match &device.mig {
        Mig::Off => String::new(),
        Mig::Divided(parts) => format!(", divided into {}", parts.len()),
        Mig::PartOf(whole) => format!(", part of {whole}"),
    };
    format!("  {index} {} {}, {memory}{capability}{node}{mig}", device.id, device.name)
}

/// The host's devices: what they are, how they are, and who uses them.
#[utoipa::path(get, path = "/v1/devices", responses((status = 200, description = "Every device of this host.")))]
pub(crate) async fn devices(State(orchestrator): State<Orchestrator>) -> Json<DevicesView> {
    Json(orchestrator.devices())
}
