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

mod scenario;
mod structs;

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::{Duration, Instant};
use std::{ptr, thread};

use scenario::*;
use structs::*;

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
    unsafe { put(to, MemoryV2 { version, total, reserved: total - free - used, free, used }) }
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
    nvmlDeviceGetClockInfo(clock: c_uint, to: *mut c_uint) |found| match clock {
        1 => put(to, found.gpu.clock_sm.ok_or(NOT_SUPPORTED)?),
        2 => put(to, found.gpu.clock_memory.ok_or(NOT_SUPPORTED)?),
        _ => Err(NOT_SUPPORTED),
    };
    nvmlDeviceGetPerformanceState(to: *mut c_uint) |found| put(to, found.gpu.performance_state.ok_or(NOT_SUPPORTED)?);
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
