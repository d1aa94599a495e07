//! The public handle: start a runtime, submit tasks, read and cancel them, look at it, stop it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use ractor::{Actor, ActorRef, SpawnErr};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::actors::address::Address;
use crate::actors::admission::AdmissionMsg;
use crate::actors::gate::IntakeGate;
use crate::actors::ledger::Ledger;
use crate::actors::pool_supervisor::PoolSupervisorMsg;
use crate::actors::queue::{Accepted, QueueMsg, Submission, Verdict};
use crate::actors::reader::TaskStream;
use crate::actors::record::{TaskRecord, TaskView};
use crate::actors::root::{Root, RootMsg};
use crate::actors::sessions::{SessionView, SessionsMsg};
use crate::actors::shared::{PoolShared, RuntimeShared, code_index};
use crate::actors::supervise::{STOPPED, SUPERVISOR};
use crate::config::{Config, ConfigError, PoolConfig};
use crate::core::error::{ErrorCode, TaskError};
use crate::core::id::{ClientId, PoolId, SessionId, TaskId};
use crate::core::lifecycle::{Intent, PoolState};
use crate::core::restart::{Decision, RestartHistory};
use crate::core::task::{Phase, TaskRequest, Terminal};
use crate::core::units::millis_ceil;
use crate::env::Env;
use crate::gpu::engine::{Engine, EngineContext, EngineFactory};

/// How often a submission is sent again after the actor that had it died. Each death is a bug; five in a row within one
/// submission are an outage.
const SENDS_MAX: u32 = 5;
/// Longest wait for an actor to come back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks at engines that are about to end.
const ENGINE_END_PERIOD: Duration = Duration::from_millis(1);

/// A running runtime. Cheap to clone; the runtime stops when the last clone is dropped.
#[derive(Clone)]
pub struct Orchestrator {
    runtime: Arc<RuntimeShared>,
    life: Arc<Life>,
}

/// The root and its guardian; ends with the last handle.
struct Life {
    runtime: Arc<RuntimeShared>,
    root: Arc<Mutex<Option<ActorRef<RootMsg>>>>,
    guardian: JoinHandle<()>,
    ended: Arc<Ended>,
}

/// Set when nothing will be started again.
#[derive(Default)]
struct Ended {
    flag: AtomicBool,
    changed: Notify,
}

impl Ended {
    fn set(&self) {
        self.flag.store(true, SeqCst);
        self.changed.notify_waiters();
    }

    fn is_set(&self) -> bool {
        self.flag.load(SeqCst)
    }

    async fn wait(&self) {
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

/// What a runtime is made of.
pub struct Builder {
    config: Config,
    factories: Vec<EngineFactory>,
    env: Option<Env>,
}

/// Why a runtime could not be started. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigError>),
    /// The tree of actors could not be started.
    #[error("the actors could not be started: {0}")]
    Actors(String),
}

/// An accepted task.
pub struct Submitted {
    /// Its id.
    pub task_id: TaskId,
    /// Tasks that will be started before it (ORCH-3029).
    pub queue_position: u64,
    /// Predicted time until it starts, in milliseconds.
    pub predicted_start_ms: u64,
    /// How long a well-behaved client waits before it sends the next task, in milliseconds; 0 while a slot is free.
    pub backoff_ms: u64,
    record: Arc<TaskRecord>,
}

impl Submitted {
    /// The task's events, from the first on.
    pub fn stream(&self) -> TaskStream {
        TaskStream::new(self.record.clone(), 0)
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

impl Builder {
    /// Adds a pool, and what makes an engine for each life of each of its workers.
    #[must_use]
    pub fn pool<E, F>(mut self, config: PoolConfig, factory: F) -> Self
    where
        E: Engine,
        F: Fn(&EngineContext) -> E + Send + Sync + 'static,
    {
        self.config.pools.push(config);
        self.factories.push(Arc::new(move |context| Arc::new(factory(context))));
        self
    }

    /// Sets everything but the pools.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = Config { pools: self.config.pools, ..config };
        self
    }

    /// Sets where time and chance come from; without it, they are real.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Starts the runtime. Pools load their models behind it; tasks may be submitted at once and wait.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(self) -> Result<Orchestrator, StartError> {
        let faults = self.config.faults();
        if !faults.is_empty() {
            return Err(StartError::Config(faults));
        }
        let env = self.env.unwrap_or_else(Env::real);
        let runtime = assemble(self.config, self.factories, env).map_err(|error| StartError::Config(vec![error]))?;
        let life = Life::start(runtime.clone()).await.map_err(|error| StartError::Actors(error.to_string()))?;
        Ok(Orchestrator { runtime, life: Arc::new(life) })
    }
}

fn assemble(config: Config, factories: Vec<EngineFactory>, env: Env) -> Result<Arc<RuntimeShared>, ConfigError> {
    let mut places = config.intake_margin as usize;
    let mut pools = Vec::new();
    for (position, (pool, factory)) in config.pools.iter().zip(factories).enumerate() {
        places += pool.queue.capacity as usize + pool.slots as usize * pool.replicas.len();
        pools.push(PoolShared::new(position as u16, pool.clone(), env.clone(), factory)?);
    }
    Ok(Arc::new(RuntimeShared {
        ledger: Ledger::new(env.clone(), config.retention.clone()),
        env,
        config,
        gate: IntakeGate::new(places),
        pools,
        admission: Address::default(),
        sessions: Address::default(),
        rejected: Default::default(),
        gate_closed: Default::default(),
    }))
}

impl Life {
    async fn start(runtime: Arc<RuntimeShared>) -> Result<Life, SpawnErr> {
        let (root, mut handle) = Actor::spawn(None, Root, runtime.clone()).await?;
        let current = Arc::new(Mutex::new(Some(root)));
        let (place, shared) = (current.clone(), runtime.clone());
        let ended = Arc::new(Ended::default());
        let announce = ended.clone();
        // Not detached: the handle belongs to `Life`, which aborts it.
        let guardian = tokio::spawn(async move {
            let mut history = RestartHistory::new(SUPERVISOR);
            history.on_healthy(runtime.env.now());
            loop {
                let _ = handle.await; // However it ended, it has.
                let stopping = runtime.pools.iter().all(|pool| pool.intent() == Intent::Stop);
                let decision = history.on_exit(runtime.env.now(), runtime.env.random());
                if stopping || decision == Decision::Escalate {
                    break;
                }
                match Actor::spawn(None, Root, runtime.clone()).await {
                    Ok((root, next)) => {
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
    for pool in &runtime.pools {
        pool.set_intent(Intent::Stop);
        pool.replicas.iter().for_each(|replica| replica.discard_engine());
    }
}

/// A submission that has no verdict yet. Dropped, it takes the task back.
struct Undecided<'a> {
    runtime: &'a RuntimeShared,
    record: &'a Arc<TaskRecord>,
    decided: bool,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if !self.decided {
            end_by_client(self.runtime, self.record);
        }
    }
}

/// Seals first and tells the holder second; whoever comes late finds the seal.
fn end_by_client(runtime: &RuntimeShared, record: &Arc<TaskRecord>) -> bool {
    let sealed = runtime.ledger.seal(record, None, Terminal::CANCELED).is_ok();
    // Read behind the seal: before it, the task could still be routed and queued.
    if let (true, Some(pool)) = (sealed, record.pool()) {
        pool.queue.cast(QueueMsg::Withdraw { seq: record.seq }); // Lost: a new queue takes only what is not sealed.
    }
    sealed
}

impl Orchestrator {
    /// A runtime to be.
    pub fn builder() -> Builder {
        Builder { config: Config::default(), factories: Vec::new(), env: None }
    }

    /// Hands in a task and waits for the verdict.
    ///
    /// A task id that is known already returns the first submission's state (ORCH-3024), if the request is the same.
    ///
    /// # Errors
    /// [`TaskError`] when the task was not accepted; nothing of it is left, and its id is free.
    ///
    /// # Cancel safety
    /// Dropping the future takes the task back, whether it was accepted meanwhile or not.
    pub async fn submit(&self, request: TaskRequest) -> Result<Submitted, TaskError> {
        let runtime = &*self.runtime;
        let request = Arc::new(request);
        while let Some(known) = request.task_id.as_ref().and_then(|id| runtime.ledger.get(id)) {
            if let Some(outcome) = same_task(known, &request).await {
                return outcome;
            }
        }
        let Some(permit) = runtime.gate.try_enter() else {
            return Err(self.refused(gate_closed(runtime, &request)));
        };
        let now = runtime.env.now();
        let id = request.task_id.clone().unwrap_or_else(|| runtime.env.new_task_id(now));
        let record = match runtime.ledger.open(id, &request, permit, now) {
            Ok(record) => record,
            // Somebody submitted the same id just now.
            Err(known) => return same_task(known, &request).await.unwrap_or_else(|| Err(undecided_twin())),
        };
        let mut undecided = Undecided { runtime, record: &record, decided: false };
        let verdict = self.ask(&record).await;
        undecided.decided = true;
        drop(undecided);
        match verdict {
            Ok(accepted) => Ok(submitted(record, accepted)),
            Err(error) => {
                let _ = runtime.ledger.seal(&record, None, Terminal::Error(error.clone())); // Cancelled just now.
                Err(self.refused(error))
            }
        }
    }

    /// Sends a task in until somebody answers: what dies in a mailbox is sent again.
    async fn ask(&self, record: &Arc<TaskRecord>) -> Verdict {
        for _ in 0..SENDS_MAX {
            let (sender, receiver) = ractor::concurrency::oneshot();
            let submission = Submission { record: record.clone(), reply: sender.into() };
            if self.runtime.admission.cast(AdmissionMsg::Submit(submission)) {
                match receiver.await {
                    Ok(verdict) => return verdict,
                    Err(_) if record.was_accepted() => {
                        // The queue died between its decision and its answer; the decision stands.
                        let (queue_position, predicted_start) = record.promise();
                        return Ok(Accepted { queue_position, predicted_start });
                    }
                    Err(_) if record.phase() == Phase::Terminal => {
                        let text = "the task was cancelled before it was accepted";
                        return Err(TaskError::new(ErrorCode::AdmissionReject, text).retry_after(Duration::ZERO));
                    }
                    Err(_) => {}
                }
            }
            if self.life.ended.is_set() || timeout(ANSWER_TIMEOUT, self.until_way_in(record)).await.is_err() {
                break;
            }
        }
        let text = "admission did not answer; the task was not accepted";
        Err(TaskError::new(ErrorCode::Internal, text).retry_after(ANSWER_TIMEOUT))
    }

    /// Waits until everybody lives whom this task has to pass: its message may have died with any of them.
    async fn until_way_in(&self, record: &TaskRecord) {
        self.runtime.admission.until_alive().await;
        if let Some(pool) = record.pool() {
            pool.queue.until_alive().await;
        }
    }

    fn refused(&self, error: TaskError) -> TaskError {
        let counter = &self.runtime.rejected[code_index(error.code)];
        counter.fetch_add(1, Relaxed);
        error
    }

    /// The task with this id, as it stands now; `None` when there is none, or it has been forgotten.
    pub fn task(&self, id: &TaskId) -> Option<TaskView> {
        self.runtime.ledger.get(id).map(|record| record.view())
    }

    /// The events of a task from index `from` on; `None` when there is no such task.
    pub fn stream(&self, id: &TaskId, from: usize) -> Option<TaskStream> {
        self.runtime.ledger.get(id).map(|record| TaskStream::new(record, from))
    }

    /// Ends a task. When this returns, its log is sealed: no token follows (ORCH-3017, ORCH-3026).
    pub fn cancel(&self, id: &TaskId) -> CancelOutcome {
        let Some(record) = self.runtime.ledger.get(id) else {
            return CancelOutcome::Unknown;
        };
        match end_by_client(&self.runtime, &record) {
            true => CancelOutcome::Canceled(record.view()),
            false => CancelOutcome::AlreadyEnded(record.view()),
        }
    }

    /// Begins to drain a pool: it takes nothing new, finishes what it has within its `drain_ms`, and then stops its
    /// workers. Returns the state that it is in, or `None` when there is no such pool.
    pub fn drain(&self, pool: &PoolId) -> Option<PoolState> {
        let pool = self.pool_shared(pool)?;
        if pool.intent() == Intent::Serve {
            pool.set_intent(Intent::Drain); // At once: nothing new comes in from here on.
            pool.supervisor.cast(PoolSupervisorMsg::Drain); // Nobody there: the next one finds the intent.
        }
        Some(pool.state())
    }

    /// Waits until a pool is in a state that `wanted` names; `None` when there is no such pool.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn until_pool(&self, pool: &PoolId, wanted: impl Fn(PoolState) -> bool) -> Option<PoolState> {
        let pool = self.pool_shared(pool)?;
        loop {
            let changed = pool.state_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // Before the look, so that no change is missed.
            let state = pool.state();
            if wanted(state) {
                return Some(state);
            }
            changed.await;
        }
    }

    /// Waits until every pool has a Ready replica.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn until_ready(&self) {
        for pool in &self.runtime.pools {
            self.until_pool(&pool.id, |state| state == PoolState::Ready).await;
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
        self.runtime.sessions.cast(message(sender.into()));
        let lost = || TaskError::new(ErrorCode::Internal, "the sessions actor did not answer");
        timeout(ANSWER_TIMEOUT, receiver).await.map_err(|_| lost())?.map_err(|_| lost())
    }

    /// Drains every pool, then ends all actors and engines.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the drains under way; drop the handle to end at once.
    pub async fn stop(self) {
        let replicas = self.runtime.pools.iter().flat_map(|pool| &pool.replicas);
        let engines: Vec<_> =
            replicas.filter_map(|replica| replica.engine.lock().as_ref().map(Arc::downgrade)).collect();
        for pool in &self.runtime.pools {
            self.drain(&pool.id);
        }
        let ended = self.life.ended.clone();
        let drained = async {
            for pool in &self.runtime.pools {
                self.until_pool(&pool.id, |state| state == PoolState::Stopped).await;
            }
        };
        tokio::select! {
            biased;
            () = drained => {}
            () = ended.wait() => {}
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
    }

    /// Whether the runtime has ended, by [`Orchestrator::stop`] or because its actors failed too often.
    pub fn has_ended(&self) -> bool {
        self.life.ended.is_set()
    }

    /// Waits until the runtime has ended.
    pub fn until_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.life.ended.clone();
        async move { ended.wait().await }
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
        for pool in &self.runtime.pools {
            pool.supervisor.cast(PoolSupervisorMsg::Ping);
        }
    }

    pub(crate) fn pool_shared(&self, id: &PoolId) -> Option<&Arc<PoolShared>> {
        self.runtime.pools.iter().find(|pool| pool.id == *id)
    }

    pub(crate) fn shared(&self) -> &RuntimeShared {
        &self.runtime
    }
}

/// The first submission's state, for one that repeats it (ORCH-3024), as soon as the first has been decided. `None` when
/// it was not accepted: its id is free.
async fn same_task(known: Arc<TaskRecord>, request: &TaskRequest) -> Option<Result<Submitted, TaskError>> {
    if *known.request != *request {
        let text = format!("field 'task_id': {} is the id of another task; take a new one", known.id);
        return Some(Err(TaskError::new(ErrorCode::InvalidParams, text)));
    }
    if !known.until_decided().await {
        tokio::task::yield_now().await; // Whoever sealed it is about to forget it.
        return None;
    }
    let (queue_position, predicted_start) = known.promise();
    Some(Ok(submitted(known, Accepted { queue_position, predicted_start })))
}

/// Two submissions of one id met, and the first was not accepted.
fn undecided_twin() -> TaskError {
    let text = "another submission of this task id was refused just now";
    TaskError::new(ErrorCode::AdmissionReject, text).retry_after(Duration::ZERO)
}

fn submitted(record: Arc<TaskRecord>, accepted: Accepted) -> Submitted {
    let predicted_start_ms = millis_ceil(accepted.predicted_start);
    Submitted {
        task_id: record.id.clone(),
        queue_position: accepted.queue_position,
        predicted_start_ms,
        backoff_ms: predicted_start_ms,
        record,
    }
}

/// The refusal of a runtime that has as many tasks as it may have anywhere.
fn gate_closed(runtime: &RuntimeShared, request: &TaskRequest) -> TaskError {
    runtime.gate_closed.fetch_add(1, Relaxed);
    let wait = runtime.pools.iter().map(|pool| pool.expected_wait(request.priority)).min().unwrap_or_default();
    let text = format!("the runtime holds {} tasks, which is all it may hold", runtime.gate.limit());
    TaskError::new(ErrorCode::AdmissionReject, text).policy("gate").retry_after(wait)
}
