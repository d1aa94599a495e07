//! The sessions actor: owns the short-lived conversations, and which replica served each of them last.
//!
//! Admission sends it the tasks of conversations, which it passes on to their queue with that replica noted; attempts
//! tell it who served. What it knows is a hint: after a restart it knows nothing, and conversations start cold.
//!
//! Spec: ORCH-3009.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::pool::messages::{QueueMsg, Submission};
use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::{SessionView, SessionsMsg};
use crate::actors::task::event_log::ReplicaIdentity;
use crate::core::admission::kept::Kept;
use crate::core::id::{ClientId, SessionId};
use crate::core::units::Timestamp;

/// The actor.
pub(crate) struct Sessions;

/// Conversations are told apart by client too: nobody reaches into another's by guessing its id.
type Key = (ClientId, SessionId);

struct Session {
    /// Who served it last. A worker's next life is another: its cache is empty.
    served_by: Option<Arc<ReplicaIdentity>>,
    /// The pool whose queue has its tasks, by position. One queue, so that one task of it runs at a time.
    pool: Option<u16>,
    tasks: u64,
    used_at: Timestamp,
    /// The entry in `by_use`.
    turn: u64,
}

/// Its state.
pub(crate) struct SessionsState {
    runtime: Arc<RuntimeShared>,
    sessions: BTreeMap<Key, Session>,
    /// The conversation used longest ago first. Invariant: one entry for each of `sessions`, under its `turn`.
    by_use: BTreeMap<u64, Key>,
    /// The same of each client.
    kept: Kept<SessionId>,
    next_turn: u64,
}

impl Actor for Sessions {
    type Msg = SessionsMsg;
    type State = SessionsState;
    type Arguments = Arc<RuntimeShared>;

    async fn pre_start(
        &self,
        _: ActorRef<SessionsMsg>,
        runtime: Arc<RuntimeShared>,
    ) -> Result<SessionsState, ActorProcessingErr> {
        Ok(SessionsState::new(runtime))
    }

    async fn handle(
        &self,
        _: ActorRef<SessionsMsg>,
        message: SessionsMsg,
        state: &mut SessionsState,
    ) -> Result<(), ActorProcessingErr> {
        state.runtime.env.fault_point("sessions");
        state.expire();
        match message {
            SessionsMsg::Locate { session, pool, submission } => on_locate(state, session, &pool, submission),
            SessionsMsg::Served { session, client, identity } => {
                #[cfg(feature = "cluster")]
                state.runtime.warmed.note(&identity, &client, &session);
                state.touch((client, session)).served_by = Some(identity);
            }
            #[cfg(feature = "cluster")]
            SessionsMsg::ServedElsewhere(served) => {
                for (client, session, identity) in served {
                    let key = (client, session);
                    // None of its own makes room for what others say.
                    if state.sessions.contains_key(&key) || !state.is_full() {
                        state.touch(key).served_by = Some(identity);
                    }
                }
            }
            SessionsMsg::Observe { session, client, reply } => {
                let _ = reply.send(state.observe(&(client, session)));
            }
            SessionsMsg::Forget { session, client, reply } => {
                let key = (client, session);
                let seen = state.observe(&key);
                state.forget(&key);
                let _ = reply.send(seen);
            }
        }
        Ok(())
    }
}

fn on_locate(state: &mut SessionsState, session: SessionId, routed: &Arc<PoolShared>, submission: Submission) {
    let record = submission.record.clone();
    let key = (record.request.client_id.clone(), session);
    let bound = state.sessions.get(&key).and_then(|known| state.runtime.pools.table().get(known.pool?).cloned());
    // It stays with its pool, as long as that takes tasks and gives the same tokens.
    let stays =
        |pool: &Arc<PoolShared>| pool.state().takes_tasks() && pool.is_same_set(routed) && record.may_use(&**pool);
    let pool = bound.filter(stays).unwrap_or_else(|| routed.clone());
    if !Arc::ptr_eq(&pool, routed) {
        record.reroute(pool.clone());
    }
    let entry = state.touch(key);
    entry.tasks += 1;
    entry.pool = Some(pool.position);
    if let Some(served_by) = &entry.served_by {
        record.set_affinity(served_by.clone());
    }
    pool.actors.queue.cast(QueueMsg::Enqueue(submission)); // Undelivered: the caller sends it again.
}

impl SessionsState {
    fn new(runtime: Arc<RuntimeShared>) -> Self {
        let kept = Kept::new(runtime.config().sessions.capacity.into(), 0);
        SessionsState { runtime, sessions: BTreeMap::new(), by_use: BTreeMap::new(), kept, next_turn: 0 }
    }

    /// The conversation, opened if need be, as the one used last. Whoever has most makes room.
    fn touch(&mut self, key: Key) -> &mut Session {
        let turn = self.next_turn;
        self.next_turn += 1;
        if let Some(old) = self.sessions.get(&key).map(|session| session.turn) {
            self.leave(old, &key.0);
        }
        let weight = self.runtime.clients.get(&key.0).policy().weight;
        self.kept.insert(&key.0, weight, turn, (0, key.1.clone()));
        self.by_use.insert(turn, key.clone());
        self.make_room(turn);
        let now = self.runtime.env.now();
        let session =
            self.sessions.entry(key).or_insert(Session { served_by: None, pool: None, tasks: 0, used_at: now, turn });
        (session.used_at, session.turn) = (now, turn);
        session
    }

    /// The client with most conversations by its weight forgets the one that it has used longest ago, while there are
    /// too many. The one that is used now, at this turn, stays.
    fn make_room(&mut self, turn: u64) {
        self.kept.set_count_max(self.runtime.config().sessions.capacity.into());
        while let Some(key) = self.kept.evict_beside(turn) {
            self.forget(&key);
        }
    }

    /// Takes a conversation out of the orders of use.
    fn leave(&mut self, turn: u64, client: &ClientId) {
        self.by_use.remove(&turn);
        self.kept.remove(client, turn);
    }

    #[cfg(feature = "cluster")]
    fn is_full(&self) -> bool {
        self.sessions.len() >= self.runtime.config().sessions.capacity as usize
    }

    fn forget(&mut self, key: &Key) {
        if let Some(session) = self.sessions.remove(key) {
            self.leave(session.turn, &key.0);
        }
    }

    /// Forgets what nobody has used for the configured time.
    fn expire(&mut self) {
        let (now, ttl) = (self.runtime.env.now(), self.ttl());
        while let Some((_, key)) = self.by_use.first_key_value() {
            if self.sessions.get(key).is_some_and(|session| now.since(session.used_at) < ttl) {
                break;
            }
            let key = key.clone();
            self.forget(&key);
        }
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.runtime.config().sessions.ttl_ms)
    }

    fn observe(&self, key: &Key) -> Option<SessionView> {
        let session = self.sessions.get(key)?;
        let idle = self.runtime.env.now().since(session.used_at);
        Some(SessionView {
            session_id: key.1.clone(),
            client_id: key.0.clone(),
            replica_id: session.served_by.as_ref().map(|identity| identity.replica.clone()),
            tasks: session.tasks,
            expires_in_ms: self.ttl().saturating_sub(idle).as_millis() as u64,
        })
    }
}
