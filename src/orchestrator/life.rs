//! The guardian above the root: starts it again when it dies, and leaves nothing behind when it cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use ractor::{Actor, ActorRef, SpawnErr};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::actors::kit::children::ROOT;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::RootMsg;
use crate::actors::tree::root::Root;
use crate::core::pool::lifecycle::Intent;
use crate::core::pool::restart::{Decision, RestartHistory};
use crate::core::task::Terminal;
use crate::core::task::error::ErrorCode;

/// The root that runs now, if one does.
type CurrentRoot = Arc<Mutex<Option<ActorRef<RootMsg>>>>;

/// The root and its guardian; ends with the last handle.
pub(super) struct Guardian {
    runtime: Arc<RuntimeShared>,
    pub(super) root: CurrentRoot,
    guardian: JoinHandle<()>,
    pub(super) ended: Arc<Ended>,
}

/// Set when nothing will be started again.
#[derive(Default)]
pub(super) struct Ended {
    flag: AtomicBool,
    /// Nobody had asked for the end, or it came too early.
    failed: AtomicBool,
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

    /// It ended before what it had was finished.
    pub(super) fn mark_failure(&self) {
        self.failed.store(true, SeqCst);
    }

    /// Whether the runtime has ended without having been asked to, or before it was drained.
    pub(super) fn is_failure(&self) -> bool {
        self.is_set() && self.failed.load(SeqCst)
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

/// Belongs to the guardian's task and announces the end with it: when it returns, when it panics, and when it is
/// dropped.
struct Announcement {
    runtime: Arc<RuntimeShared>,
    root: CurrentRoot,
    ended: SetOnDrop,
    /// The guardian has found that it is over because somebody asked for it.
    was_asked: bool,
}

/// Sets it even if a step before it panics.
struct SetOnDrop(Arc<Ended>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if self.ended.0.is_set() {
            return; // With the last handle.
        }
        if !self.was_asked {
            self.ended.0.mark_failure();
        }
        if let Some(root) = self.root.lock().take() {
            root.kill(); // Nobody would start it again; it has ended already unless the guardian was the first.
        }
        end_everything(&self.runtime);
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.guardian.abort();
        end_everything(&self.runtime);
        self.ended.set();
        if let Some(root) = self.root.lock().take() {
            root.kill();
        }
    }
}

impl Guardian {
    pub(super) async fn start(runtime: Arc<RuntimeShared>) -> Result<Guardian, SpawnErr> {
        let (root, mut handle) = Actor::spawn(None, Root, runtime.clone()).await?;
        runtime.actors.root.publish(root.clone());
        let current = Arc::new(Mutex::new(Some(root)));
        let (place, shared) = (current.clone(), runtime.clone());
        let ended = Arc::new(Ended::default());
        let set = SetOnDrop(ended.clone());
        let mut announcement =
            Announcement { runtime: shared.clone(), root: current.clone(), ended: set, was_asked: false };
        // Not detached: the handle belongs to `Guardian`, which aborts it.
        let guardian = tokio::spawn(async move {
            let mut history = RestartHistory::new(ROOT);
            history.on_healthy(runtime.env.now());
            loop {
                let _ = handle.await; // However it ended, it has.
                let stopping = runtime.pools.is_stopping()
                    || runtime.pools.table().every().all(|pool| pool.intent() == Intent::Stop);
                let decision = history.on_exit(runtime.env.now(), runtime.env.random());
                if stopping || decision == Decision::Escalate {
                    announcement.was_asked = stopping;
                    break;
                }
                match Actor::spawn(None, Root, runtime.clone()).await {
                    Ok((root, next)) => {
                        runtime.actors.root.publish(root.clone());
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
            drop(announcement);
        });
        Ok(Guardian { runtime: shared, root: current, guardian, ended })
    }
}

/// The tree is gone for good: no task may be left without an end, no engine without an owner.
fn end_everything(runtime: &RuntimeShared) {
    for record in runtime.ledger.unfinished() {
        let terminal = Terminal::error(ErrorCode::WorkerReset, "the runtime has stopped");
        let _ = runtime.ledger.seal(&record, None, terminal);
    }
    for pool in runtime.pools.table().every() {
        pool.advance_intent(Intent::Stop);
        pool.replicas.iter().for_each(|replica| replica.discard_engine());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::task::event_log::Event;
    use crate::config::PoolConfig;
    use crate::core::task::TaskRequest;
    use crate::gpu::SimEngine;
    use crate::orchestrator::Orchestrator;

    async fn runtime() -> Orchestrator {
        let builder = Orchestrator::builder().pool(PoolConfig::new("a", "sim", "m"), SimEngine::new);
        builder.start().await.expect("it starts")
    }

    #[tokio::test(start_paused = true)]
    async fn a_guardian_that_is_gone_has_ended_the_runtime_and_every_task() {
        let orchestrator = runtime().await;
        let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(1_000)).await.expect("accepted");
        orchestrator.life.guardian.abort();
        orchestrator.until_ended().await;
        assert!(orchestrator.has_ended() && orchestrator.has_failed());
        let (_, end) = submitted.stream().collect().await;
        assert!(matches!(end, Some(Event::Error(_))), "no task is left without an end: {end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_the_guardian_ends_the_runtime_before_anybody_asks() {
        let orchestrator = runtime().await;
        let life = orchestrator.life.clone();
        let (runtime, root, ended) = (life.runtime.clone(), life.root.clone(), SetOnDrop(life.ended.clone()));
        let announcement = Announcement { runtime, root, ended, was_asked: false };
        let panicked = tokio::spawn(async move {
            let _announcement = announcement;
            panic!("a bug of the guardian");
        });
        assert!(panicked.await.is_err());
        assert!(orchestrator.has_ended() && orchestrator.has_failed());
        assert!(life.root.lock().is_none(), "the root is ended with it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_was_stopped_has_not_failed() {
        let orchestrator = runtime().await;
        orchestrator.stop(std::time::Duration::MAX).await;
        assert!(orchestrator.has_ended() && !orchestrator.has_failed());
    }
}
