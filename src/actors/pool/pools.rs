//! The pools of a runtime: those that serve, in the order of the configuration, and those that leave and finish what
//! they have.
//!
//! Written by the public handle, when the configuration changes, and by a pool's supervisor, when the pool has left.
//! Everybody else takes a table as of now. A pool's number is its name inside the runtime, and is not given to another
//! while the runtime lives.
//!
//! Spec: ORCH-3031.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::RwLock;

use crate::actors::pool::shared::PoolShared;

/// The pools as of some moment.
#[derive(Default)]
pub(crate) struct Table {
    /// In the order of the configuration.
    pub(crate) serving: Vec<Arc<PoolShared>>,
    /// Replaced or removed, and not through with their tasks yet.
    pub(crate) leaving: Vec<Arc<PoolShared>>,
}

impl Table {
    /// Those that serve, then those that leave.
    pub(crate) fn every(&self) -> impl Iterator<Item = &Arc<PoolShared>> {
        self.serving.iter().chain(&self.leaving)
    }

    /// The pool of this number.
    pub(crate) fn get(&self, number: u16) -> Option<&Arc<PoolShared>> {
        self.every().find(|pool| pool.position == number)
    }
}

/// The pools of a runtime.
pub(crate) struct Pools {
    /// A short lock, read once for each task at admission.
    table: RwLock<Arc<Table>>,
    /// Held while a change is prepared and made: one at a time. The number that the next new pool gets.
    next: parking_lot::Mutex<u32>,
    /// The runtime is being stopped: nothing changes any more.
    is_stopping: AtomicBool,
}

impl Pools {
    /// The pools that a runtime starts with, numbered from 0.
    pub(crate) fn new(serving: Vec<Arc<PoolShared>>) -> Self {
        let next = parking_lot::Mutex::new(serving.len() as u32);
        let pools = Pools { table: RwLock::default(), next, is_stopping: AtomicBool::new(false) };
        pools.set(Table { serving, leaving: Vec::new() });
        pools
    }

    /// The pools as of now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Holds up every other change until the guard is dropped.
    pub(crate) fn begin_change(&self) -> parking_lot::MutexGuard<'_, u32> {
        self.next.lock()
    }

    /// Notes that the runtime is being stopped; a change that is being made is waited for.
    pub(crate) fn stop(&self) {
        let _change = self.next.lock();
        self.is_stopping.store(true, SeqCst);
    }

    /// Whether the runtime is being stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    /// Puts another table in place, and tells each pool which others there are. For whoever holds the guard of
    /// `begin_change`.
    pub(crate) fn set(&self, table: Table) {
        let table = Arc::new(table);
        table.every().for_each(|pool| pool.meet(table.every()));
        *self.table.write() = table;
    }

    /// A pool that was leaving has left.
    pub(crate) fn forget(&self, number: u16) {
        let _one_at_a_time = self.next.lock();
        let now = self.table();
        let leaving = now.leaving.iter().filter(|pool| pool.position != number).cloned().collect();
        self.set(Table { serving: now.serving.clone(), leaving });
        for pool in now.every() {
            pool.life.state_changed.notify_waiters(); // Some may wait for its devices.
            pool.nudge_manager(); // Some may have lent it slots.
        }
    }
}
