//! A stand-in for NVIDIA's management library, to be loaded in its place by tests that have no GPU.
//!
//! Each copy of the library is a world of its own: it reads the file named as itself with `.json` after it, anew at
//! each call, so a test changes the world by renaming a new file over the old one. While that file cannot be read or
//! does not parse, each call answers "unknown error". The file holds `driver`, `init_error` (what initialising
//! returns, 0 being success), `devices` and `events`; a field left out has a default, an unknown one is an error.
//! The fields are those of `Scenario` and of what it holds; an event is delivered once by each loaded copy.

// A C interface is unsafe all over, its functions are documented by their originals, and it waits in real time.
#![allow(unsafe_code, missing_docs, non_snake_case, clippy::missing_safety_doc)]
#![allow(clippy::macro_metavars_in_unsafe, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, ptr, thread};

use serde::Deserialize;

pub type Code = c_uint;
pub type Handle = *mut c_void;
type Answer = Result<(), Code>;

const UNINITIALIZED: Code = 1;
const INVALID_ARGUMENT: Code = 2;
const NOT_SUPPORTED: Code = 3;
const NOT_FOUND: Code = 6;
const INSUFFICIENT_SIZE: Code = 7;
const TIMEOUT: Code = 10;
const GPU_IS_LOST: Code = 15;
const VERSION_MISMATCH: Code = 25;
const UNKNOWN: Code = 999;

const XID_EVENT: u64 = 8;
const NO_INSTANCE: c_uint = 0xFFFF_FFFF;
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// What a device with an `error` still answers.
const LOOKUPS: [&str; 6] = [
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
];

/// What the handle of a MIG device answers; everything else is not supported.
const MIG_ANSWERS: [&str; 10] = [
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
];

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Scenario {
    #[serde(default = "default_driver")]
    driver: String,
    init_error: Code,
    devices: Vec<Device>,
    events: Vec<Event>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Device {
    uuid: String,
    #[serde(default = "default_name")]
    name: String,
    memory_total: u64,
    memory_used: u64,
    #[serde(default = "default_cc")]
    cc: [c_int; 2],
    gpu_util: u32,
    mem_util: u32,
    temperature: u32,
    power_mw: u32,
    power_limit_mw: u32,
    /// The bits of the reasons for which the clocks are held down.
    throttle: u64,
    /// Where this is false, the ECC counts are not supported.
    ecc_enabled: bool,
    ecc_uncorrected: u64,
    ecc_corrected: u64,
    /// Pages to be retired, or rows to be remapped, at the next reset.
    retired_pending: bool,
    /// None: not supported.
    numa_node: Option<u32>,
    /// The words of the mask, lowest CPUs first. Empty: not supported.
    cpu_affinity: Vec<u64>,
    #[serde(default = "default_pci")]
    pci: String,
    pcie_gen: u32,
    pcie_width: u32,
    /// Whether each link is active. Empty: not supported.
    nvlinks: Vec<bool>,
    compute_processes: Vec<Process>,
    /// None: MIG is not supported. Otherwise it is on, with these devices.
    mig: Option<Vec<Mig>>,
    /// Names of functions that answer "not supported".
    not_supported: Vec<String>,
    /// What each query answers, lookups of handles and UUIDs apart; 0 is none.
    error: Code,
    /// How long each call for this device takes.
    slow_ms: u64,
    /// The one function that is slow, where not all are.
    slow_symbol: Option<String>,
    /// Not counted and not found; handles from before answer that the GPU is lost.
    gone: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mig {
    uuid: String,
    name: String,
    memory_total: u64,
    memory_used: u64,
    compute_processes: Vec<Process>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Process {
    pid: u32,
    memory: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Event {
    id: u64,
    uuid: String,
    xid: u64,
}

fn default_driver() -> String {
    "570.00".to_owned()
}

fn default_name() -> String {
    "Fake H100".to_owned()
}

fn default_cc() -> [c_int; 2] {
    [9, 0]
}

fn default_pci() -> String {
    "00000000:01:00.0".to_owned()
}

#[repr(C)]
pub struct Memory {
    pub total: u64,
    pub free: u64,
    pub used: u64,
}

#[repr(C)]
pub struct MemoryV2 {
    pub version: c_uint,
    pub total: u64,
    pub reserved: u64,
    pub free: u64,
    pub used: u64,
}

#[repr(C)]
pub struct Utilization {
    pub gpu: c_uint,
    pub memory: c_uint,
}

#[repr(C)]
pub struct PciInfo {
    pub bus_id_legacy: [c_char; 16],
    pub domain: c_uint,
    pub bus: c_uint,
    pub device: c_uint,
    pub pci_device_id: c_uint,
    pub pci_subsystem_id: c_uint,
    pub bus_id: [c_char; 32],
}

#[repr(C)]
pub struct ProcessInfo {
    pub pid: c_uint,
    pub used_gpu_memory: u64,
    pub gpu_instance: c_uint,
    pub compute_instance: c_uint,
}

#[repr(C)]
pub struct EventData {
    pub device: Handle,
    pub event_type: u64,
    pub event_data: u64,
    pub gpu_instance: c_uint,
    pub compute_instance: c_uint,
}

/// How many times the library was initialised and not yet shut down.
static INITS: Mutex<u32> = Mutex::new(0);
/// The UUIDs that handles were given out for: a handle is a position here, plus one.
static HANDLES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The event sets, each with the UUIDs registered with it; and how many there ever were.
static SETS: Mutex<(usize, BTreeMap<usize, BTreeSet<String>>)> = Mutex::new((0, BTreeMap::new()));
/// The events that were delivered.
static DELIVERED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn handle_of(uuid: &str) -> Handle {
    let mut handles = lock(&HANDLES);
    let at = handles.iter().position(|seen| seen == uuid).unwrap_or_else(|| {
        handles.push(uuid.to_owned());
        handles.len() - 1
    });
    ptr::without_provenance_mut(at + 1)
}

fn uuid_of(handle: Handle) -> Result<String, Code> {
    let at = handle.addr().checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    lock(&HANDLES).get(at).cloned().ok_or(INVALID_ARGUMENT)
}

/// The scenario's file: this library's own, found by where its code is mapped, with `.json` after it.
fn scenario_path() -> Option<PathBuf> {
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

fn read() -> Result<Scenario, Code> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = PATH.get_or_init(scenario_path).as_ref().ok_or(UNKNOWN)?;
    let text = fs::read(path).map_err(|_| UNKNOWN)?;
    serde_json::from_slice(&text).map_err(|_| UNKNOWN)
}

fn world() -> Result<Scenario, Code> {
    let inits = *lock(&INITS);
    if inits == 0 { Err(UNINITIALIZED) } else { read() }
}

/// A device of the scenario: a GPU, or a MIG device of it.
struct Found<'a> {
    world: &'a Scenario,
    gpu: &'a Device,
    mig: Option<&'a Mig>,
    /// Its position among the GPUs, or among the GPU's MIG devices.
    index: usize,
}

impl Scenario {
    fn present(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|gpu| !gpu.gone)
    }

    fn at(&self, index: usize) -> Option<Found<'_>> {
        let gpu = self.present().nth(index)?;
        Some(Found { world: self, gpu, mig: None, index })
    }

    fn find(&self, uuid: &str) -> Option<Found<'_>> {
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
    fn uuid(&self) -> &str {
        match self.mig {
            Some(mig) => &mig.uuid,
            None => &self.gpu.uuid,
        }
    }

    fn name(&self) -> &str {
        match self.mig {
            Some(mig) => &mig.name,
            None => &self.gpu.name,
        }
    }

    fn memory(&self) -> Memory {
        let (total, used) = match self.mig {
            Some(mig) => (mig.memory_total, mig.memory_used),
            None => (self.gpu.memory_total, self.gpu.memory_used),
        };
        Memory { total, free: total.saturating_sub(used), used }
    }

    fn pci(&self) -> PciInfo {
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
    fn admits(&self, symbol: &str) -> Answer {
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

fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *to = from as c_char;
    }
    out
}

fn code(answer: Answer) -> Code {
    answer.err().unwrap_or(0)
}

unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    unsafe { to.write(value) };
    Ok(())
}

unsafe fn put_text(to: *mut c_char, room: c_uint, text: &str) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= room as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

unsafe fn put_memory_v2(found: &Found<'_>, to: *mut MemoryV2) -> Answer {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let version = unsafe { (*to).version };
    if version != (size_of::<MemoryV2>() as c_uint | (2 << 24)) {
        return Err(VERSION_MISMATCH);
    }
    let Memory { total, free, used } = found.memory();
    unsafe { put(to, MemoryV2 { version, total, reserved: 0, free, used }) }
}

unsafe fn put_affinity(found: &Found<'_>, room: c_uint, to: *mut u64) -> Answer {
    let words = &found.gpu.cpu_affinity;
    if words.is_empty() {
        return Err(NOT_SUPPORTED);
    }
    if to.is_null() || room == 0 {
        return Err(INVALID_ARGUMENT);
    }
    for at in 0..room as usize {
        unsafe { to.add(at).write(words.get(at).copied().unwrap_or(0)) };
    }
    Ok(())
}

unsafe fn put_processes(found: &Found<'_>, count: *mut c_uint, to: *mut ProcessInfo) -> Answer {
    let (listed, gpu_instance, compute_instance) = match found.mig {
        Some(mig) => (&mig.compute_processes, found.index as c_uint, 0),
        None => (&found.gpu.compute_processes, NO_INSTANCE, NO_INSTANCE),
    };
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let room = unsafe { count.read() } as usize;
    unsafe { count.write(listed.len() as c_uint) };
    if listed.len() > room {
        return Err(INSUFFICIENT_SIZE);
    }
    if to.is_null() && !listed.is_empty() {
        return Err(INVALID_ARGUMENT);
    }
    for (at, process) in listed.iter().enumerate() {
        let (pid, used_gpu_memory) = (process.pid, process.memory);
        unsafe { to.add(at).write(ProcessInfo { pid, used_gpu_memory, gpu_instance, compute_instance }) };
    }
    Ok(())
}

/// Whether two devices are one GPU, are near one NUMA node, or are only in one system.
fn common_ancestor(found: &Found<'_>, other: Handle) -> Result<c_uint, Code> {
    let other = found.world.find(&uuid_of(other)?).ok_or(GPU_IS_LOST)?;
    let near = found.gpu.numa_node == other.gpu.numa_node;
    Ok(if ptr::eq(found.gpu, other.gpu) { 0 } else { 50 - 10 * c_uint::from(near) })
}

fn register(found: &Found<'_>, types: u64, set: Handle) -> Answer {
    let mut sets = lock(&SETS);
    let registered = sets.1.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
    if types & XID_EVENT != 0 {
        registered.insert(found.gpu.uuid.clone());
    }
    Ok(())
}

fn wait(set: Handle, timeout_ms: c_uint) -> Result<EventData, Code> {
    let (started, timeout) = (Instant::now(), Duration::from_millis(timeout_ms.into()));
    loop {
        let world = world()?;
        if let Some(event) = undelivered(&world, set)? {
            return Ok(EventData {
                device: handle_of(&event.uuid),
                event_type: XID_EVENT,
                event_data: event.xid,
                gpu_instance: NO_INSTANCE,
                compute_instance: NO_INSTANCE,
            });
        }
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(TIMEOUT);
        }
        thread::sleep(left.min(LOOK_AGAIN));
    }
}

fn undelivered(world: &Scenario, set: Handle) -> Result<Option<&Event>, Code> {
    let sets = lock(&SETS);
    let registered = sets.1.get(&set.addr()).ok_or(INVALID_ARGUMENT)?;
    let mut delivered = lock(&DELIVERED);
    Ok(world.events.iter().find(|event| registered.contains(&event.uuid) && delivered.insert(event.id)))
}

fn init() -> Answer {
    let scenario = read()?;
    if scenario.init_error != 0 {
        return Err(scenario.init_error);
    }
    let mut inits = lock(&INITS);
    *inits = inits.saturating_add(1);
    Ok(())
}

fn shutdown() -> Answer {
    let mut inits = lock(&INITS);
    *inits = inits.checked_sub(1).ok_or(UNINITIALIZED)?;
    Ok(())
}

unsafe fn look_up(
    symbol: &str,
    to: *mut Handle,
    missing: Code,
    find: impl FnOnce(&Scenario) -> Option<Found<'_>>,
) -> Answer {
    let world = world()?;
    let found = find(&world).ok_or(missing)?;
    found.admits(symbol)?;
    unsafe { put(to, handle_of(found.uuid())) }
}

fn query(symbol: &str, device: Handle, answer: impl FnOnce(&Found<'_>) -> Answer) -> Answer {
    let world = world()?;
    let uuid = uuid_of(device)?;
    let found = world.find(&uuid).ok_or(GPU_IS_LOST)?;
    found.admits(symbol)?;
    answer(&found)
}

/// Exports functions that are not about a device that the caller holds.
macro_rules! calls {
    ($($name:ident($($arg:ident: $type:ty),*) => $answer:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> Code {
            code($answer)
        }
    )*};
}

/// Exports functions that ask something of a device: each with the arguments after its handle.
macro_rules! queries {
    ($($name:ident($($arg:ident: $type:ty),*) |$found:ident| $answer:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: Handle, $($arg: $type),*) -> Code {
            code(query(stringify!($name), device, |$found| unsafe { $answer }))
        }
    )*};
}

calls! {
    nvmlInit_v2() => init();
    nvmlInitWithFlags(_flags: c_uint) => init();
    nvmlShutdown() => shutdown();
    nvmlSystemGetDriverVersion(to: *mut c_char, room: c_uint) =>
        world().and_then(|world| unsafe { put_text(to, room, &world.driver) });
    nvmlSystemGetNVMLVersion(to: *mut c_char, room: c_uint) =>
        world().and_then(|world| unsafe { put_text(to, room, &format!("12.{}", world.driver)) });
    nvmlDeviceGetCount_v2(to: *mut c_uint) =>
        world().and_then(|world| unsafe { put(to, world.present().count() as c_uint) });
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Handle) => unsafe {
        look_up("nvmlDeviceGetHandleByIndex_v2", to, INVALID_ARGUMENT, |world| world.at(index as usize))
    };
    nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Handle) => if uuid.is_null() {
        Err(INVALID_ARGUMENT)
    } else {
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
        unsafe { look_up("nvmlDeviceGetHandleByUUID", to, NOT_FOUND, |world| world.find(&uuid)) }
    };
    nvmlEventSetCreate(to: *mut Handle) => world().and_then(|_| {
        let mut sets = lock(&SETS);
        sets.0 += 1;
        let id = sets.0;
        sets.1.insert(id, BTreeSet::new());
        unsafe { put(to, ptr::without_provenance_mut(id)) }
    });
    nvmlDeviceRegisterEvents(device: Handle, types: u64, set: Handle) =>
        query("nvmlDeviceRegisterEvents", device, |found| register(found, types, set));
    nvmlEventSetFree(set: Handle) => lock(&SETS).1.remove(&set.addr()).map(drop).ok_or(INVALID_ARGUMENT);
    nvmlEventSetWait_v2(set: Handle, to: *mut EventData, timeout_ms: c_uint) =>
        wait(set, timeout_ms).and_then(|event| unsafe { put(to, event) });
}

queries! {
    nvmlDeviceGetUUID(to: *mut c_char, room: c_uint) |found| put_text(to, room, found.uuid());
    nvmlDeviceGetName(to: *mut c_char, room: c_uint) |found| put_text(to, room, found.name());
    nvmlDeviceGetIndex(to: *mut c_uint) |found| put(to, found.index as c_uint);
    nvmlDeviceGetMemoryInfo(to: *mut Memory) |found| put(to, found.memory());
    nvmlDeviceGetMemoryInfo_v2(to: *mut MemoryV2) |found| put_memory_v2(found, to);
    nvmlDeviceGetUtilizationRates(to: *mut Utilization) |found| match found.gpu.mig {
        Some(_) => Err(NOT_SUPPORTED),
        None => put(to, Utilization { gpu: found.gpu.gpu_util, memory: found.gpu.mem_util }),
    };
    nvmlDeviceGetTemperature(sensor: c_uint, to: *mut c_uint) |found| match sensor {
        0 => put(to, found.gpu.temperature),
        _ => Err(INVALID_ARGUMENT),
    };
    nvmlDeviceGetPowerUsage(to: *mut c_uint) |found| put(to, found.gpu.power_mw);
    nvmlDeviceGetEnforcedPowerLimit(to: *mut c_uint) |found| put(to, found.gpu.power_limit_mw);
    nvmlDeviceGetCudaComputeCapability(major: *mut c_int, minor: *mut c_int) |found| {
        let [to_major, to_minor] = found.gpu.cc;
        put(major, to_major).and(put(minor, to_minor))
    };
    nvmlDeviceGetEccMode(current: *mut c_uint, pending: *mut c_uint) |found| {
        let on = c_uint::from(found.gpu.ecc_enabled);
        put(current, on).and(put(pending, on))
    };
    nvmlDeviceGetTotalEccErrors(error: c_uint, counter: c_uint, to: *mut u64) |found| match (error, counter) {
        _ if !found.gpu.ecc_enabled => Err(NOT_SUPPORTED),
        (0, 0 | 1) => put(to, found.gpu.ecc_corrected),
        (1, 0 | 1) => put(to, found.gpu.ecc_uncorrected),
        _ => Err(INVALID_ARGUMENT),
    };
    nvmlDeviceGetRetiredPagesPendingStatus(to: *mut c_uint) |found| put(to, c_uint::from(found.gpu.retired_pending));
    nvmlDeviceGetRemappedRows(mild: *mut c_uint, lost: *mut c_uint, pending: *mut c_uint, failed: *mut c_uint) |found| {
        put(mild, 0).and(put(lost, 0)).and(put(failed, 0))?;
        put(pending, c_uint::from(found.gpu.retired_pending))
    };
    nvmlDeviceGetCurrentClocksThrottleReasons(to: *mut u64) |found| put(to, found.gpu.throttle);
    nvmlDeviceGetCurrentClocksEventReasons(to: *mut u64) |found| put(to, found.gpu.throttle);
    nvmlDeviceGetNumaNodeId(to: *mut c_uint) |found| put(to, found.gpu.numa_node.ok_or(NOT_SUPPORTED)?);
    nvmlDeviceGetCpuAffinity(room: c_uint, to: *mut u64) |found| put_affinity(found, room, to);
    nvmlDeviceGetPciInfo_v3(to: *mut PciInfo) |found| put(to, found.pci());
    nvmlDeviceGetCurrPcieLinkGeneration(to: *mut c_uint) |found| put(to, found.gpu.pcie_gen);
    nvmlDeviceGetCurrPcieLinkWidth(to: *mut c_uint) |found| put(to, found.gpu.pcie_width);
    nvmlDeviceGetNvLinkState(link: c_uint, to: *mut c_uint) |found| match found.gpu.nvlinks.get(link as usize) {
        Some(active) => put(to, c_uint::from(*active)),
        None if found.gpu.nvlinks.is_empty() => Err(NOT_SUPPORTED),
        None => Err(INVALID_ARGUMENT),
    };
    nvmlDeviceGetTopologyCommonAncestor(other: Handle, to: *mut c_uint) |found| put(to, common_ancestor(found, other)?);
    nvmlDeviceGetComputeRunningProcesses_v3(count: *mut c_uint, to: *mut ProcessInfo) |found|
        put_processes(found, count, to);
    nvmlDeviceGetComputeRunningProcesses_v2(count: *mut c_uint, to: *mut ProcessInfo) |found|
        put_processes(found, count, to);
    nvmlDeviceGetMigMode(current: *mut c_uint, pending: *mut c_uint) |found| match found.gpu.mig {
        Some(_) => put(current, 1).and(put(pending, 1)),
        None => Err(NOT_SUPPORTED),
    };
    nvmlDeviceGetMaxMigDeviceCount(to: *mut c_uint) |found| put(to, if found.gpu.mig.is_some() { 7 } else { 0 });
    nvmlDeviceGetMigDeviceHandleByIndex(index: c_uint, to: *mut Handle) |found| {
        let slices = found.gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        put(to, handle_of(&slices.get(index as usize).ok_or(NOT_FOUND)?.uuid))
    };
    nvmlDeviceIsMigDeviceHandle(to: *mut c_uint) |found| put(to, c_uint::from(found.mig.is_some()));
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle(to: *mut Handle) |found| match found.mig {
        Some(_) => put(to, handle_of(&found.gpu.uuid)),
        None => Err(INVALID_ARGUMENT),
    };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(result: Code) -> *const c_char {
    let text = match result {
        0 => c"Success",
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        TIMEOUT => c"Timeout",
        GPU_IS_LOST => c"GPU is lost",
        16 => c"GPU requires reset",
        VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
