//! The parts of what of a replica outlives its worker, by what they are about.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::actors::kit::address::Address;
use crate::actors::pool::messages::WorkerMsg;
use crate::actors::pool::slots::{KvReservations, SlotTable};
use crate::actors::task::event_log::ReplicaIdentity;
use crate::core::id::DeviceMask;
use crate::core::pool::lifecycle::ReplicaState;
use crate::core::pool::memory::SlotEstimate;
use crate::core::pool::self_test::SelfTest;
use crate::core::task::failure::Cause;
use crate::core::text::line::Message;
use crate::core::units::Timestamp;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Teardown, Telemetry};

/// Where it may run.
pub(crate) struct Placement {
    /// The devices that it uses.
    pub(crate) mask: DeviceMask,
    /// The CPUs that its devices are near to; empty for any.
    pub(crate) cpus: Arc<[u32]>,
    /// Why it cannot be served on these devices, if so.
    pub(crate) fault: Option<String>,
}

/// What it can run at once.
pub(crate) struct ReplicaCapacity {
    pub(crate) slots: SlotTable,
    pub(crate) kv: KvReservations,
    /// Slots that it is good for. Written by whoever learns that its device ran out of memory, and by its worker as
    /// time goes by.
    pub(crate) estimate: Mutex<SlotEstimate>,
    /// Slots that its engine was started for.
    pub(crate) slots_started: AtomicU32,
}

/// How its worker does.
pub(crate) struct ReplicaLife {
    pub(crate) worker: Address<WorkerMsg>,
    /// Where it stands. Written by its worker while that lives, by the pool's supervisor when it has died.
    pub(in crate::actors) state: Mutex<ReplicaState>,
    /// Since when the worker has been Ready in its current life. Written by it, taken by its supervisor.
    pub(crate) ready_since: Mutex<Option<Timestamp>>,
    /// Why the worker's current life is about to end, as far as it knows. Written by it; each life has its own, which
    /// its attempts hold too.
    pub(crate) failing: Mutex<Arc<OnceLock<EngineError>>>,
    /// What the last life died of. Written by the supervisor.
    pub(crate) last_death: Mutex<Option<(Timestamp, Cause, Message)>>,
}

/// The engine that it has, and what that has shown.
pub(crate) struct LoadedEngine {
    /// The engine of the worker's current life. A supervisor that dies takes its workers along, but the engines stay,
    /// and the next workers adopt them; a worker that dies by itself has its engine discarded by its supervisor.
    pub(crate) engine: Mutex<Option<Arc<dyn DynEngine>>>,
    /// What earlier engines have left that is still ending.
    pub(crate) site: Teardown,
    /// What the engine said of itself when it was loaded.
    pub(crate) identity: Mutex<Option<Arc<ReplicaIdentity>>>,
    /// The processes of its last engine: their memory must be free before the next is loaded.
    pub(crate) last_processes: Mutex<Vec<u32>>,
    /// What the newest load has shown; `None` before the first, and without a self-test.
    pub(crate) self_test: Mutex<Option<SelfTest>>,
}

/// What was measured of it last. Written by its worker.
pub(crate) struct Measured {
    pub(crate) telemetry: Mutex<Telemetry>,
    /// Memory that is free on its fullest device, in bytes; 0 when unknown. Written by its worker.
    pub(crate) vram_free: AtomicU64,
    /// Resident memory of its engine's processes, in bytes; 0 when it has none. Written by its worker.
    pub(crate) ram_used: AtomicU64,
}

/// What has happened on it since the start, in numbers.
pub(crate) struct ReplicaCounters {
    pub(crate) started: [AtomicU64; 2],
    pub(crate) tokens_in: AtomicU64,
    pub(crate) tokens_out: AtomicU64,
    pub(crate) preload_successes: AtomicU64,
    pub(crate) preload_failures: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Deaths of its workers, and attempts that failed on it, by [`Cause::ALL`].
    pub(crate) deaths: [AtomicU64; Cause::ALL.len()],
    pub(crate) attempts_failed: [AtomicU64; Cause::ALL.len()],
    /// Runs whose engine did not confirm in time that it had stopped.
    pub(crate) stop_timeouts: AtomicU64,
    /// Slots whose engine has still not left them behind such a run. Written by their attempts.
    pub(crate) quarantined: AtomicU32,
    /// Slots that the engine said were busy while no task of ours had them. Must stay 0.
    pub(crate) slot_leaks: AtomicU64,
}
