//! Ends a task because somebody wants it, or because nobody does any more.
//!
//! A task whose client asked for it is cancelled when its last reader is gone and none has come back within the
//! runtime's `disconnect_grace_ms`. A task that nobody ever read is left alone: its client may come for the result.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::actors::pool::messages::QueueMsg;
use crate::actors::runtime::RuntimeShared;
use crate::actors::task::record::TaskRecord;
use crate::core::task::{OnDisconnect, Terminal};

/// Seals first and tells the holder second; whoever comes late finds the seal. Returns whether it had not ended yet.
pub(crate) fn cancel(runtime: &RuntimeShared, record: &TaskRecord) -> bool {
    let sealed = runtime.ledger.seal(record, None, Terminal::CANCELED).is_ok();
    // Read behind the seal: before it, the task could still be routed and queued.
    if let (true, Some(pool)) = (sealed, record.pool()) {
        pool.actors.queue.cast(QueueMsg::Withdraw { seq: record.seq }); // Lost: a new queue takes only what is not sealed.
    }
    sealed
}

/// One reader of a task. Dropped as the last one, it lets the task go after a while.
pub(crate) struct ReaderGuard {
    record: Arc<TaskRecord>,
    runtime: Weak<RuntimeShared>,
}

impl ReaderGuard {
    /// Counts a reader in; `None` for a task that goes on without any.
    pub(crate) fn new(record: &Arc<TaskRecord>, runtime: &Arc<RuntimeShared>) -> Option<Self> {
        if record.request.on_disconnect == OnDisconnect::Keep {
            return None;
        }
        record.reader_comes();
        Some(ReaderGuard { record: record.clone(), runtime: Arc::downgrade(runtime) })
    }
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        let (Some(visits), Some(runtime)) = (self.record.reader_leaves(), self.runtime.upgrade()) else { return };
        // Outside of a tokio runtime nobody could wait: the task goes on, and ends as if it had been kept.
        let Ok(tokio) = tokio::runtime::Handle::try_current() else { return };
        let (record, grace) = (self.record.clone(), Duration::from_millis(runtime.config().disconnect_grace_ms));
        let runtime = self.runtime.clone(); // Nothing that waits keeps a runtime alive.
        tokio.spawn(async move {
            // A timer of nothing would still wait for the next millisecond.
            if !grace.is_zero() {
                tokio::time::sleep(grace).await;
            }
            if let (Some(runtime), true) = (runtime.upgrade(), record.abandon_if_unread_since(visits)) {
                cancel(&runtime, &record);
            }
        });
    }
}
