//! The guardian above the root: starts it again when it dies, and leaves nothing behind when it cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use ractor::{Actor, ActorRef, SpawnErr};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::actors::root::{Root, RootMsg};
use crate::actors::runtime::RuntimeShared;
use crate::actors::supervise::ROOT;
use crate::core::error::ErrorCode;
use crate::core::lifecycle::Intent;
use crate::core::restart::{Decision, RestartHistory};
use crate::core::task::Terminal;

/// The root and its guardian; ends with the last handle.
pub(super) struct Life {
    runtime: Arc<RuntimeShared>,
    pub(super) root: Arc<Mutex<Option<ActorRef<RootMsg>>>>,
    guardian: JoinHandle<()>,
    pub(super) ended: Arc<Ended>,
}

/// Set when nothing will be started again.
#[derive(Default)]
pub(super) struct Ended {
    flag: AtomicBool,
    changed: Notify,
}

impl Ended {
    fn set(&self) {
        self.flag.store(true, SeqCst);
        self.changed.notify_waiters();
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag.load(SeqCst)
    }

    pub(super) async fn wait(&self) {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable(); // Before the look, so that the change is not missed.
        if !self.is_set() {
            changed.await;
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.guardian.abort();
        end_everything(&self.runtime);
        self.ended.set();
        if let Some(root) = self.root.lock().take() {
            root.kill();
        }
    }
}

impl Life {
    pub(super) async fn start(runtime: Arc<RuntimeShared>) -> Result<Life, SpawnErr> {
        let (root, mut handle) = Actor::spawn(None, Root, runtime.clone()).await?;
        runtime.root.publish(root.clone());
        let current = Arc::new(Mutex::new(Some(root)));
        let (place, shared) = (current.clone(), runtime.clone());
        let ended = Arc::new(Ended::default());
        let announce = ended.clone();
        // Not detached: the handle belongs to `Life`, which aborts it.
        let guardian = tokio::spawn(async move {
            let mut history = RestartHistory::new(ROOT);
            history.on_healthy(runtime.env.now());
            loop {
                let _ = handle.await; // However it ended, it has.
                let stopping = runtime.pools.is_stopping()
                    || runtime.pools.table().every().all(|pool| pool.intent() == Intent::Stop);
                let decision = history.on_exit(runtime.env.now(), runtime.env.random());
                if stopping || decision == Decision::Escalate {
                    break;
                }
                match Actor::spawn(None, Root, runtime.clone()).await {
                    Ok((root, next)) => {
                        runtime.root.publish(root.clone());
                        let _ = root.cast(RootMsg::PoolsChanged); // What changed while nobody could be told.
                        (*place.lock(), handle) = (Some(root), next);
                        history.on_started();
                        history.on_healthy(runtime.env.now());
                    }
                    Err(error) => {
                        tracing::error!(%error, "the root could not be started again");
                        break;
                    }
                }
            }
            end_everything(&runtime);
            announce.set();
        });
        Ok(Life { runtime: shared, root: current, guardian, ended })
    }
}

/// The tree is gone for good: no task may be left without an end, no engine without an owner.
fn end_everything(runtime: &RuntimeShared) {
    for record in runtime.ledger.unfinished() {
        let terminal = Terminal::error(ErrorCode::WorkerReset, "the runtime has stopped");
        let _ = runtime.ledger.seal(&record, None, terminal);
    }
    for pool in runtime.pools.table().every() {
        pool.set_intent(Intent::Stop);
        pool.replicas.iter().for_each(|replica| replica.discard_engine());
    }
}
