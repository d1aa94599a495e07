//! Ended tasks that are forgotten and still read: what they hold is bounded, and by client.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::core::admission::share::Share;
use crate::core::id::ClientId;

/// Who reads a task's log.
#[derive(Default)]
pub(in crate::actors) struct Readership {
    pub(in crate::actors) streams: AtomicU32,
    /// The room that the task has behind its being forgotten, while it is still read; `None` in it is none.
    lingers: OnceLock<Option<Lingering>>,
}

/// A reader is cut off: its task is forgotten, and has no room any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl Cut {
    /// Why, for whoever read.
    #[cfg(any(feature = "service", feature = "cluster"))]
    pub(crate) const WHY: &str =
        "the task is forgotten, and streams of this client's take all that they may of forgotten tasks";
}

/// Room for what is read behind its being forgotten. A short lock for each such task.
#[derive(Clone)]
pub(in crate::actors) struct LingeringRoom(Arc<Mutex<Share>>);

/// The room of one task; given back when its last reader is gone.
pub(in crate::actors) struct Lingering {
    room: LingeringRoom,
    client: ClientId,
    bytes: u64,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.room.0.lock().give(&self.client, self.bytes);
    }
}

impl Readership {
    /// Whether its readers are cut off: the task was forgotten, and there is no room for it any more.
    pub(in crate::actors) fn is_cut(&self) -> bool {
        self.lingers.get().is_some_and(Option::is_none)
    }
}

impl LingeringRoom {
    pub(in crate::actors) fn new(bytes_max: u64) -> Self {
        LingeringRoom(Arc::new(Mutex::new(Share::new(bytes_max))))
    }

    #[cfg(test)]
    pub(in crate::actors) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Notes that a task is forgotten. One that is still read goes on being counted; without room for it its readers
    /// are cut off. Returns whether they are.
    pub(in crate::actors) fn take_over(&self, readership: &Readership, client: &ClientId, bytes: u64) -> bool {
        if readership.streams.load(Relaxed) == 0 {
            return false;
        }
        let has_room = self.0.lock().try_take(client, bytes, 0);
        let lingering = has_room.then(|| Lingering { room: self.clone(), client: client.clone(), bytes });
        readership.lingers.set(lingering).is_ok() && !has_room
    }
}
