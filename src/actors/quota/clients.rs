//! The clients: what each may do, and what it uses of that now. Outlives every actor.
//!
//! A record carries its client's entry; whatever takes from a limit is noted in the record and given back when the
//! record is sealed, so nothing has to be recounted when an actor dies. A client without limits has no entry of its
//! own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
#[cfg(feature = "cluster")]
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::{Mutex, RwLock};

use crate::config::{ClientConfig, Config};
#[cfg(feature = "cluster")]
use crate::core::admission::limits::Held;
use crate::core::admission::limits::{Demand, Exceeded, Limits, Quotas, Usage};
use crate::core::id::{ClientId, PoolId};
use crate::core::units::{Timestamp, Tokens};

/// Clients that are not in the configuration and whose limits are kept. Beyond them the one that was seen longest ago
/// and has no task is forgotten, and starts afresh.
const STRANGERS_MAX: usize = 65_536;

/// Clients that are looked at for each new one beyond the bound.
const LOOKS: usize = 3;

/// What a client may do.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) weight: u32,
    /// The pools that it may use; `None` is all.
    pools: Option<Vec<PoolId>>,
    limits: Limits,
    quotas: Quotas,
}

impl Policy {
    fn new(client: &ClientConfig) -> Arc<Self> {
        let pools =
            client.pools.as_ref().map(|names| names.iter().filter_map(|name| PoolId::parse(name).ok()).collect());
        let (limits, quotas) = (client.limits.limits(), client.quotas.quotas());
        Arc::new(Policy { weight: client.weight, pools, limits, quotas })
    }

    /// Whether nothing has to be counted.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.limits == Limits::default() && self.quotas == Quotas::default()
    }

    /// Whether the client may use this pool.
    pub(crate) fn allows(&self, pool: &PoolId) -> bool {
        self.pools.as_ref().is_none_or(|pools| pools.contains(pool))
    }
}

/// One client. What it uses is counted only where something limits it: only then a record has a
/// [`Reservation`](crate::actors::quota::reservation::Reservation).
pub(crate) struct ClientShared {
    /// Written when the configuration changes.
    policy: RwLock<Arc<Policy>>,
    /// A short lock, taken when a task of this client comes, starts or ends.
    state: Mutex<State>,
    /// The part of its limits that is this node's, in millionths; 0 for that of every client of whom nothing is known.
    #[cfg(feature = "cluster")]
    pub(crate) share: AtomicU32,
    /// The same of its quotas.
    #[cfg(feature = "cluster")]
    quota_share: AtomicU32,
    #[cfg(feature = "cluster")]
    even: Even,
    /// Tasks that it has asked for since somebody last looked.
    #[cfg(feature = "cluster")]
    pub(crate) demand: AtomicU32,
}

#[derive(Default)]
struct State {
    usage: Usage,
    /// Pools that pass this client over until it may run more.
    held_in: Vec<Arc<dyn Waiter>>,
    /// What it has in use at other nodes.
    #[cfg(feature = "cluster")]
    elsewhere: Held,
}

impl ClientShared {
    #[cfg_attr(not(feature = "cluster"), expect(unused_variables, reason = "one node has the whole of every limit"))]
    fn new(policy: Arc<Policy>, even: &Even) -> Arc<Self> {
        Arc::new(ClientShared {
            policy: RwLock::new(policy),
            state: Mutex::default(),
            #[cfg(feature = "cluster")]
            share: AtomicU32::new(0),
            #[cfg(feature = "cluster")]
            quota_share: AtomicU32::new(0),
            #[cfg(feature = "cluster")]
            even: even.clone(),
            #[cfg(feature = "cluster")]
            demand: AtomicU32::new(0),
        })
    }

    /// The same client with the same weight, and nothing counted: for a task whose limits another node counts.
    pub(crate) fn for_inbound(&self) -> Arc<Self> {
        let weight = self.policy().weight;
        let policy = Policy { weight, pools: None, limits: Limits::default(), quotas: Quotas::default() };
        Self::new(Arc::new(policy), &Even::default())
    }

    /// What it may do, as of now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.read().clone()
    }

    /// Takes a new task in, to wait.
    pub(crate) fn admit(&self, now: Timestamp, take: Demand) -> Result<(), Exceeded> {
        let policy = self.policy();
        #[cfg(not(feature = "cluster"))]
        let limits = policy.limits;
        #[cfg(feature = "cluster")]
        let limits = {
            self.demand.fetch_add(1, Relaxed);
            policy.limits.part(self.or_even(&self.share))
        };
        let mut state = self.state.lock();
        #[cfg(not(feature = "cluster"))]
        let quotas = policy.quotas;
        #[cfg(feature = "cluster")]
        let quotas = {
            let part = policy.quotas.part(self.or_even(&self.quota_share), state.elsewhere);
            // A task that needs more than a part may have come to the wrong node; one that needs more than all has not.
            Quotas { memory_bytes: policy.quotas.memory_bytes, ..part }
        };
        match (state.usage.admit(&limits, &quotas, now, take), policy.quotas.queued) {
            (Err(Exceeded::Queued(part)), Some(whole)) if part < whole => Err(Exceeded::QueuedHere(part, whole)),
            (admitted, _) => admitted,
        }
    }

    /// A share, or the even one as long as nothing is known.
    #[cfg(feature = "cluster")]
    fn or_even(&self, share: &AtomicU32) -> u32 {
        match share.load(Relaxed) {
            0 => self.even.load(Relaxed),
            share => share,
        }
    }

    /// What it has in use here.
    #[cfg(feature = "cluster")]
    pub(crate) fn held(&self) -> Held {
        self.state.lock().usage.held()
    }

    /// Another part of its quotas is this node's from now on, and so much is in use at others. Pools that passed it
    /// over look again.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_quotas(&self, client: &ClientId, share: u32, elsewhere: Held) {
        self.quota_share.store(share, Relaxed);
        self.state.lock().elsewhere = elsewhere;
        self.change(|_| {}, Some(client));
    }

    /// Begins to run a waiting task. When the quotas do not allow it, `pool` is told as soon as they may.
    pub(crate) fn start<W: Waiter + 'static>(&self, take: Demand, pool: &Arc<W>) -> bool {
        let policy = self.policy();
        let mut state = self.state.lock();
        #[cfg(not(feature = "cluster"))]
        let quotas = policy.quotas;
        #[cfg(feature = "cluster")]
        let quotas = policy.quotas.part_for(take, self.or_even(&self.quota_share), state.elsewhere);
        let starts = state.usage.start(&quotas, take);
        if !starts && !state.held_in.iter().any(|held| held.number() == pool.number()) {
            state.held_in.push(pool.clone());
        }
        starts
    }

    /// A task was not accepted after all.
    pub(crate) fn undo(&self, take: Demand) {
        self.change(|usage| usage.undo(take), None);
    }

    /// A task ends while it waits.
    pub(crate) fn leave_queue(&self, unused: Tokens) {
        self.change(|usage| usage.leave_queue(unused), None);
    }

    /// A running task waits again.
    pub(crate) fn give_back(&self, client: &ClientId, take: Demand) {
        self.change(|usage| usage.give_back(take), Some(client));
    }

    /// A running task ends.
    pub(crate) fn end(&self, client: &ClientId, take: Demand, unused: Tokens) {
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
            pool.release(client);
        }
    }
}

/// A pool whose queue passes a client over while that runs as much as it may.
pub(crate) trait Waiter: Send + Sync {
    /// Its number in the runtime.
    fn number(&self) -> u16;

    /// This client may run more.
    fn release(&self, client: &ClientId);
}

/// The part of its limits, in millionths, that this node has of a client of whom nothing is known: the whole, without a
/// cluster.
pub(crate) type Even = Arc<AtomicU32>;

/// All clients of one runtime.
pub(crate) struct Clients {
    pub(crate) even: Even,
    /// Written when the configuration changes.
    listed: RwLock<Listed>,
    /// Clients that are not listed, each with its own limits. One short lock for each of their tasks.
    strangers: Mutex<UnlistedClients>,
}

struct Listed {
    clients: BTreeMap<ClientId, Arc<ClientShared>>,
    /// Stands for every client that is not listed, when nothing has to be counted for it.
    unlimited: Option<Arc<ClientShared>>,
    default: Arc<Policy>,
}

#[derive(Default)]
struct UnlistedClients {
    known: HashMap<ClientId, (u64, Arc<ClientShared>)>,
    /// The client seen longest ago first. Invariant: one entry for each of `known`, under its turn.
    by_use: BTreeMap<u64, ClientId>,
    next_turn: u64,
}

impl Listed {
    fn new(config: &Config, even: &Even) -> Self {
        let clients = config.clients.iter().filter_map(|(name, client)| {
            let id = ClientId::parse(name).ok()?; // Checked with the configuration.
            Some((id, ClientShared::new(Policy::new(client), even)))
        });
        let default = Policy::new(&config.default_client);
        let unlimited = default.is_unlimited().then(|| ClientShared::new(default.clone(), even));
        Listed { clients: clients.collect(), unlimited, default }
    }
}

impl Clients {
    pub(crate) fn new(config: &Config) -> Self {
        let even = Arc::new(AtomicU32::new(1_000_000));
        let listed = RwLock::new(Listed::new(config, &even));
        Clients { even, listed, strangers: Mutex::default() }
    }

    /// Takes another configuration up. What clients use now stays counted. Their pools are told, since who had to wait
    /// may run now.
    pub(crate) fn update(&self, config: &Config) {
        let fresh = Listed::new(config, &self.even);
        let mut listed = self.listed.write();
        let before = std::mem::replace(&mut *listed, fresh);
        let mut strangers = self.strangers.lock();
        // Whoever has come to be listed brings what it uses along.
        let come = listed.clients.keys().filter(|id| !before.clients.contains_key(*id)).cloned().collect::<Vec<_>>();
        let come = come.into_iter().filter_map(|id| Some((id.clone(), strangers.take(&id)?))).collect::<Vec<_>>();
        for (id, known) in before.clients.into_iter().chain(come) {
            let policy = listed.clients.get(&id).map_or_else(|| listed.default.clone(), |client| client.policy());
            *known.policy.write() = policy;
            known.change(|_| {}, Some(&id));
            if let Some(entry) = listed.clients.get_mut(&id) {
                *entry = known;
            } else if listed.unlimited.is_none() {
                strangers.put(&id, known);
            } // Else it goes on as it is as long as it has tasks; nothing is counted for new ones.
        }
        if let (Some(known), Some(_)) = (&before.unlimited, &listed.unlimited) {
            *known.policy.write() = listed.default.clone();
            listed.unlimited = Some(known.clone());
        }
        // In the order of their use: a map's own would tell the pools in another order each time.
        for id in strangers.by_use.values() {
            let Some((_, shared)) = strangers.known.get(id) else { continue };
            *shared.policy.write() = listed.default.clone();
            shared.change(|_| {}, Some(id));
        }
    }

    /// Every client whose limits are counted and who is known, in the order of their names.
    #[cfg(feature = "cluster")]
    pub(crate) fn limited(&self) -> BTreeMap<ClientId, Arc<ClientShared>> {
        let listed = self.listed.read();
        let named = listed.clients.iter().filter(|(_, client)| !client.policy().is_unlimited());
        let mut limited: BTreeMap<_, _> = named.map(|(id, client)| (id.clone(), client.clone())).collect();
        if !listed.default.is_unlimited() {
            let strangers = self.strangers.lock();
            limited.extend(strangers.known.iter().map(|(id, (_, client))| (id.clone(), client.clone())));
        }
        limited
    }

    /// The entry of this client.
    pub(crate) fn get(&self, client: &ClientId) -> Arc<ClientShared> {
        let listed = self.listed.read();
        if let Some(known) = listed.clients.get(client) {
            return known.clone();
        }
        match &listed.unlimited {
            Some(shared) => shared.clone(),
            None => self.strangers.lock().touch(client, &listed.default, &self.even),
        }
    }
}

impl UnlistedClients {
    /// Lets one go, who has come to be listed.
    fn take(&mut self, client: &ClientId) -> Option<Arc<ClientShared>> {
        let (turn, shared) = self.known.remove(client)?;
        self.by_use.remove(&turn);
        Some(shared)
    }

    /// Takes one in, who is not listed any more.
    fn put(&mut self, client: &ClientId, shared: Arc<ClientShared>) {
        self.take(client);
        self.by_use.insert(self.next_turn, client.clone());
        self.known.insert(client.clone(), (self.next_turn, shared));
        self.next_turn += 1;
    }

    fn touch(&mut self, client: &ClientId, policy: &Arc<Policy>, even: &Even) -> Arc<ClientShared> {
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
        let shared = ClientShared::new(policy.clone(), even);
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
