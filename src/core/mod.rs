//! Every decision of the runtime, as values and pure functions.
//!
//! Nothing here reads a clock, draws a random number, waits, logs or knows an actor: `now` and chance are arguments,
//! so each rule can be tested alone and gives the same answer on every machine.

#[doc(hidden)]
pub mod admission;
#[doc(hidden)]
pub mod cluster;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod fairness;
#[doc(hidden)]
pub mod pool;
#[doc(hidden)]
pub mod queue;
#[doc(hidden)]
pub mod slo;
pub mod task;
#[doc(hidden)]
pub mod text;

pub mod id;
pub mod units;

#[doc(inline)]
pub use cluster::node;
pub use id::{ClientId, DeviceId, DeviceMask, Epoch, PoolId, ReplicaId, SessionId, TaskId, TaskSeq};
#[doc(inline)]
pub use pool::{lifecycle, model, rollout};
#[doc(inline)]
pub use queue::position;
#[doc(inline)]
pub use slo::objectives;
pub use task::error::{ErrorCode, TaskError};
pub use task::{Priority, TaskRequest};
#[doc(inline)]
pub use task::{error, failure, request, resume, seed, trace, traceparent, workload};
#[doc(inline)]
pub use text::line;
pub use units::{Timestamp, Tokens};

/// Entries up to which a machine's invariants are checked behind each change in debug builds: a check scans them all.
const CHECKED_MAX: usize = 64;

/// Checks a machine of so many entries behind a change, in debug builds.
pub(crate) fn check(entries: usize, invariants: impl FnOnce()) {
    if cfg!(debug_assertions) && entries <= CHECKED_MAX {
        invariants();
    }
}
