//! What is shared around one link: what it is to say, the attempts on both of its ends, and how it does.
//!
//! The link actor owns the connection; whoever has something to say puts it here and nudges it, so that all that is
//! said while it is busy goes out together. A link is one life: when it is over it stays over, and everything on it is
//! lost at that moment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cluster::link::messages::LinkMsg;
use crate::cluster::link::protocol::{
    Asked, AttemptEnd, AttemptId, CREDIT_BYTES, CREDIT_TOKENS, LinkMessage, PoolAdvertisement, PoolCapacity,
};
use crate::core::cluster::node::{BootId, NodeName};
use crate::core::id::{ClientId, PoolId};
use crate::orchestrator::fabric::Address;
use crate::orchestrator::fabric::TaskRecord;
use crate::planted::seeded_bug;

/// What the gateway hears of an attempt that it has sent.
#[derive(Debug, PartialEq)]
pub(crate) enum InboundEvent {
    /// The owner has it, and it waits there.
    Waits,
    /// It has begun.
    Begun,
    /// Its tokens.
    Tokens(Vec<String>),
    /// Its end.
    End(AttemptEnd),
}

/// The gateway's side of an attempt.
#[derive(Default)]
pub(crate) struct TokenReceiver {
    heard: Mutex<VecDeque<InboundEvent>>,
    news: Notify,
    /// Tokens and bytes that are here and not taken up: more than the credit is a fault of the peer.
    unread: AtomicU64,
    unread_bytes: AtomicU64,
}

impl TokenReceiver {
    /// What was heard next; `None` when the link is over. What was heard before that counts.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub(crate) async fn next(&self, link: &LinkShared) -> Option<InboundEvent> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable(); // Before the look, so that nothing is missed.
            if let Some(heard) = self.heard.lock().pop_front() {
                return Some(heard);
            }
            if link.is_over() {
                return None;
            }
            news.await;
        }
    }

    /// Takes up tokens: they count no more against the credit.
    pub(crate) fn take_up(&self, tokens: u32, bytes: u32) {
        self.unread.fetch_sub(tokens.into(), Relaxed);
        self.unread_bytes.fetch_sub(bytes.into(), Relaxed);
    }

    fn put(&self, heard: InboundEvent) -> Result<(), String> {
        if let InboundEvent::Tokens(texts) = &heard {
            let bytes: usize = texts.iter().map(String::len).sum();
            let unread = self.unread.fetch_add(texts.len() as u64, Relaxed) + texts.len() as u64;
            let before = self.unread_bytes.fetch_add(bytes as u64, Relaxed);
            if unread > CREDIT_TOKENS.into() || before >= CREDIT_BYTES.into() {
                return Err(format!("{unread} tokens of one attempt are under way, {CREDIT_TOKENS} are allowed"));
            }
        }
        self.heard.lock().push_back(heard);
        self.news.notify_waiters();
        Ok(())
    }
}

/// The owner's side of an attempt.
pub(crate) struct InboundAttempt {
    pub(crate) pool: PoolId,
    /// Tokens and bytes that may still be sent.
    pub(crate) credit: Mutex<(u32, u32)>,
    pub(crate) more_credit: Notify,
    /// Set once its task is there.
    pub(crate) record: Mutex<Option<Arc<TaskRecord>>>,
    /// The gateway wants no more of it.
    pub(crate) is_stopped: AtomicBool,
}

#[derive(Default)]
struct Outbox {
    words: VecDeque<LinkMessage>,
    /// The link actor has been told that there is something.
    nudged: bool,
}

/// How a link does. Written by its actor.
#[derive(Debug, Default)]
pub(crate) struct LinkFigures {
    pub(crate) round_trip_us: AtomicU64,
    pub(crate) envelopes_in: AtomicU64,
    pub(crate) envelopes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Messages and bytes that wait or are under way.
    pub(crate) outbox_messages: AtomicU64,
    pub(crate) outbox_bytes: AtomicU64,
    /// Nothing has been heard for long.
    pub(crate) is_suspect: AtomicBool,
}

/// What a node has said of its clients' demand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    pub(crate) number: u64,
    /// The last number of ours that it has heard.
    pub(crate) heard: u64,
    pub(crate) asked: BTreeMap<ClientId, Asked>,
}

/// What the peer takes of ours in one pool.
#[derive(Clone, Copy, Debug, Default)]
struct AdvertisedCapacity {
    /// Places that were free when it said so, less those that ours have begun in since.
    free: u32,
    /// There was none: a place that one of ours leaves is another's.
    is_full: bool,
    /// One may wait there when there is none.
    one_may_wait: bool,
}

/// One link.
pub(crate) struct LinkShared {
    pub(crate) peer: NodeName,
    /// Which life of the peer it is.
    pub(crate) boot_id: BootId,
    pub(crate) protocol: u16,
    /// What each side shows with all that it says.
    pub(crate) secrets: LinkSecrets,
    pub(crate) actor: Address<LinkMsg>,
    outbox: Mutex<Outbox>,
    /// Attempts of ours that run there.
    pub(crate) outbound: Outbound,
    /// Attempts of the peer's that run here, in the order of their numbers.
    pub(crate) attempts: Mutex<BTreeMap<AttemptId, Arc<InboundAttempt>>>,
    /// What the peer has said of itself.
    pub(crate) advertised: Advertised,
    /// What clients with limits asked of the peer in its last second.
    pub(crate) demand: Mutex<Demand>,
    /// What the peer makes of what it was told may not be so any more: all limits are to be said again.
    pub(crate) must_say_limits: AtomicBool,
    /// Wakes who waits for a change of `cards` or for the end.
    pub(crate) changed: Notify,
    pub(crate) figures: LinkFigures,
    is_over: AtomicBool,
}

/// What the peer has said of itself.
pub(crate) struct Advertised {
    /// The pools that the peer has announced.
    pub(crate) cards: Mutex<Arc<BTreeMap<PoolId, PoolAdvertisement>>>,
    /// Where the peer is; `None` before it has said so.
    pub(crate) zone: Mutex<Option<Option<String>>>,
    /// How many attempts of ours its pools take, as far as it has said.
    limits: Mutex<BTreeMap<PoolId, AdvertisedCapacity>>,
    pub(crate) is_draining: AtomicBool,
}

/// Attempts of ours that run there.
pub(crate) struct Outbound {
    /// Attempts of ours that run there.
    ports: Mutex<BTreeMap<AttemptId, Arc<TokenReceiver>>>,
    next_attempt: AtomicU64,
    /// Attempts of ours that have begun there, by pool.
    begun: Mutex<BTreeMap<PoolId, u32>>,
}

/// What each side shows with all that it says.
pub(crate) struct LinkSecrets {
    /// What the peer shows with all that it says.
    pub(crate) token: [u8; 16],
    /// What we show it.
    pub(crate) peer_token: [u8; 16],
}

impl LinkShared {
    pub(crate) fn new(
        (peer, boot_id, protocol): (NodeName, BootId, u16),
        (token, peer_token): ([u8; 16], [u8; 16]),
    ) -> Arc<Self> {
        Arc::new(LinkShared {
            peer,
            boot_id,
            protocol,
            actor: Address::default(),
            outbox: Mutex::default(),
            attempts: Mutex::default(),
            demand: Mutex::default(),
            must_say_limits: AtomicBool::new(false),
            changed: Notify::new(),
            figures: LinkFigures::default(),
            is_over: AtomicBool::new(false),
            advertised: Advertised {
                cards: Mutex::default(),
                zone: Mutex::default(),
                limits: Mutex::default(),
                is_draining: AtomicBool::new(false),
            },
            outbound: Outbound { ports: Mutex::default(), next_attempt: AtomicU64::new(1), begun: Mutex::default() },
            secrets: LinkSecrets { token, peer_token },
        })
    }

    /// Says something, as soon as the link actor comes to it. On a link that is over it is dropped.
    pub(crate) fn say(&self, word: LinkMessage) {
        let mut outbox = self.outbox.lock();
        if self.is_over() {
            return;
        }
        outbox.words.push_back(word);
        let nudge = !std::mem::replace(&mut outbox.nudged, true);
        drop(outbox);
        if nudge {
            self.actor.cast(LinkMsg::Flush); // Nobody there: the link is over.
        }
    }

    /// All that is to be said now.
    pub(crate) fn take_words(&self) -> VecDeque<LinkMessage> {
        let mut outbox = self.outbox.lock();
        outbox.nudged = false;
        std::mem::take(&mut outbox.words)
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(SeqCst)
    }

    /// Ends it: every attempt on either side is lost.
    pub(crate) fn end(&self) {
        if self.is_over.swap(true, SeqCst) {
            return;
        }
        self.outbox.lock().words.clear();
        for port in self.outbound.ports.lock().values() {
            port.news.notify_waiters();
        }
        self.changed.notify_waiters();
    }

    /// A place for an attempt that is about to be sent.
    pub(crate) fn lend(self: &Arc<Self>) -> Lent {
        let attempt = AttemptId(self.outbound.next_attempt.fetch_add(1, Relaxed));
        let port = Arc::<TokenReceiver>::default();
        self.outbound.ports.lock().insert(attempt, port.clone());
        Lent { link: self.clone(), attempt, port, has_ended: false, begun_in: None }
    }

    /// Gives what was heard to the attempt that it is for. One that nobody waits for any more is dropped.
    ///
    /// # Errors
    /// The peer says more than it may.
    pub(crate) fn hear(&self, attempt: AttemptId, heard: InboundEvent) -> Result<(), String> {
        let ports = self.outbound.ports.lock();
        let port = ports.get(&attempt).or(if seeded_bug!(LateGuest) { ports.values().next() } else { None }).cloned();
        drop(ports);
        port.map_or(Ok(()), |port| port.put(heard))
    }

    /// The peer has said how many attempts of ours its pools take now.
    pub(crate) fn set_limits(&self, rooms: Vec<PoolCapacity>) {
        // Of the pools that it has announced: what a peer can make us remember has a bound.
        let cards = self.advertised.cards.lock().clone();
        let known = rooms.into_iter().filter(|room| cards.contains_key(&room.pool));
        let mut limits = self.advertised.limits.lock();
        limits.retain(|pool, _| cards.contains_key(pool));
        limits.extend(known.map(|PoolCapacity { pool, attempts, is_full }| {
            let free = if is_full { 0 } else { attempts };
            // A place that is left in a pool that takes nobody is nobody's.
            (pool, AdvertisedCapacity { free, is_full: is_full || attempts == 0, one_may_wait: attempts > 0 })
        }));
    }

    /// How many attempts of ours this pool runs at once, and how many it may have: those that have begun and as many as
    /// there were free places for; and one that waits, unless it takes none at all.
    pub(crate) fn limit(&self, pool: &PoolId) -> (u32, u32) {
        let told = self.advertised.limits.lock().get(pool).copied().unwrap_or_default();
        let begun = self.outbound.begun.lock().get(pool).copied().unwrap_or(0);
        let at_once = begun.saturating_add(told.free);
        (at_once, at_once.max(begun.saturating_add(u32::from(told.one_may_wait))))
    }

    /// Attempts of ours that run there.
    pub(crate) fn lent(&self) -> usize {
        self.outbound.ports.lock().len()
    }

    /// What the peer says of this pool.
    pub(crate) fn card(&self, pool: &PoolId) -> Option<PoolAdvertisement> {
        self.advertised.cards.lock().get(pool).cloned()
    }
}

/// An attempt of ours that runs at the peer. Dropped before its end, it is stopped there.
pub(crate) struct Lent {
    pub(crate) link: Arc<LinkShared>,
    pub(crate) attempt: AttemptId,
    pub(crate) port: Arc<TokenReceiver>,
    pub(crate) has_ended: bool,
    /// The pool that has begun it.
    begun_in: Option<PoolId>,
}

impl Lent {
    /// The owner has begun it: another may wait there.
    pub(crate) fn begin(&mut self, pool: &PoolId) {
        if self.begun_in.is_none() {
            self.begun_in = Some(pool.clone());
            // It has one of the places that were free when the peer spoke of them.
            self.link
                .advertised
                .limits
                .lock()
                .get_mut(pool)
                .into_iter()
                .for_each(|told| told.free = told.free.saturating_sub(1));
            *self.link.outbound.begun.lock().entry(pool.clone()).or_default() += 1;
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.link.outbound.ports.lock().remove(&self.attempt);
        if let Some(pool) = &self.begun_in
            && let Some(begun) = self.link.outbound.begun.lock().get_mut(pool)
        {
            *begun -= 1;
            let mut limits = self.link.advertised.limits.lock();
            limits
                .get_mut(pool)
                .into_iter()
                .for_each(|told| told.free = told.free.saturating_add(u32::from(!told.is_full)));
        }
        if !self.has_ended {
            self.link.say(LinkMessage::Cancel(self.attempt));
        }
    }
}
