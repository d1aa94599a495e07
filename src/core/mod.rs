//! Every decision of the runtime, as values and pure functions.
//!
//! Nothing here reads a clock, draws a random number, waits, logs or knows an actor: `now` and chance are arguments,
//! so each rule can be tested alone and gives the same answer on every machine.

#[doc(hidden)]
pub mod admission;
mod chain;
mod class;
mod cost;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod dividing;
#[doc(hidden)]
pub mod end;
pub mod error;
pub mod failure;
#[doc(hidden)]
pub mod fairness;
#[doc(hidden)]
pub mod full;
#[doc(hidden)]
pub mod hash;
#[doc(hidden)]
pub mod headroom;
#[doc(hidden)]
pub mod health;
mod heap;
#[doc(hidden)]
pub mod id;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod kept;
pub mod lifecycle;
#[doc(hidden)]
pub mod limits;
pub mod line;
#[doc(hidden)]
pub mod line_budget;
#[doc(hidden)]
pub mod link;
#[doc(hidden)]
pub mod membership;
pub mod model;
pub mod node;
pub mod objectives;
#[doc(hidden)]
pub mod offers;
#[doc(hidden)]
pub mod outlier;
#[doc(hidden)]
pub mod placement;
#[doc(hidden)]
pub mod predict;
#[doc(hidden)]
pub mod queue;
mod ranks;
#[doc(hidden)]
pub mod rate_limiter;
#[doc(hidden)]
pub mod reload;
pub mod request;
#[doc(hidden)]
pub mod restart;
pub mod resume;
#[doc(hidden)]
pub mod rolling;
pub mod rollout;
pub mod seed;
mod session_gate;
#[doc(hidden)]
pub mod share;
#[doc(hidden)]
pub mod shares;
pub mod standing;
pub mod task;
pub(crate) mod texts;
pub mod trace;
pub mod traceparent;
pub mod units;
#[doc(hidden)]
pub mod waiting_room;
#[cfg(feature = "cluster")]
#[doc(hidden)]
pub mod wire;
pub mod workload;
#[doc(hidden)]
pub mod xid;

pub use error::{ErrorCode, TaskError};
pub use id::{ClientId, DeviceId, DeviceMask, Epoch, PoolId, ReplicaId, SessionId, TaskId, TaskSeq};
pub use task::{Priority, TaskRequest};
pub use units::{Timestamp, Tokens};
