//! The clients: what each may do, and what it uses of that now. Outlives every actor.
//!
//! A record carries its client's entry; whatever takes from a limit is noted in the record and given back when the record is
//! sealed, so nothing has to be recounted when an actor dies. A client without limits has no entry of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::actors::queue::QueueMsg;
use crate::actors::shared::PoolShared;
use crate::config::{ClientConfig, Config};
use crate::core::id::ClientId;
use crate::core::limits::{Exceeded, Limits, Quotas, Take, Usage};
use crate::core::units::{Timestamp, Tokens};

/// Clients that are not in the configuration and whose limits are kept. Beyond them the one that was seen longest ago and
/// has no task is forgotten, and starts afresh.
const STRANGERS_MAX: usize = 65_536;

/// Clients that are looked at for each new one beyond the bound.
const LOOKS: usize = 3;

/// What a client may do.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) weight: u32,
    /// The pools that it may use, by position; `None` is all.
    pools: Option<Vec<u16>>,
    limits: Limits,
    quotas: Quotas,
}

impl Policy {
    fn new(client: &ClientConfig, config: &Config) -> Arc<Self> {
        let position = |name: &String| config.pools.iter().position(|pool| pool.id == *name).map(|at| at as u16);
        let pools = client.pools.as_ref().map(|names| names.iter().filter_map(position).collect());
        let (limits, quotas) = (client.limits.limits(), client.quotas.quotas());
        Arc::new(Policy { weight: client.weight, pools, limits, quotas })
    }

    /// Whether nothing has to be counted.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.limits == Limits::default() && self.quotas == Quotas::default()
    }

    /// Whether the client may use this pool.
    pub(crate) fn allows(&self, pool: u16) -> bool {
        self.pools.as_ref().is_none_or(|pools| pools.contains(&pool))
    }
}

/// One client. What it uses is counted only where something limits it: only then a record has a
/// [`Claim`](super::claim::Claim).
pub(crate) struct ClientShared {
    pub(crate) policy: Arc<Policy>,
    /// A short lock, taken when a task of this client comes, starts or ends.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    usage: Usage,
    /// Pools that pass this client over until it may run more.
    held_in: Vec<Arc<PoolShared>>,
}

impl ClientShared {
    fn new(policy: Arc<Policy>) -> Arc<Self> {
        Arc::new(ClientShared { policy, state: Mutex::default() })
    }

    /// Takes a new task in, to wait.
    pub(crate) fn admit(&self, now: Timestamp, take: Take) -> Result<(), Exceeded> {
        self.state.lock().usage.admit(&self.policy.limits, &self.policy.quotas, now, take)
    }

    /// Begins to run a waiting task. When the quotas do not allow it, `pool` is told as soon as they may.
    pub(crate) fn start(&self, take: Take, pool: &Arc<PoolShared>) -> bool {
        let mut state = self.state.lock();
        let starts = state.usage.start(&self.policy.quotas, take);
        if !starts && !state.held_in.iter().any(|held| Arc::ptr_eq(held, pool)) {
            state.held_in.push(pool.clone());
        }
        starts
    }

    /// A task was not accepted after all.
    pub(crate) fn undo(&self, take: Take) {
        self.change(|usage| usage.undo(take), None);
    }

    /// A task ends while it waits.
    pub(crate) fn leave_queue(&self, unused: Tokens) {
        self.change(|usage| usage.leave_queue(unused), None);
    }

    /// A running task waits again.
    pub(crate) fn give_back(&self, client: &ClientId, take: Take) {
        self.change(|usage| usage.give_back(take), Some(client));
    }

    /// A running task ends.
    pub(crate) fn end(&self, client: &ClientId, take: Take, unused: Tokens) {
        self.change(|usage| usage.end(take, unused), Some(client));
    }

    /// Changes what is used; with `released`, tells the pools that passed this client over.
    fn change(&self, change: impl FnOnce(&mut Usage), released: Option<&ClientId>) {
        let mut state = self.state.lock();
        change(&mut state.usage);
        let Some(client) = released else { return };
        let held_in = std::mem::take(&mut state.held_in);
        drop(state);
        for pool in held_in {
            pool.queue.cast(QueueMsg::Release { client: client.clone() }); // Lost: a new queue passes nobody over.
        }
    }
}

/// All clients of one runtime.
pub(crate) struct Clients {
    listed: BTreeMap<ClientId, Arc<ClientShared>>,
    /// Stands for every client that is not listed, when nothing has to be counted for it.
    unlimited: Option<Arc<ClientShared>>,
    default: Arc<Policy>,
    /// Clients that are not listed, each with its own limits. One short lock for each of their tasks.
    strangers: Mutex<Strangers>,
}

#[derive(Default)]
struct Strangers {
    known: HashMap<ClientId, (u64, Arc<ClientShared>)>,
    /// The client seen longest ago first. Invariant: one entry for each of `known`, under its turn.
    by_use: BTreeMap<u64, ClientId>,
    next_turn: u64,
}

impl Clients {
    pub(crate) fn new(config: &Config) -> Self {
        let listed = config.clients.iter().filter_map(|(name, client)| {
            let id = ClientId::parse(name).ok()?; // Checked with the configuration.
            Some((id, ClientShared::new(Policy::new(client, config))))
        });
        let default = Policy::new(&config.default_client, config);
        let unlimited = default.is_unlimited().then(|| ClientShared::new(default.clone()));
        Clients { listed: listed.collect(), unlimited, default, strangers: Mutex::default() }
    }

    /// The entry of this client.
    pub(crate) fn get(&self, client: &ClientId) -> Arc<ClientShared> {
        if let Some(listed) = self.listed.get(client) {
            return listed.clone();
        }
        match &self.unlimited {
            Some(shared) => shared.clone(),
            None => self.strangers.lock().touch(client, &self.default),
        }
    }
}

impl Strangers {
    fn touch(&mut self, client: &ClientId, policy: &Arc<Policy>) -> Arc<ClientShared> {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.by_use.insert(turn, client.clone());
        if let Some((used, shared)) = self.known.get_mut(client) {
            self.by_use.remove(&std::mem::replace(used, turn));
            return shared.clone();
        }
        // Several are looked at for each that comes: one with a task stays, and must not make the table grow for good.
        for _ in 0..LOOKS {
            if self.known.len() < STRANGERS_MAX {
                break;
            }
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            let idle = self.known.get(&oldest).is_some_and(|(_, shared)| Arc::strong_count(shared) == 1);
            if idle {
                self.known.remove(&oldest);
            } else if let Some((used, _)) = self.known.get_mut(&oldest) {
                *used = self.next_turn;
                self.by_use.insert(self.next_turn, oldest);
                self.next_turn += 1;
            }
        }
        let shared = ClientShared::new(policy.clone());
        self.known.insert(client.clone(), (turn, shared.clone()));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_bounded_and_one_with_a_task_is_not_forgotten() {
        let config = Config {
            default_client: ClientConfig {
                quotas: crate::config::QuotaConfig { queued: Some(1), ..Default::default() },
                ..Default::default()
            },
            ..Config::default()
        };
        let clients = Clients::new(&config);
        let name = |number: usize| ClientId::parse(&format!("c{number}")).expect("valid");
        let busy = clients.get(&name(0));
        for number in 1..STRANGERS_MAX + 100 {
            clients.get(&name(number));
        }
        assert!(Arc::ptr_eq(&busy, &clients.get(&name(0))), "the busy one is known");
        let strangers = clients.strangers.lock();
        assert!(strangers.known.len() <= STRANGERS_MAX + 1);
        assert_eq!(strangers.known.len(), strangers.by_use.len());
    }
}
