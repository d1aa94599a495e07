//! The words that nearly every host program needs, for `use orchestrator_core::prelude::*`.
//!
//! Without [`DynEngine`](crate::gpu::DynEngine), whose methods have the names of [`Engine`]'s: who has both in scope
//! has to say which.
//!
//! Not the crate's root: a module of it is called `core`, and a glob import of that hides the standard library's.

pub use crate::config::{Config, DeviceRef, PoolConfig, ReplicaConfig, SimConfig};
pub use crate::core::task::{FinishReason, OnDisconnect, Sampling};
pub use crate::core::{ClientId, ErrorCode, PoolId, Priority, SessionId, TaskError, TaskId, TaskRequest, Tokens};
pub use crate::env::Env;
pub use crate::gpu::{
    Blocking, BlockingEngine, BlockingJob, BlockingOutput, Engine, EngineContext, EngineError, EngineInfo,
    EngineRegistry, Finish, Job, SimEngine, Stopped, TokenOutput,
};
pub use crate::orchestrator::{Builder, Orchestrator, StartError, Submitted};
pub use crate::{Event, PoolState, RuntimeEvent, TaskStream};
