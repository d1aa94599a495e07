//! What a worker is told.

use std::sync::Arc;

use crate::actors::pool::lease::{Assignment, SlotLease};
use crate::core::text::line::Line;
use crate::core::units::Timestamp;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, EngineInfo};

/// What the actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum WorkerMsg {
    /// Run a task in this slot.
    Run { assignment: Assignment, lease: SlotLease },
    // ---- from its own attempts and background tasks
    /// Get an engine: adopt the one that is there, or make one.
    Prepare,
    /// An engine has been made, or could not be.
    Made(Result<Arc<dyn DynEngine>, EngineError>),
    /// The engine has been loaded, or could not be.
    Preloaded(Result<EngineInfo, EngineError>),
    /// An engine of an earlier life has answered, or has not.
    Adopted(Result<(), EngineError>),
    /// An attempt has lost its engine.
    EngineSuspected(EngineError),
    /// A suspected engine has answered, or has not.
    Probed(Result<(), EngineError>),
    /// The replica gets no task before this moment.
    Ejected { until: Timestamp },
    /// A slot of the engine is not left, and other tasks still run.
    EngineStuck(EngineError),
    /// That slot is free after all.
    EngineUnstuck,
    /// The device that it waits for has been out for long.
    DeviceStaysDown,
    /// The engine as a whole has failed.
    EngineFailed(EngineError),
    /// What runs beside its mailbox has panicked, with this text: a bug of ours.
    SidePanicked(Line),
}
