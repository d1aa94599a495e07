//! Supervised actor runtime that keeps GPUs busy, fair and honest for LLM inference.
//!
//! A host program starts an [`Orchestrator`] with one or more pools, submits [`TaskRequest`]s and reads their
//! [`TaskStream`]s. Every queue, pool manager and worker is a supervised actor; tasks and their event logs outlive all
//! of them. See `ARCHITECTURE.md` for the tree and the path of a task.
//!
//! ```
//! use orchestrator_core::{Orchestrator, TaskRequest, config::PoolConfig, gpu::SimEngine};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let orchestrator = Orchestrator::builder()
//!     .pool(PoolConfig::new("demo", "sim", "tiny"), SimEngine::new)
//!     .start()
//!     .await?;
//! let submitted = orchestrator.submit(TaskRequest::completion("The sky is").max_tokens(8).seed(7)).await?;
//! let (text, end) = submitted.stream().collect().await;
//! assert_eq!(text, " mountain quick under takes closes with, ends");
//! # assert!(end.is_some());
//! # Ok(())
//! # }
//! ```

#[cfg(panic = "abort")]
compile_error!(
    "orchestrator-core needs panics that unwind: supervision catches them, ends or resumes their tasks and starts anew what failed. \
     Take panic = \"abort\" out of the profile."
);

#[doc(hidden)]
pub mod actors;
#[cfg(any(feature = "service", feature = "cluster"))]
mod certificates;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod config;
pub mod core;
pub mod env;
pub mod gpu;
#[cfg(feature = "metrics")]
pub mod metrics;
mod orchestrator;
#[doc(hidden)]
pub mod planted;
pub mod prelude;
#[cfg(feature = "service")]
pub mod service;
mod views;

pub use actors::metrics::events::{RuntimeEvent, Subscription};
pub use actors::metrics::view::{BUCKETS_MS, LatencyView, Quantiles, Stage, StageView};
pub use actors::pool::revision::{ReloadState, ReloadView};
pub use actors::runtime::messages::SessionView;
pub use actors::runtime::stream::TaskStream;
pub use actors::task::event_log::{End, Event, EventRef, ReplicaIdentity, Started};
pub use actors::task::view::TaskView;
pub use config::{Config, ConfigError, PoolConfig};
pub use core::pool::lifecycle::{PoolState, ReplicaState};
pub use core::pool::model::{ModelChange, ModelSpec};
pub use core::pool::self_test::SelfTest;
pub use core::slo::objectives::{ObjectiveView, SloView, Window};
pub use core::task::failure::Cause;
pub use core::task::{Determinism, FinishReason, KvHint, OnDisconnect, Phase, Sampling, Workload};
pub use core::{ClientId, ErrorCode, PoolId, Priority, ReplicaId, SessionId, TaskError, TaskId, TaskRequest, Tokens};
pub use env::Env;
pub use gpu::{Engine, EngineContext, EngineError, EngineInfo, EngineRegistry, Finish, Job, Stopped, TokenOutput};
pub use orchestrator::{
    Builder, CancelOutcome, Explanation, Orchestrator, PoolConsidered, ReplicaConsidered, StartError, Submitted,
};
pub use views::{
    ClientView, ConfigGeneration, DeathView, DeviceView, DevicesView, FailureView, LatencyRow, OverviewView,
    PoolOverview, PoolView, ReplicaSetView, ReplicaView, RuntimeView, XidView,
};
