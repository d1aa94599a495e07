//! The one interpreter of the restart rule: each supervisor has a [`Children`] table and obeys its answers.
//!
//! Owns which children there are, which incarnation lives, and their restart records. `core::pool::restart` decides;
//! this file connects its decisions with ractor's events. A supervisor never lets ractor's default act, which is to die
//! with any child. Children are started left to right and stopped right to left.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use ractor::{ActorCell, ActorId, ActorProcessingErr, SpawnErr, SupervisionEvent};

use crate::core::pool::restart::{Backoff, Breaker, Decision, Excess, RestartHistory, RestartPolicy};
use crate::core::task::trace::TraceKind;
use crate::core::units::Timestamp;
use crate::env::Env;

/// The rule of a pool's supervisor for its bookkeepers, all together, as in Erlang/OTP: their state is rebuilt from the
/// ledger, so they come back at once. More than twenty restarts in ten seconds are a bug that a restart does not cure.
pub(crate) const PERMANENT_CHILDREN: RestartPolicy =
    RestartPolicy { intensity: 20, period: Duration::from_secs(10), backoff: Backoff::NONE, excess: Excess::Escalate };

/// The rule of the root for its children, all together: a window that lets pools be rebuilt a few times a minute.
pub(crate) const SUPERVISORS: RestartPolicy =
    RestartPolicy { intensity: 20, period: Duration::from_secs(60), backoff: Backoff::NONE, excess: Excess::Escalate };

/// The rule of the guardian for the root.
pub(crate) const ROOT: RestartPolicy =
    RestartPolicy { intensity: 10, period: Duration::from_secs(60), backoff: Backoff::NONE, excess: Excess::Escalate };

/// The reason of an actor's end that was asked for.
pub(crate) const STOPPED: &str = "stopped";

/// What a supervisor is to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<K> {
    /// Nothing.
    Nothing,
    /// Start this child now.
    Start(K),
    /// Start this child after a while, if `generation` is still its newest.
    StartLater {
        /// Which.
        key: K,
        /// Its generation now.
        generation: u64,
        /// The wait.
        after: Duration,
        /// Whether the wait is that of an open breaker.
        breaker: Breaker,
    },
    /// Fail, so that the next supervisor decides.
    Escalate(K),
}

struct Child<K> {
    key: K,
    name: String,
    /// Its own record, of a child with a breaker; all others share their supervisor's.
    history: Option<RestartHistory>,
    cell: Option<ActorCell>,
    /// Counts this child's lives and deaths; a delayed start of an older generation is void.
    generation: u64,
}

/// The children of one supervisor, in start order.
pub(crate) struct Children<K> {
    env: Env,
    table: Vec<Child<K>>,
    /// The restarts of all children without a breaker.
    shared: RestartHistory,
}

impl<K: Copy + PartialEq> Children<K> {
    /// No children yet; `policy` is for all that will have no breaker of their own.
    pub(crate) fn new(env: Env, policy: RestartPolicy) -> Self {
        Children { env, table: Vec::new(), shared: RestartHistory::new(policy) }
    }

    /// Declares a child. The order of declaration is the order of start.
    pub(crate) fn declare(&mut self, key: K, name: impl Into<String>) {
        self.declare_with(key, name, None);
    }

    /// Declares a child with a breaker: what it does is held against it alone.
    pub(crate) fn declare_with_breaker(&mut self, key: K, name: impl Into<String>, policy: RestartPolicy) {
        self.declare_with(key, name, Some(RestartHistory::new(policy)));
    }

    fn declare_with(&mut self, key: K, name: impl Into<String>, history: Option<RestartHistory>) {
        self.table.push(Child { key, name: name.into(), history, cell: None, generation: 0 });
    }

    /// Whether a child of this name was declared.
    pub(crate) fn knows(&self, key: K) -> bool {
        self.table.iter().any(|child| child.key == key)
    }

    /// A child that has ended is none any more.
    pub(crate) fn forget(&mut self, key: K) {
        self.table.retain(|child| child.key != key);
    }

    /// Notes that a child has been started.
    pub(crate) fn started(&mut self, key: K, cell: ActorCell) {
        let Some(child) = self.table.iter_mut().find(|child| child.key == key) else { return };
        child.cell = Some(cell);
        child.generation += 1;
        if let Some(history) = &mut child.history {
            history.on_started();
        }
        self.env.trace(|| TraceKind::ActorStarted { actor: child.name.clone() });
    }

    /// Gives a child that is dead, or about to be replaced, a clean record. Its delayed start, if one is due, is void.
    pub(crate) fn renew(&mut self, key: K) {
        if let Some(child) = self.table.iter_mut().find(|child| child.key == key) {
            child.history = child.history.take().map(|history| RestartHistory::new(*history.policy()));
            child.generation += 1;
        }
    }

    /// Whether a delayed start is still wanted.
    pub(crate) fn is_due(&self, key: K, generation: u64) -> bool {
        self.table.iter().any(|child| child.key == key && child.generation == generation && child.cell.is_none())
    }

    /// The child that an event says is dead, if it is one of ours and of its newest life.
    pub(crate) fn dead(&mut self, event: &SupervisionEvent) -> Option<K> {
        let (id, cause) = death(event)?;
        let child = self.table.iter_mut().find(|child| is_incarnation(child, id))?;
        child.cell = None;
        child.generation += 1;
        if cause == STOPPED {
            tracing::debug!(actor = %child.name, "an actor has been stopped");
        } else {
            tracing::warn!(actor = %child.name, %cause, "an actor has died");
        }
        self.env.trace(|| TraceKind::ActorDied { actor: child.name.clone() });
        Some(child.key)
    }

    /// Notes since when a child that has just died had been healthy; `None` if it never was.
    pub(crate) fn was_healthy(&mut self, key: K, since: Option<Timestamp>) {
        let child = self.table.iter_mut().find(|child| child.key == key);
        if let (Some(history), Some(since)) = (child.and_then(|child| child.history.as_mut()), since) {
            history.on_healthy(since);
        }
    }

    /// Asks the rule about a child that is dead, or could not be started.
    pub(crate) fn after_death(&mut self, key: K) -> Next<K> {
        let (now, roll) = (self.env.now(), self.env.random());
        let Some(child) = self.table.iter_mut().find(|child| child.key == key) else { return Next::Nothing };
        let history = child.history.as_mut().unwrap_or(&mut self.shared);
        match history.on_exit(now, roll) {
            Decision::Escalate => Next::Escalate(key),
            Decision::Restart { after: Duration::ZERO } => Next::Start(key),
            Decision::Restart { after } => {
                let (generation, breaker) = (child.generation, history.breaker());
                Next::StartLater { key, generation, after, breaker }
            }
        }
    }

    /// The living children that `wanted` names, last started first: the order in which to stop them.
    pub(crate) fn living(&self, wanted: impl Fn(K) -> bool) -> Vec<ActorCell> {
        let wanted = self.table.iter().rev().filter(|child| wanted(child.key));
        wanted.filter_map(|child| child.cell.clone()).collect()
    }
}

/// Kills actors in a fixed order when it is dropped by a panic. ractor kills the children of a dead supervisor in the
/// order of a hash map, and what they leave behind would then come back in another order each time.
pub(crate) struct KillInOrder(pub(crate) Vec<ActorCell>);

impl KillInOrder {
    /// Kills them now: the supervisor is about to fail.
    pub(crate) fn kill(&self) {
        self.0.iter().for_each(ActorCell::kill);
    }
}

impl Drop for KillInOrder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill();
        }
    }
}

/// Who has died, and why, in words.
pub(crate) fn death(event: &SupervisionEvent) -> Option<(ActorId, String)> {
    match event {
        SupervisionEvent::ActorFailed(cell, error) => Some((cell.get_id(), error.to_string())),
        SupervisionEvent::ActorTerminated(cell, _, reason) => Some((cell.get_id(), reason.clone().unwrap_or_default())),
        _ => None,
    }
}

fn is_incarnation<K>(child: &Child<K>, id: ActorId) -> bool {
    child.cell.as_ref().is_some_and(|cell| cell.get_id() == id)
}

/// A supervisor, as far as bringing children back goes: it knows how to start one, and how to wait.
pub(crate) trait Supervisor: Send {
    /// The names of its children.
    type Key: Copy + PartialEq + Debug + Send;

    /// Its children.
    fn children(&mut self) -> &mut Children<Self::Key>;

    /// Starts one child and tells everybody where it is.
    fn start(&mut self, key: Self::Key) -> impl Future<Output = Result<ActorCell, SpawnErr>> + Send;

    /// Arranges that the child is started when `after` is over, if `generation` is still its newest.
    fn start_later(&mut self, key: Self::Key, generation: u64, after: Duration, breaker: Breaker);

    /// Starts every child that `wanted` names, left to right.
    ///
    /// # Errors
    /// The first child that could not be started.
    fn start_all(
        &mut self,
        wanted: impl Fn(Self::Key) -> bool + Send,
    ) -> impl Future<Output = Result<(), SpawnErr>> + Send {
        async move {
            let keys = self.children().table.iter().map(|child| child.key);
            let keys: Vec<Self::Key> = keys.filter(|key| wanted(*key)).collect();
            for key in keys {
                let cell = self.start(key).await?;
                self.children().started(key, cell);
            }
            Ok(())
        }
    }

    /// Does what the rule says, until the child has started, waits, or the supervisor has to fail.
    ///
    /// # Errors
    /// When the rule says so: pass it on, so that the next supervisor decides.
    fn restart_child(
        &mut self,
        mut next: Next<Self::Key>,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        async move {
            loop {
                next = match next {
                    Next::Nothing => return Ok(()),
                    Next::Start(key) => match self.start(key).await {
                        Ok(cell) => {
                            self.children().started(key, cell);
                            return Ok(());
                        }
                        Err(error) => {
                            tracing::error!(child = ?key, %error, "a child could not be started");
                            self.children().after_death(key)
                        }
                    },
                    Next::StartLater { key, generation, after, breaker } => {
                        self.start_later(key, generation, after, breaker);
                        return Ok(());
                    }
                    Next::Escalate(key) => return Err(format!("{key:?} failed too often").into()),
                };
            }
        }
    }
}
