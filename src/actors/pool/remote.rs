//! A pool of another node, as a pool of this one: what is known of it here.
//!
//! Of its slots here some would run a task at once. What is beyond them waits at its node, in the one order of its
//! pool: such a place is of use only while none in the whole set is better. So it is kept back then, and a task that
//! waits there is recalled when a better one comes.

#[cfg(feature = "cluster")]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst, fence};

#[cfg(feature = "cluster")]
use tokio::sync::Semaphore;

use crate::actors::pool::messages::PoolManagerMsg;
#[cfg(feature = "cluster")]
use crate::actors::pool::parts::RemotePool;
use crate::actors::pool::shared::PoolShared;
use crate::core::cluster::node::NodeName;
use crate::core::id::PoolId;

impl PoolShared {
    /// Whether its engine is another node's pool.
    pub(crate) fn is_remote(&self) -> bool {
        self.set.remote.get().is_some()
    }

    /// The node whose pool its engine is, if it is another's.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        self.set.remote.get().map(|remote| &remote.node)
    }

    /// The name by which clients and keys are allowed to use it: a pool of another node goes by its name there.
    pub(crate) fn allowed_as(&self) -> &PoolId {
        self.set.remote.get().map_or(&self.id, |remote| &remote.pool)
    }

    /// Free slots in which a task runs at once.
    pub(crate) fn immediate_slots(&self) -> u32 {
        let free = self.slots_free();
        let Some(remote) = self.set.remote.get() else { return free };
        free.min(remote.at_once.load(Relaxed).saturating_sub(self.slots_used()))
    }

    /// Those of its free slots that may be used now, of which so many are lent: what would wait at its node is kept
    /// back as long as a peer has something better.
    pub(in crate::actors) fn usable(&self, lent: u32) -> u32 {
        let unlent = self.slots_free().saturating_sub(lent);
        if !self.is_remote() || unlent == 0 {
            return unlent;
        }
        let at_once = self.immediate_slots().saturating_sub(lent).min(unlent);
        let has_places = |other: &PoolShared| {
            other.is_idle() && other.immediate_slots() > 0 && !other.set.local_preference.declined.load(Relaxed)
        };
        let is_better = |other: &PoolShared| {
            // It is told that somebody waits, and looked at again: either it is seen here that its places are gone, or
            // there that they were waited for.
            has_places(other) && {
                other.set.local_preference.withheld_for.store(true, SeqCst);
                fence(SeqCst);
                has_places(other)
            }
        };
        if at_once < unlent && self.peers().any(|other| is_better(&other)) { at_once } else { unlent }
    }

    /// Tells peers that have kept places back for this pool's when these are no better any more. For its manager,
    /// behind whatever it has done.
    pub(in crate::actors) fn release_withheld_slots(&self, declined: bool) {
        self.set.local_preference.declined.store(declined, Relaxed);
        fence(SeqCst);
        if self.set.local_preference.withheld_for.load(SeqCst)
            && (declined || !self.is_idle() || self.immediate_slots() == 0)
        {
            self.set.local_preference.withheld_for.store(false, SeqCst);
            // Whoever is no peer any more was one.
            for other in self.others().filter(|other| other.is_remote()) {
                other.actors.manager.cast(PoolManagerMsg::Reconsider); // Nobody there: the next manager offers everything anew.
            }
        }
    }

    /// Tasks of this node's that wait at its node.
    pub(crate) fn queued_remotely(&self) -> u32 {
        self.set.remote.get().map_or(0, |remote| self.slots_used().saturating_sub(remote.at_once.load(Relaxed)))
    }

    /// Recalls up to so many tasks that wait at its node. Returns how many will come.
    pub(in crate::actors) fn recall(&self, most: u32) -> u32 {
        let Some(remote) = self.set.remote.get() else { return 0 };
        let (wanted, under_way) = (most.min(self.queued_remotely()) as usize, remote.recalls.available_permits());
        remote.recalls.add_permits(wanted.saturating_sub(under_way));
        wanted as u32
    }
}

#[cfg(feature = "cluster")]
impl PoolShared {
    /// Notes how many of its tasks its node runs at once. Returns whether that is another number.
    pub(crate) fn set_at_once(&self, tasks: u32) -> bool {
        self.set.remote.get().is_some_and(|remote| {
            if self.slots_used() <= tasks {
                remote.recalls.forget_permits(Semaphore::MAX_PERMITS); // Nobody waits there who could be meant.
            }
            remote.at_once.swap(tasks, Relaxed) != tasks
        })
    }

    /// Waits until a task that waits at its node is to come back.
    ///
    /// # Cancel safety
    /// Dropped, it recalls nobody.
    pub(crate) async fn until_recalled(&self) {
        // It is never closed.
        if let Some(remote) = self.set.remote.get()
            && let Ok(permit) = remote.recalls.acquire().await
        {
            return permit.forget();
        }
        std::future::pending().await
    }

    /// Its engine is this pool of this node.
    pub(crate) fn set_node(&self, node: NodeName, pool: PoolId) {
        let (at_once, recalls) = (AtomicU32::new(0), Semaphore::new(0));
        let _ = self.set.remote.set(RemotePool { node, pool, at_once, recalls }); // Once, by whoever made it.
    }
}
