//! What happens in a runtime, for a host program that wants to hear of it: ends of tasks, attempts that were lost,
//! deaths of workers.

use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::actors::task::view::TaskView;
use crate::core::id::{ClientId, PoolId, ReplicaId, TaskId};
use crate::core::task::failure::Cause;
use crate::core::text::line::Message;

/// Events that are kept for a subscriber that is slow.
const EVENTS_KEPT: usize = 1_024;

/// Something that has happened in a runtime.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RuntimeEvent {
    /// An accepted task has ended, however it did.
    TaskEnded {
        /// It, as it stands.
        task: Box<TaskView>,
    },
    /// An attempt of a task was lost, and the task runs again.
    TaskResumed {
        /// The task.
        task_id: TaskId,
        /// Its client.
        client_id: ClientId,
        /// The pool whose attempt was lost.
        pool_id: PoolId,
    },
    /// A worker has died, and is started again by its rule.
    WorkerDied {
        /// Its place.
        replica_id: ReplicaId,
        /// Of what.
        cause: Cause,
        /// In words: those of the engine, if it had any.
        message: Message,
    },
    /// The subscriber was too slow: so many events are lost to it.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Where events go. Without a subscriber none is made.
pub(crate) struct Events(broadcast::Sender<RuntimeEvent>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(EVENTS_KEPT))
    }
}

impl Events {
    /// Tells the subscribers, if there are any.
    pub(crate) fn tell(&self, event: impl FnOnce() -> RuntimeEvent) {
        if self.0.receiver_count() > 0 {
            let _ = self.0.send(event()); // The last one has just gone.
        }
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription(self.0.subscribe())
    }
}

/// What happens in a runtime from the subscription on. The newest 1,024 events are kept for one that reads slowly; when
/// more are lost to it, [`RuntimeEvent::Missed`] says how many.
#[derive(Debug)]
pub struct Subscription(broadcast::Receiver<RuntimeEvent>);

impl Subscription {
    /// The next event; `None` when the runtime is gone.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<RuntimeEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => Some(RuntimeEvent::Missed { events }),
            Err(RecvError::Closed) => None,
        }
    }
}
