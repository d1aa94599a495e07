//! The admission actor: owns the way in. It checks each task and sends it to the pool that starts it first.
//!
//! Only submitters speak to it. It promises one answer for each submission: its own refusal, or the queue's verdict. It
//! keeps nothing that a restart would lose; a submission that dies with it is sent again by its caller.
//!
//! Spec: ORCH-3014, ORCH-3015, ORCH-3018, ORCH-3007.

pub(crate) mod rollouts;
pub(crate) mod sessions;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::pool::messages::{QueueMsg, Submission};
use crate::actors::pool::shared::PoolShared;
use crate::actors::quota::clients::Policy;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::{AdmissionMsg, SessionsMsg};
use crate::actors::task::home::Route;
use crate::actors::task::record::TaskRecord;
use crate::core::admission::limits::Demand;
use crate::core::admission::{PoolFacts, over_limit, route};
use crate::core::id::SessionId;
use crate::core::pool::lifecycle::PoolState;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::{KvHint, TaskRequest};
use crate::core::units::Tokens;

/// The actor.
pub(crate) struct Admission;

impl Actor for Admission {
    type Msg = AdmissionMsg;
    type State = Arc<RuntimeShared>;
    type Arguments = Arc<RuntimeShared>;

    async fn pre_start(
        &self,
        _: ActorRef<AdmissionMsg>,
        runtime: Arc<RuntimeShared>,
    ) -> Result<Arc<RuntimeShared>, ActorProcessingErr> {
        Ok(runtime)
    }

    async fn handle(
        &self,
        _: ActorRef<AdmissionMsg>,
        message: AdmissionMsg,
        runtime: &mut Arc<RuntimeShared>,
    ) -> Result<(), ActorProcessingErr> {
        runtime.env.fault_point("admission");
        match message {
            AdmissionMsg::Submit(submission) => on_submit(runtime, submission),
        }
        Ok(())
    }
}

fn on_submit(runtime: &RuntimeShared, submission: Submission) {
    let record = submission.record.clone();
    match decide(runtime, &record) {
        Err(error) => {
            let _ = submission.reply.send(Err(error)); // A caller that is gone has withdrawn by its guard.
        }
        Ok(pool) => {
            runtime.env.fault_point("admission");
            forward(runtime, pool, submission);
        }
    }
}

/// Sends a task to its pool's queue, through the sessions actor when it belongs to a conversation.
fn forward(runtime: &RuntimeShared, pool: Arc<PoolShared>, submission: Submission) {
    let request = &submission.record.request;
    let session: Option<SessionId> = match request.kv_hint {
        KvHint::Reuse => request.session_id.clone(),
        KvHint::Cold => None,
    };
    // Undelivered: the reply port drops with the message, and the caller sends the task again.
    let Some(session) = session else {
        pool.actors.queue.cast(QueueMsg::Enqueue(submission));
        return;
    };
    let located = runtime.actors.sessions.try_cast(SessionsMsg::Locate { session, pool, submission });
    // Without the sessions actor a task has no warm replica, and is served all the same.
    if let Err(Some(SessionsMsg::Locate { pool, submission, .. })) = located {
        pool.actors.queue.cast(QueueMsg::Enqueue(submission));
    }
}

/// Checks a task and takes its part of its client's limits; the last check, so that a refusal takes nothing.
fn decide(runtime: &RuntimeShared, record: &TaskRecord) -> Result<Arc<PoolShared>, TaskError> {
    let request = &*record.request;
    let bytes_max = runtime.config().prompt_bytes_max;
    let bytes = request.text_bytes();
    if bytes > bytes_max as usize {
        let field = if request.inputs.is_empty() { "prompt" } else { "inputs" };
        let text = format!("field '{field}': {bytes} bytes, at most {bytes_max} are taken");
        return Err(TaskError::new(ErrorCode::InvalidParams, text));
    }
    let client = runtime.clients.get(&request.client_id);
    let is_inbound = record.is_inbound();
    let client = if is_inbound { client.for_inbound() } else { client };
    let policy = client.policy();
    // One allocation a task: the facts borrow from the pools and are as of now.
    let table = runtime.pools.table();
    let aside = runtime.rollouts.set_aside(request, &policy, &table);
    let mut facts: Vec<PoolFacts<'_>> = table.serving.iter().map(|pool| facts_of(pool, request, &policy)).collect();
    facts.iter_mut().for_each(|facts| facts.aside = aside.contains(facts.id));
    exclude_remote_duplicates(&table.serving, is_inbound, &mut facts);
    let route = route(request, &facts)?;
    let (pool, prompt_tokens) = (table.serving[route.pool].clone(), route.prompt_tokens);
    let tokens = prompt_tokens + request.max_tokens;
    let memory = &pool.config.memory;
    let memory_bytes =
        u64::from(tokens.0).saturating_mul(memory.kv_bytes_per_token).saturating_add(memory.scratch_bytes);
    let route = Route { pool: pool.clone(), prompt_tokens, client };
    let claimed = record.set_route(route, runtime.env.now(), Demand { tokens, memory_bytes });
    claimed.map_err(|exceeded| over_limit(request, exceeded, pool.advice(request.priority)))?;
    Ok(pool)
}

/// Tasks of a set that spans nodes stand in one order: that of its first pool that serves. The pools of other nodes
/// lend their slots to it. What another node has sent here is run here.
fn exclude_remote_duplicates(pools: &[Arc<PoolShared>], is_inbound: bool, facts: &mut [PoolFacts<'_>]) {
    for (position, pool) in pools.iter().enumerate().filter(|(_, pool)| pool.is_remote()) {
        let before = pools[..position].iter().zip(&*facts);
        let stands_for = |(other, facts): (&Arc<PoolShared>, &PoolFacts<'_>)| {
            facts.state == PoolState::Ready && facts.allowed && !facts.aside && other.is_same_set(pool)
        };
        if is_inbound || before.into_iter().any(stands_for) {
            facts[position].aside = true;
        }
    }
}

/// What admission may know of a pool, as of now.
pub(crate) fn facts_of<'a>(pool: &'a PoolShared, request: &TaskRequest, policy: &Policy) -> PoolFacts<'a> {
    let state = pool.state();
    let (wait, advice) = pool.expected_wait(request.priority, Some((&request.client_id, policy.weight)));
    PoolFacts {
        id: &pool.id,
        engine: &pool.config.engine,
        spec: pool.revision().spec.clone(),
        ctx: Tokens(pool.model.ctx.load(Relaxed)),
        workloads: &pool.config.workloads,
        bytes_per_token: pool.config.bytes_per_token,
        state,
        aliases: &pool.config.aliases,
        aside: false,
        room: pool.has_room(request.priority),
        allowed: policy.allows(pool.allowed_as()) && request.may_use(pool.allowed_as()),
        wait,
        advice,
        next_try: if state.takes_tasks() { None } else { pool.next_try() },
    }
}
