//! Every decision of the runtime, as values and pure functions.
//!
//! Nothing here reads a clock, draws a random number, waits, logs or knows an actor: `now` and chance are arguments,
//! so each rule can be tested alone and gives the same answer on every machine.

pub mod admission;
mod chain;
mod class;
mod cost;
pub mod device;
pub mod dividing;
pub mod end;
pub mod error;
pub mod failure;
pub mod fairness;
pub mod full;
pub mod hash;
pub mod headroom;
pub mod health;
mod heap;
pub mod holders;
pub mod id;
pub mod journal;
pub mod kept;
pub mod lifecycle;
pub mod limits;
pub mod line;
pub mod line_budget;
pub mod link;
pub mod membership;
pub mod model;
pub mod node;
pub mod objectives;
pub mod offers;
pub mod outlier;
pub mod placement;
pub mod predict;
pub mod queue;
mod ranks;
pub mod rate_limiter;
pub mod reload;
pub mod request;
pub mod restart;
pub mod resume;
pub mod rolling;
pub mod rollout;
pub mod seed;
mod session_gate;
pub mod share;
pub mod shares;
pub mod standing;
pub mod task;
pub(crate) mod texts;
pub mod trace;
pub mod traceparent;
pub mod units;
pub mod waiting_room;
#[cfg(feature = "cluster")]
pub mod wire;
pub mod workload;
pub mod xid;

pub use error::{ErrorCode, TaskError};
pub use id::{ClientId, DeviceId, DeviceMask, Epoch, PoolId, ReplicaId, SessionId, TaskId, TaskSeq};
pub use task::{Priority, TaskRequest};
pub use units::{Timestamp, Tokens};
