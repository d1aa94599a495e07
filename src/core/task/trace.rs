//! What happened, in order: the events that a recorded run consists of. Two runs with equal traces did the same.

use serde::{Deserialize, Serialize};

use crate::core::id::{ClientId, Epoch, TaskSeq};
use crate::core::task::error::ErrorCode;
use crate::core::task::{FinishReason, Priority};
use crate::core::units::Timestamp;

/// One step of a task, or of the tree that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TraceKind {
    /// A task was handed in.
    Submitted {
        /// Which.
        seq: TaskSeq,
    },
    /// Its queue took it in, for the first time or again.
    Queued {
        /// Which.
        seq: TaskSeq,
        /// The queue's pool, by position.
        pool: u16,
        /// The task's class.
        class: Priority,
        /// Its client.
        client: ClientId,
        /// Whether it belongs to a conversation.
        in_session: bool,
    },
    /// Its queue handed it towards a worker.
    Assigned {
        /// Which.
        seq: TaskSeq,
        /// The epoch that begins with it.
        epoch: Epoch,
    },
    /// It is on its way back to its queue.
    Returned {
        /// Which.
        seq: TaskSeq,
    },
    /// A worker began it.
    Begun {
        /// Which.
        seq: TaskSeq,
        /// In which pool, by position.
        pool: u16,
        /// On which of its replicas.
        replica: u16,
        /// Which of the pool's models, by the number of its reload.
        generation: u64,
    },
    /// A token was appended.
    Token {
        /// Whose.
        seq: TaskSeq,
        /// Its index in the text, from 0.
        index: u32,
    },
    /// It ended as it should, or as its client wished.
    Ended {
        /// Which.
        seq: TaskSeq,
        /// Why.
        reason: FinishReason,
    },
    /// It failed.
    Failed {
        /// Which.
        seq: TaskSeq,
        /// Why.
        code: ErrorCode,
    },
    /// The attempt that it had was none: its engine took nothing, or turns everybody down.
    Forgiven {
        /// Which.
        seq: TaskSeq,
    },
    /// A replica gets no task before a moment: attempts failed on it, or it said that it is busy.
    Ejected {
        /// In which pool, by position.
        pool: u16,
        /// Which of its replicas.
        replica: u16,
        /// The earliest moment.
        until: Timestamp,
        /// Tasks that it may run at once from then on, until one shows that it works.
        allowed: u32,
    },
    /// A replica's engine is started anew: what an earlier one did says nothing of it.
    Renewed {
        /// In which pool, by position.
        pool: u16,
        /// Which of its replicas.
        replica: u16,
    },
    /// A pool serves another model from here on.
    ChangedOver {
        /// Which, by position.
        pool: u16,
        /// The number of the model's reload.
        generation: u64,
    },
    /// An actor was started, for the first time or again.
    ActorStarted {
        /// Its role and position, such as `worker/1`.
        actor: String,
    },
    /// An actor died.
    ActorDied {
        /// Its role and position.
        actor: String,
    },
}

/// An event and its moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// When, on the runtime's clock.
    pub at: Timestamp,
    /// What.
    pub kind: TraceKind,
}
