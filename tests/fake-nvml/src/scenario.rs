//! The world that the file beside the library describes, and what each loaded copy remembers of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use serde::Deserialize;

use crate::*;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(default = "default_driver")]
    pub(crate) driver: String,
    pub(crate) init_error: Code,
    pub(crate) devices: Vec<Device>,
    pub(crate) events: Vec<Event>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) uuid: String,
    #[serde(default = "default_name")]
    pub(crate) name: String,
    pub(crate) memory_total: u64,
    pub(crate) memory_used: u64,
    /// What the driver keeps for itself, which is in `used` of none but not free either.
    pub(crate) memory_reserved: u64,
    #[serde(default = "default_cc")]
    pub(crate) cc: [c_int; 2],
    pub(crate) gpu_util: u32,
    pub(crate) mem_util: u32,
    pub(crate) temperature: u32,
    pub(crate) power_mw: u32,
    pub(crate) power_limit_mw: u32,
    /// The bits of the reasons for which the clocks are held down.
    pub(crate) throttle: u64,
    /// Where this is false, the ECC counts are not supported.
    pub(crate) ecc_enabled: bool,
    pub(crate) ecc_uncorrected: u64,
    pub(crate) ecc_corrected: u64,
    /// Pages to be retired, or rows to be remapped, at the next reset.
    pub(crate) retired_pending: bool,
    /// None: not supported.
    pub(crate) numa_node: Option<u32>,
    /// The words of the mask, lowest CPUs first. Empty: not supported.
    pub(crate) cpu_affinity: Vec<u64>,
    #[serde(default = "default_pci")]
    pub(crate) pci: String,
    pub(crate) pcie_gen: u32,
    pub(crate) pcie_width: u32,
    /// Whether each link is active. Empty: not supported.
    pub(crate) nvlinks: Vec<bool>,
    pub(crate) compute_processes: Vec<Process>,
    /// None: MIG is not supported. Otherwise it is on, with these devices.
    pub(crate) mig: Option<Vec<Mig>>,
    /// In MHz. None: not supported.
    pub(crate) clock_sm: Option<u32>,
    pub(crate) clock_memory: Option<u32>,
    /// None: not supported.
    pub(crate) performance_state: Option<u32>,
    /// Names of functions that answer "not supported".
    pub(crate) not_supported: Vec<String>,
    /// What each query answers, lookups of handles and UUIDs apart; 0 is none.
    pub(crate) error: Code,
    /// How long each call for this device takes.
    pub(crate) slow_ms: u64,
    /// The one function that is slow, where not all are.
    pub(crate) slow_symbol: Option<String>,
    /// Not counted and not found; handles from before answer that the GPU is lost.
    pub(crate) gone: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mig {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) memory_total: u64,
    pub(crate) memory_used: u64,
    pub(crate) compute_processes: Vec<Process>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) memory: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) uuid: String,
    pub(crate) xid: u64,
}

pub(crate) fn default_driver() -> String {
    "570.00".to_owned()
}

pub(crate) fn default_name() -> String {
    "Fake H100".to_owned()
}

pub(crate) fn default_cc() -> [c_int; 2] {
    [9, 0]
}

pub(crate) fn default_pci() -> String {
    "00000000:01:00.0".to_owned()
}

/// How many times the library was initialised and not yet shut down.
pub(crate) static INITS: Mutex<u32> = Mutex::new(0);
/// The UUIDs that handles were given out for: a handle is a position here, plus one.
pub(crate) static HANDLES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The event sets, each with the UUIDs registered with it; and how many there ever were.
pub(crate) static SETS: Mutex<(usize, BTreeMap<usize, BTreeSet<String>>)> = Mutex::new((0, BTreeMap::new()));
/// The events that were delivered.
pub(crate) static DELIVERED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn handle_of(uuid: &str) -> Handle {
    let mut handles = lock(&HANDLES);
    let at = handles.iter().position(|seen| seen == uuid).unwrap_or_else(|| {
        handles.push(uuid.to_owned());
        handles.len() - 1
    });
    ptr::without_provenance_mut(at + 1)
}

pub(crate) fn uuid_of(handle: Handle) -> Result<String, Code> {
    let at = handle.addr().checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    lock(&HANDLES).get(at).cloned().ok_or(INVALID_ARGUMENT)
}

/// The scenario's file: this library's own, found by where its code is mapped, with `.json` after it.
pub(crate) fn scenario_path() -> Option<PathBuf> {
    let own = scenario_path as *const () as usize;
    fs::read_to_string("/proc/self/maps").ok()?.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        let path = rest.get(rest.find('/')?..)?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        (from..to).contains(&own).then(|| PathBuf::from(format!("{path}.json")))
    })
}

pub(crate) fn read() -> Result<Scenario, Code> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = PATH.get_or_init(scenario_path).as_ref().ok_or(UNKNOWN)?;
    let text = fs::read(path).map_err(|_| UNKNOWN)?;
    serde_json::from_slice(&text).map_err(|_| UNKNOWN)
}

pub(crate) fn world() -> Result<Scenario, Code> {
    let inits = *lock(&INITS);
    if inits == 0 { Err(UNINITIALIZED) } else { read() }
}

/// A device of the scenario: a GPU, or a MIG device of it.
pub(crate) struct Found<'a> {
    pub(crate) world: &'a Scenario,
    pub(crate) gpu: &'a Device,
    pub(crate) mig: Option<&'a Mig>,
    /// Its position among the GPUs, or among the GPU's MIG devices.
    pub(crate) index: usize,
}

impl Scenario {
    pub(crate) fn present(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|gpu| !gpu.gone)
    }

    pub(crate) fn at(&self, index: usize) -> Option<Found<'_>> {
        let gpu = self.present().nth(index)?;
        Some(Found { world: self, gpu, mig: None, index })
    }

    pub(crate) fn find(&self, uuid: &str) -> Option<Found<'_>> {
        self.present().enumerate().find_map(|(index, gpu)| {
            if gpu.uuid == uuid {
                return Some(Found { world: self, gpu, mig: None, index });
            }
            let (index, mig) = gpu.mig.iter().flatten().enumerate().find(|(_, mig)| mig.uuid == uuid)?;
            Some(Found { world: self, gpu, mig: Some(mig), index })
        })
    }
}

impl Found<'_> {
    pub(crate) fn uuid(&self) -> &str {
        match self.mig {
            Some(mig) => &mig.uuid,
            None => &self.gpu.uuid,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self.mig {
            Some(mig) => &mig.name,
            None => &self.gpu.name,
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        let (total, used, reserved) = match self.mig {
            Some(mig) => (mig.memory_total, mig.memory_used, 0),
            None => (self.gpu.memory_total, self.gpu.memory_used, self.gpu.memory_reserved),
        };
        Memory { total, free: total.saturating_sub(used).saturating_sub(reserved), used }
    }

    pub(crate) fn pci(&self) -> PciInfo {
        let mut parts = self.gpu.pci.split([':', '.']).map(|part| u32::from_str_radix(part, 16).unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        let (domain, bus, device) = (part(), part(), part());
        PciInfo {
            bus_id_legacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
            domain,
            bus,
            device,
            pci_device_id: 0x2330_10DE,
            pci_subsystem_id: 0x16C1_10DE,
            bus_id: chars(&self.gpu.pci),
        }
    }

    /// Whether the device answers this call at all, after the time that it takes.
    pub(crate) fn admits(&self, symbol: &str) -> Answer {
        if self.gpu.slow_ms > 0 && self.gpu.slow_symbol.as_deref().is_none_or(|slow| slow == symbol) {
            thread::sleep(Duration::from_millis(self.gpu.slow_ms));
        }
        if self.gpu.error != 0 && !LOOKUPS.contains(&symbol) {
            return Err(self.gpu.error);
        }
        let refused = self.gpu.not_supported.iter().any(|name| name == symbol);
        if refused || (self.mig.is_some() && !MIG_ANSWERS.contains(&symbol)) {
            return Err(NOT_SUPPORTED);
        }
        Ok(())
    }
}
