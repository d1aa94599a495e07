//! A running runtime, from outside.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::actors::kit::children::STOPPED;
use crate::actors::metrics::events::Subscription;
use crate::actors::pool::messages::PoolSupervisorMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::cancel::cancel;
use crate::actors::runtime::messages::SessionView;
use crate::actors::runtime::messages::{RootMsg, SessionsMsg};
use crate::actors::runtime::stream::TaskStream;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::TaskView;
use crate::core::id::{ClientId, PoolId, SessionId, TaskId};
use crate::core::pool::lifecycle::{Intent, PoolState};
use crate::core::task::error::{ErrorCode, TaskError};
use crate::env::Env;
use crate::orchestrator::builder::Builder;
use crate::orchestrator::life::Guardian;

/// Longest wait for an actor to come back.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks at engines that are about to end.
const ENGINE_END_PERIOD: Duration = Duration::from_millis(1);

/// A running runtime. Cheap to clone; the runtime stops when the last clone is dropped.
#[derive(Clone)]
pub struct Orchestrator {
    pub(super) runtime: Arc<RuntimeShared>,
    pub(super) life: Arc<Guardian>,
}

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pools: Vec<_> = self.runtime.pools.table().serving.iter().map(|pool| pool.id.to_string()).collect();
        f.debug_struct("Orchestrator")
            .field("pools", &pools)
            .field("has_ended", &self.has_ended())
            .finish_non_exhaustive()
    }
}

/// What a cancel found.
#[derive(Clone, Debug, PartialEq)]
pub enum CancelOutcome {
    /// The task has ended by this cancel. No token follows (ORCH-3026).
    Canceled(TaskView),
    /// The task had ended already; its end stands.
    AlreadyEnded(TaskView),
    /// There is no such task, or it has been forgotten.
    Unknown,
}

impl Orchestrator {
    /// A runtime to be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The task with this id, as it stands now; `None` when there is none, or it has been forgotten.
    pub fn task(&self, id: &TaskId) -> Option<TaskView> {
        self.runtime.ledger.get(id).map(|record| record.view())
    }

    /// The events of a task from index `from` on; `None` when there is no such task.
    pub fn stream(&self, id: &TaskId, from: usize) -> Option<TaskStream> {
        self.runtime.ledger.get(id).map(|record| TaskStream::new(record, from, &self.runtime))
    }

    /// Ends a task. When this returns, its log is sealed: no token follows (ORCH-3017, ORCH-3026).
    pub fn cancel(&self, id: &TaskId) -> CancelOutcome {
        self.runtime.ledger.get(id).map_or(CancelOutcome::Unknown, |record| self.cancel_known(&record))
    }

    /// This client's task with this id, as it stands now. Ids that clients choose are their own: two may choose the
    /// same, and then the methods that are told an id alone mean the task of the client who used it first.
    pub fn task_of(&self, client: &ClientId, id: &TaskId) -> Option<TaskView> {
        self.runtime.ledger.get_of(client, id).map(|record| record.view())
    }

    /// The events of this client's task from index `from` on.
    pub fn stream_of(&self, client: &ClientId, id: &TaskId, from: usize) -> Option<TaskStream> {
        self.runtime.ledger.get_of(client, id).map(|record| TaskStream::new(record, from, &self.runtime))
    }

    /// Ends this client's task, as [`Orchestrator::cancel`] does.
    pub fn cancel_of(&self, client: &ClientId, id: &TaskId) -> CancelOutcome {
        self.runtime.ledger.get_of(client, id).map_or(CancelOutcome::Unknown, |record| self.cancel_known(&record))
    }

    pub(crate) fn cancel_known(&self, record: &TaskRecord) -> CancelOutcome {
        match cancel(&self.runtime, record) {
            true => CancelOutcome::Canceled(record.view()),
            false => CancelOutcome::AlreadyEnded(record.view()),
        }
    }

    /// Begins to drain a pool: it takes nothing new, finishes what it has within its `drain_ms`, and then stops its
    /// workers. Returns the state that it is in, or `None` when there is no such pool.
    pub fn drain(&self, pool: &PoolId) -> Option<PoolState> {
        let pool = self.pool_shared(pool)?;
        drain(&pool);
        Some(pool.state())
    }

    /// Waits until a pool is in a state that `wanted` names, or the runtime has ended; returns the state that it is in
    /// then. `None` when there is no such pool.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn until_pool(&self, pool: &PoolId, wanted: impl Fn(PoolState) -> bool) -> Option<PoolState> {
        let pool = self.pool_shared(pool)?;
        Some(self.until(&pool, wanted).await)
    }

    /// Waits until every pool has a Ready replica; returns `false` when the runtime has ended or a pool has stopped,
    /// and none ever will.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn until_ready(&self) -> bool {
        let mut all = true;
        for pool in &self.runtime.pools.table().serving {
            let state = self.until(pool, |state| matches!(state, PoolState::Ready | PoolState::Stopped)).await;
            all &= state == PoolState::Ready;
        }
        all && !self.has_ended()
    }

    async fn until(&self, pool: &PoolShared, wanted: impl Fn(PoolState) -> bool) -> PoolState {
        let ended = self.life.ended.clone();
        tokio::select! {
            biased;
            state = until(pool, wanted) => state,
            () = ended.wait() => pool.state(),
        }
    }

    /// What is known of a client's conversation.
    ///
    /// # Errors
    /// `INTERNAL` when the sessions actor does not answer.
    pub async fn session(&self, client: &ClientId, session: &SessionId) -> Result<Option<SessionView>, TaskError> {
        let (client, session) = (client.clone(), session.clone());
        self.ask_sessions(|reply| SessionsMsg::Observe { session, client, reply }).await
    }

    /// Forgets a client's conversation; returns what was known of it.
    ///
    /// # Errors
    /// `INTERNAL` when the sessions actor does not answer.
    pub async fn end_session(&self, client: &ClientId, session: &SessionId) -> Result<Option<SessionView>, TaskError> {
        let (client, session) = (client.clone(), session.clone());
        self.ask_sessions(|reply| SessionsMsg::Forget { session, client, reply }).await
    }

    async fn ask_sessions(
        &self,
        message: impl FnOnce(ractor::RpcReplyPort<Option<SessionView>>) -> SessionsMsg,
    ) -> Result<Option<SessionView>, TaskError> {
        let (sender, receiver) = ractor::concurrency::oneshot();
        self.runtime.actors.sessions.cast(message(sender.into()));
        let lost = || TaskError::new(ErrorCode::Internal, "the sessions actor did not answer");
        timeout(ANSWER_TIMEOUT, receiver).await.map_err(|_| lost())?.map_err(|_| lost())
    }

    /// Drains every pool for at most `within`, and for no longer than its `drain_ms`, then ends all actors and engines.
    /// What still runs then is ended with an error. Every clone of this handle may call it, several at once, and when
    /// the runtime has ended already it returns at once.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the drains under way; drop the last handle to end at once.
    pub async fn stop(&self, within: Duration) {
        self.runtime.pools.stop();
        let table = self.runtime.pools.table();
        let replicas = table.every().flat_map(|pool| &pool.replicas);
        let engines: Vec<_> =
            replicas.filter_map(|replica| replica.loaded.engine.lock().as_ref().map(Arc::downgrade)).collect();
        for pool in &table.serving {
            drain(pool);
        }
        let ended = self.life.ended.clone();
        let drained = async {
            for pool in table.every() {
                until(pool, |state| state == PoolState::Stopped).await;
            }
        };
        tokio::select! {
            biased;
            () = drained => {}
            () = ended.wait() => ended.mark_failure(),
            () = tokio::time::sleep(within) => ended.mark_failure(),
        }
        if let Some(root) = self.life.root.lock().clone() {
            root.stop(Some(STOPPED.into()));
        }
        ended.wait().await;
        // What still held an engine was aborted just now and lets go when it is next polled.
        let gone = async {
            while engines.iter().any(|engine| engine.strong_count() > 0) {
                tokio::time::sleep(ENGINE_END_PERIOD).await;
            }
        };
        if timeout(ANSWER_TIMEOUT, gone).await.is_err() {
            tracing::error!("an engine is still held by somebody");
        }
        for replica in table.every().flat_map(|pool| &pool.replicas) {
            replica.loaded.site.until_clear(ANSWER_TIMEOUT).await; // Its process has been told to end.
        }
    }

    /// What happens from now on: ends of tasks, lost attempts, deaths of workers. Without a subscriber it costs one
    /// look at a number.
    pub fn subscribe(&self) -> Subscription {
        self.runtime.ledger.events.subscribe()
    }

    /// Whether the runtime has ended, by [`Orchestrator::stop`] or because its actors failed too often.
    pub fn has_ended(&self) -> bool {
        self.life.ended.is_set()
    }

    /// Whether the runtime has ended without having been asked to, or before it was drained: its actors failed too
    /// often, or what starts them again is gone.
    pub fn has_failed(&self) -> bool {
        self.life.ended.is_failure()
    }

    /// Waits until the runtime has ended.
    pub fn until_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.life.ended.clone();
        async move { ended.wait().await }
    }

    /// Whether the actors answer: the one for conversations is asked.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn is_answering(&self) -> bool {
        let session = SessionId::parse("nobody").ok();
        match session {
            Some(session) => self.session(&ClientId::anonymous(), &session).await.is_ok(),
            None => false,
        }
    }

    /// Where time and chance come from.
    pub fn env(&self) -> &Env {
        &self.runtime.env
    }

    /// Makes every supervisor handle a message, so that planned faults strike them too. For tests.
    #[doc(hidden)]
    pub fn ping_supervisors(&self) {
        if let Some(root) = self.life.root.lock().clone() {
            let _ = root.cast(RootMsg::Ping);
        }
        for pool in self.runtime.pools.table().every() {
            pool.actors.supervisor.cast(PoolSupervisorMsg::Ping);
        }
    }

    pub(crate) fn pool_shared(&self, id: &PoolId) -> Option<Arc<PoolShared>> {
        self.runtime.pools.table().serving.iter().find(|pool| pool.id == *id).cloned()
    }

    pub(crate) fn shared(&self) -> &Arc<RuntimeShared> {
        &self.runtime
    }
}

fn drain(pool: &PoolShared) {
    // At once: nothing new comes in from here on.
    if pool.advance_intent(Intent::Drain) {
        pool.actors.supervisor.cast(PoolSupervisorMsg::Drain); // Nobody there: the next one finds the intent.
    }
}

async fn until(pool: &PoolShared, wanted: impl Fn(PoolState) -> bool) -> PoolState {
    loop {
        let changed = pool.life.state_changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable(); // Before the look, so that no change is missed.
        let state = pool.state();
        if wanted(state) {
            return state;
        }
        changed.await;
    }
}
