//! Where a task goes, whose it is, and what it takes from its client: the part of a record that admission and queue
//! use.

use std::sync::Arc;

use crate::actors::quota::clients::Waiter;
use crate::actors::quota::reservation::Reservation;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::actors::task::home::{Home, Route};
use crate::actors::task::record::TaskRecord;
use crate::core::admission::limits::{Demand, Exceeded};
use crate::core::fairness::Size;
use crate::core::id::{PoolId, SessionId};
use crate::core::queue::Arrival;
use crate::core::task::Phase;
use crate::core::units::{Timestamp, Tokens};
use crate::planted::seeded_bug;

impl TaskRecord {
    /// Notes where the task goes, and takes its part of its client's limits. A task that is sent again keeps its part.
    pub(crate) fn set_route(&self, route: Route, now: Timestamp, take: Demand) -> Result<(), Exceeded> {
        let mut state = self.state.lock();
        if state.phase == Phase::Submitted && state.holdings.claim.is_none() && !route.client.policy().is_unlimited() {
            state.holdings.claim = Some(Reservation::new(route.client.clone(), now, take)?);
        }
        state.routing.route = Some(route);
        Ok(())
    }

    /// It is an attempt of another node's: nothing of it is counted against its client here.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_inbound(&self) {
        self.state.lock().routing.is_inbound = true;
    }

    /// Whether it is an attempt of another node's.
    pub(crate) fn is_inbound(&self) -> bool {
        self.state.lock().routing.is_inbound
    }

    /// Sends the task to another pool of the same replica set instead.
    pub(crate) fn reroute(&self, pool: Arc<dyn Home>) {
        if let Some(route) = &mut self.state.lock().routing.route {
            route.pool = pool;
        }
    }

    /// Notes which replica served the task's session last.
    pub(crate) fn set_affinity(&self, served_by: Arc<ReplicaIdentity>) {
        self.state.lock().routing.affinity = Some(served_by);
    }

    /// The replica that served the task's session last, and the one that had its last attempt, if they are of this
    /// pool.
    pub(crate) fn inclinations(&self, pool: &PoolId) -> (Option<u16>, Option<u16>) {
        let state = self.state.lock();
        let index = |identity: &Option<Arc<ReplicaIdentity>>| {
            let replica = identity.as_ref().map(|identity| &identity.replica);
            replica.filter(|replica| replica.pool == *pool).map(|replica| replica.index)
        };
        (index(&state.routing.affinity), index(&state.identity))
    }

    /// The pool of that replica.
    pub(crate) fn warm_pool(&self) -> Option<PoolId> {
        let state = self.state.lock();
        state
            .routing
            .affinity
            .as_ref()
            .filter(|_| !state.routing.was_sent_to_warm)
            .map(|identity| identity.replica.pool.clone())
    }

    /// Notes that the task is being sent to that pool unasked. Returns whether it is for the first time.
    pub(crate) fn send_to_warm(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().routing.was_sent_to_warm, true)
    }

    /// The pool whose queue has the task.
    pub(crate) fn home(&self) -> Option<Arc<dyn Home>> {
        self.state.lock().routing.route.as_ref().map(|route| route.pool.clone())
    }

    /// Where the task stands, and in which pool's queue by position.
    pub(crate) fn place(&self) -> (Phase, Option<u16>) {
        let state = self.state.lock();
        (state.phase, state.routing.route.as_ref().map(|route| route.pool.number()))
    }

    /// The conversation that the task belongs to.
    pub(crate) fn session(&self) -> Option<&SessionId> {
        self.request.session_id.as_ref()
    }

    /// The task as its queue takes it.
    pub(crate) fn arrival(&self) -> Arrival<'_> {
        let request = &*self.request;
        let (prompt, weight) = {
            let state = self.state.lock();
            let route = state.routing.route.as_ref();
            route.map_or((Tokens(0), 1), |route| (route.prompt_tokens, route.client.policy().weight))
        };
        let size = Size::new(prompt, request.max_tokens, request.expected_tokens);
        let (client, session) = (&request.client_id, request.session_id.as_ref());
        Arrival { seq: self.seq, class: request.priority, client, weight, session, size }
    }

    /// Tokens that it may come to need in an engine's KV cache: its prompt and its budget.
    pub(crate) fn kv_tokens(&self) -> u64 {
        let prompt = self.state.lock().routing.route.as_ref().map_or(Tokens(0), |route| route.prompt_tokens);
        u64::from((prompt + self.request.max_tokens).0)
    }

    /// Whether its client may use this pool.
    pub(crate) fn may_use(&self, pool: &impl Home) -> bool {
        let state = self.state.lock();
        let name = pool.allowed_as();
        let goes_on = state.routing.is_inbound && pool.is_remote(); // It was sent here to be run here.
        !goes_on
            && self.request.may_use(name)
            && state.routing.route.as_ref().is_some_and(|route| route.client.policy().allows(name))
    }

    /// Whether its client's quotas allow it to run now; if so it counts as running. Else `pool` is told as soon as they
    /// may. A task that has ended may always leave its queue.
    pub(crate) fn may_run<W: Waiter + 'static>(&self, pool: &Arc<W>) -> bool {
        if seeded_bug!(IgnoreQuota) {
            return true;
        }
        self.state.lock().holdings.claim.as_mut().is_none_or(|claim| claim.start(pool))
    }
}
