//! Those who wait until there is room for their task, and the words that call them. `core::admission::waiting_room`
//! says whose turn it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::admission::waiting_room::{Ticket, WaitingRoom};
use crate::core::id::{ClientId, PoolId};
use crate::core::task::{Priority, TaskRequest, Workload};

/// What a task wants, as far as it decides where it may run: those who want the same wait for the same room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    model: Option<String>,
    engine: Option<String>,
    workload: &'static str,
    class: Priority,
    pools: Option<Arc<[PoolId]>>,
}

impl Lane {
    pub(crate) fn of(request: &TaskRequest) -> Self {
        Lane {
            model: request.model_ref.clone(),
            engine: request.engine.clone(),
            workload: match request.workload {
                Workload::Completion => "completion",
                Workload::Embedding => "embedding",
                Workload::Rerank => "rerank",
            },
            class: request.priority,
            pools: request.pools.clone(),
        }
    }
}

/// The room. Whoever frees some says so; while nobody waits that costs one load.
pub(crate) struct Room {
    waiting: Mutex<Waiting>,
    waiters: AtomicUsize,
    /// Counts the times that room was freed, so that nobody goes to wait for what has just been freed.
    freed: AtomicU64,
}

struct Waiting {
    room: WaitingRoom<Lane>,
    bells: BTreeMap<Ticket, Arc<Notify>>,
}

impl Waiting {
    fn call(&self, tickets: impl IntoIterator<Item = Ticket>) {
        tickets.into_iter().filter_map(|ticket| self.bells.get(&ticket)).for_each(|bell| bell.notify_one());
    }
}

/// A place in the room; given up when dropped.
pub(crate) struct Waiter<'a> {
    room: &'a Room,
    lane: Lane,
    ticket: Ticket,
    bell: Arc<Notify>,
}

impl Room {
    pub(crate) fn new(most: u32) -> Self {
        let waiting = Waiting { room: WaitingRoom::new(most), bells: BTreeMap::new() };
        Room { waiting: Mutex::new(waiting), waiters: AtomicUsize::new(0), freed: AtomicU64::new(0) }
    }

    /// Room was freed: a task has left a queue, or the runtime.
    pub(crate) fn free(&self) {
        // In this order: whoever goes to wait counts itself first and looks at the number then.
        self.freed.fetch_add(1, SeqCst);
        if self.waiters.load(SeqCst) > 0 {
            let mut waiting = self.waiting.lock();
            let tickets = waiting.room.on_freed();
            waiting.call(tickets);
        }
    }

    /// How often room was freed so far.
    pub(crate) fn freed(&self) -> u64 {
        self.freed.load(SeqCst)
    }

    /// Whether somebody waits for the same: a newcomer goes behind.
    pub(crate) fn is_wanted(&self, lane: &Lane) -> bool {
        self.waiters.load(SeqCst) > 0 && self.waiting.lock().room.is_wanted(lane)
    }

    /// Waits behind those who want the same; `None` when this client may have no more waiters. `seen` is what
    /// [`Room::freed`] was before the refusal: should some have been freed since, it is called at once.
    pub(crate) fn enter(&self, lane: Lane, client: &ClientId, seen: u64) -> Option<Waiter<'_>> {
        let mut waiting = self.waiting.lock();
        let ticket = waiting.room.enter(&lane, client)?;
        let bell = Arc::new(Notify::new());
        waiting.bells.insert(ticket, bell.clone());
        self.waiters.fetch_add(1, SeqCst);
        if self.freed() != seen {
            let call = waiting.room.on_freed_for(&lane);
            waiting.call(call);
        }
        Some(Waiter { room: self, lane, ticket, bell })
    }

    /// Waiters there are.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.load(SeqCst)
    }
}

impl Waiter<'_> {
    /// Waits until it is called.
    pub(crate) async fn until_called(&self) {
        self.bell.notified().await;
    }

    /// It was refused once more, and waits on.
    pub(crate) fn refused(&self) {
        let mut waiting = self.room.waiting.lock();
        let next = waiting.room.on_refused(self.ticket);
        waiting.call(next);
    }

    /// So much time has passed that there may be room, though nobody has said so.
    pub(crate) fn try_again(&self) {
        let mut waiting = self.room.waiting.lock();
        let next = waiting.room.on_freed_for(&self.lane);
        waiting.call(next);
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.room.waiting.lock();
        waiting.bells.remove(&self.ticket);
        self.room.waiters.fetch_sub(1, SeqCst);
        let next = waiting.room.on_gone(self.ticket);
        waiting.call(next);
    }
}
