//! Why a task waits, runs where it runs, or was refused. For people who ask: nothing here is on the path of a task.

use serde::Serialize;
use tokio::time::timeout;

use crate::actors::admission::facts_of;
use crate::actors::pool::messages::QueueMsg;
use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::record::TaskRecord;
use crate::core::admission::why_not;
use crate::core::id::{ClientId, PoolId, ReplicaId, TaskId};
use crate::core::pool::lifecycle::PoolState;
use crate::core::pool::placement::{Demand, Fit, fit};
use crate::core::queue::position::QueuePosition;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::{Phase, Priority};
use crate::core::text::line::Message;
use crate::core::units::millis_ceil;
use crate::orchestrator::handle::{ANSWER_TIMEOUT, Orchestrator};

/// All that is known of why a task stands where it stands.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The task.
    pub task_id: TaskId,
    /// The short answer, in one line.
    pub why: String,
    /// Where it stands; `None` when it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Who pays for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<ClientId>,
    /// Its class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The pool whose queue has it, or had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<PoolId>,
    /// The replica that runs it, or ran it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica_id: Option<ReplicaId>,
    /// Predicted time until it starts, from now, in milliseconds; only while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_start_ms: Option<u64>,
    /// Its place in the queue; only while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<QueuePosition>,
    /// Every pool, and why it could not take the task now, if it could not.
    pub pools: Vec<PoolConsidered>,
    /// The limit that refused it, if it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<TaskError>,
    /// How it failed, if it has.
    #[serde(skip)]
    pub error: Option<TaskError>,
}

impl Explanation {
    /// The same without what an engine said: for whoever may see nothing of the task's content.
    #[cfg(feature = "service")]
    pub(crate) fn hide_words(&mut self) {
        let Some(error) = self.error.as_mut().filter(|error| error.quotes.is_some()) else { return };
        error.hide_words();
        self.why = error.to_string();
    }

    /// The same without what it says of other clients and of the pools' insides: for whoever may see its own tasks
    /// only.
    #[cfg(feature = "service")]
    pub(crate) fn hide_others(&mut self) {
        self.pools.clear();
        if let Some(standing) = &mut self.standing {
            standing.clients_ahead_first.clear();
        }
    }
}

/// A pool as a choice for the task, as of now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolConsidered {
    /// Its name.
    pub pool_id: PoolId,
    /// Where it stands.
    pub state: PoolState,
    /// Why it could not take such a task; `None` when it could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<Message>,
    /// Predicted wait of a new task of this class, in milliseconds.
    pub wait_ms: u64,
    /// Its replicas.
    pub replicas: Vec<ReplicaConsidered>,
}

/// A replica as a choice for the task, as of now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReplicaConsidered {
    /// Its name.
    pub replica_id: ReplicaId,
    /// Whether it could take the task, or why not.
    pub fit: Fit,
    /// Places that are taken.
    pub slots_used: u32,
    /// Places there are.
    pub slots_total: u32,
}

impl Orchestrator {
    /// Why a task stands where it stands; `None` when nothing is known of it. Refused tasks are remembered for a while
    /// if their clients chose the id.
    ///
    /// # Errors
    /// `INTERNAL` when the queue does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn explain(&self, id: &TaskId) -> Result<Option<Explanation>, TaskError> {
        match self.runtime.ledger.get(id) {
            Some(record) => self.explain_known(&record).await.map(Some),
            None => Ok(self.explain_refused(None, id)),
        }
    }

    /// The same of this client's task.
    ///
    /// # Errors
    /// As [`Orchestrator::explain`].
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn explain_of(&self, client: &ClientId, id: &TaskId) -> Result<Option<Explanation>, TaskError> {
        match self.runtime.ledger.get_of(client, id) {
            Some(record) => self.explain_known(&record).await.map(Some),
            None => Ok(self.explain_refused(Some(client), id)),
        }
    }

    /// What is remembered of the newest refusal of this id.
    pub(crate) fn explain_refused(&self, client: Option<&ClientId>, id: &TaskId) -> Option<Explanation> {
        self.runtime.refused.refusals.find(client, id).map(|(client, refusal)| Explanation {
            task_id: id.clone(),
            why: format!("it was refused: {}", refusal.message),
            phase: None,
            client_id: Some(client),
            priority: None,
            pool_id: None,
            replica_id: None,
            predicted_start_ms: None,
            standing: None,
            pools: Vec::new(),
            refusal: Some(refusal),
            error: None,
        })
    }

    pub(crate) async fn explain_known(&self, record: &TaskRecord) -> Result<Explanation, TaskError> {
        let home = record.pool();
        let standing = match (&home, record.phase()) {
            (Some(pool), Phase::Queued) => ask_standing(pool, record).await?,
            _ => None,
        };
        let view = record.view();
        let predicted = standing
            .as_ref()
            .zip(home.as_ref())
            .map(|(standing, pool)| pool.capacity.rate.lock().wait(standing.queue_position));
        let why = match (&standing, view.phase) {
            (Some(standing), _) => standing.why.clone(),
            (None, Phase::Submitted) => "admission has not decided yet".to_owned(),
            (None, Phase::Queued) => "it is on its way between its queue and a worker".to_owned(),
            (None, Phase::Assigned) => "it is on its way to a worker".to_owned(),
            (None, Phase::Running) => "it runs".to_owned(),
            (None, Phase::Terminal) => view.error.as_ref().map_or("it has ended".to_owned(), ToString::to_string),
        };
        Ok(Explanation {
            task_id: record.id.clone(),
            why,
            phase: Some(view.phase),
            client_id: Some(view.client_id),
            priority: Some(view.priority),
            pool_id: home.map(|pool| pool.id.clone()),
            replica_id: view.replica_id,
            predicted_start_ms: predicted.map(millis_ceil),
            standing,
            pools: self.runtime.pools.table().serving.iter().map(|pool| self.consider(pool, record)).collect(),
            refusal: None,
            error: view.error,
        })
    }

    fn consider(&self, pool: &PoolShared, record: &TaskRecord) -> PoolConsidered {
        let client = self.runtime.clients.get(&record.request.client_id);
        let facts = facts_of(pool, &record.request, &client.policy());
        let (affinity, avoid) = record.inclinations(&pool.id);
        let demand = Demand { mask: &pool.mask, affinity, avoid, kv_tokens: record.kv_tokens() };
        let replica = |replica: &ReplicaShared| ReplicaConsidered {
            replica_id: replica.id.clone(),
            fit: fit(&replica.candidate(), &demand),
            slots_used: replica.capacity.slots.used(),
            slots_total: replica.capacity.slots.total(),
        };
        PoolConsidered {
            pool_id: pool.id.clone(),
            state: facts.state,
            why_not: why_not(&record.request, &facts),
            wait_ms: millis_ceil(facts.wait),
            replicas: pool.replicas.iter().map(replica).collect(),
        }
    }
}

async fn ask_standing(pool: &PoolShared, record: &TaskRecord) -> Result<Option<QueuePosition>, TaskError> {
    let (sender, receiver) = ractor::concurrency::oneshot();
    pool.actors.queue.cast(QueueMsg::Explain { seq: record.seq, reply: sender.into() });
    let lost =
        || TaskError::new(ErrorCode::Internal, "the queue did not answer; ask again").retry_after(ANSWER_TIMEOUT);
    timeout(ANSWER_TIMEOUT, receiver).await.map_err(|_| lost())?.map_err(|_| lost())
}
