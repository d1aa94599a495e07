//! The connections of a listener: how many there are, whose they are, and who makes room when there is none
//! (ORCH-3035).
//!
//! A connection is idle while no request of it is under way; when there are too many, the one that has been idle
//! longest makes room. Requests of clients have `http.connections_max` of the places, and some more are kept: in those
//! a newcomer says what it wants, and health pages are answered. When requests have all of theirs, one of a client that
//! holds less than another takes the newest connection of the client that holds most. So nobody is locked out by one
//! who holds all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::core::id::ClientId;
use crate::env::Env;
use crate::service::telemetry::named_counts::NamedCounts;

/// Why connections were closed by us, for counting.
pub(crate) const CLOSED: [&str; 7] = ["idle", "full", "head", "handshake", "files", "share", "ended"];

/// Places beside `http.connections_max` for those who come when all are taken: one in so many, and at least so many.
const KEPT_PART: usize = 16;
const KEPT_MIN: usize = 16;

/// Places that are kept beside so many.
pub(crate) fn kept(max: usize) -> usize {
    (max / KEPT_PART).max(KEPT_MIN)
}

/// One connection, as the others see it.
pub(crate) struct Link {
    /// Microseconds of the runtime's clock when its last request ended, or the one under way began.
    since: AtomicU64,
    /// A request is under way.
    is_busy: AtomicBool,
    pub(crate) close: Notify,
    /// It has had a whole head.
    pub(crate) has_asked: AtomicBool,
    /// Whose request is under way, with the number of its claim. A short lock for each request.
    claim: Mutex<Option<(ClientId, u64)>>,
    /// Says that the answer under way must end, where it may go on for long; and whether it said so at the last look.
    must_end: Mutex<Option<(MustEnd, bool)>>,
}

/// Whether an answer must end.
type MustEnd = Box<dyn Fn() -> bool + Send>;

/// Who is connected.
#[derive(Default)]
struct Table {
    places: Slab<Arc<Link>>,
    /// Connections with a request of a client's under way, by the number of the claim and the place. Never empty for a
    /// client.
    holders: BTreeMap<ClientId, BTreeSet<(u64, usize)>>,
    /// All of them.
    held: usize,
    claims: u64,
}

impl Link {
    /// Whether the answer under way must end, and had to at the last look already.
    fn is_stalled(&self) -> bool {
        let mut must_end = self.must_end.lock();
        let Some((asked, was_due)) = must_end.as_mut() else { return false };
        let is_due = asked();
        std::mem::replace(was_due, is_due) && is_due
    }
}

impl Table {
    /// Whether this connection still has its place.
    fn has(&self, key: usize, link: &Arc<Link>) -> bool {
        self.places.get(key).is_some_and(|own| Arc::ptr_eq(own, link))
    }

    fn release(&mut self, client: &ClientId, claim: (u64, usize)) {
        let Some(held) = self.holders.get_mut(client) else { return };
        self.held -= usize::from(held.remove(&claim));
        if held.is_empty() {
            self.holders.remove(client);
        }
    }

    /// The newest connection of the client that holds most, if that is more than `held`.
    fn newest_of_largest(&self, held: usize) -> Option<(ClientId, (u64, usize))> {
        let (client, claims) = self.holders.iter().max_by_key(|(_, claims)| claims.len())?;
        let newest = claims.last().filter(|_| claims.len() > held)?;
        Some((client.clone(), *newest))
    }
}

/// The connections of a listener.
pub(crate) struct Links {
    pub(crate) env: Env,
    max: usize,
    /// A short lock for each connection and for each request.
    table: Mutex<Table>,
    open: AtomicUsize,
    /// Connections that we closed or did not take.
    pub(crate) closed: NamedCounts<{ CLOSED.len() }>,
    stopping: AtomicBool,
    stop: Notify,
}

impl Links {
    pub(crate) fn new(env: Env, max: u32) -> Arc<Self> {
        Arc::new(Links {
            env,
            max: max as usize,
            table: Mutex::default(),
            open: AtomicUsize::new(0),
            closed: NamedCounts::new(CLOSED),
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    /// Connections there are.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Takes no more connections; those there are end with their requests.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.stop.notify_waiters();
    }

    pub(crate) async fn stopped(&self) {
        let stop = self.stop.notified();
        tokio::pin!(stop);
        stop.as_mut().enable(); // Before the look, so that it is not missed.
        if !self.stopping.load(SeqCst) {
            stop.await;
        }
    }

    /// Takes a connection in. When there is no room, not even in the places that are kept, the one that has been idle
    /// longest is told to close, or the one that has been busy longest for nobody: nobody is locked out by who needs no
    /// key. `None` when all are clients'.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Entered> {
        let mut table = self.table.lock();
        if table.places.len() >= self.max + kept(self.max) && !self.evict(&mut table) {
            return None;
        }
        let link = Arc::new(Link {
            since: AtomicU64::new(self.env.now().as_micros()),
            is_busy: AtomicBool::new(false),
            close: Notify::new(),
            has_asked: AtomicBool::new(false),
            claim: Mutex::new(None),
            must_end: Mutex::new(None),
        });
        let key = table.places.insert(link.clone());
        self.open.store(table.places.len(), Relaxed);
        Some(Entered { links: self.clone(), link, key })
    }

    /// Closes the connections whose answers had to end and have not within one period of looking: their readers do not
    /// read, so nothing of an answer's own is asked.
    pub(crate) fn end_stalled(&self) {
        let asked = |(_, link): &(usize, &Arc<Link>)| link.must_end.lock().is_some();
        let links: Vec<(usize, Arc<Link>)> =
            self.table.lock().places.iter().filter(asked).map(|(key, link)| (key, link.clone())).collect();
        for (key, link) in links {
            // Not under the table's lock, which every request takes.
            if link.is_stalled() {
                let mut table = self.table.lock();
                if table.has(key, &link) {
                    self.close(&mut table, key, "ended");
                }
            }
        }
    }

    /// Closes the connection that has been idle longest; returns whether there was one.
    pub(crate) fn evict_idle(&self) -> bool {
        self.evict(&mut self.table.lock())
    }

    fn evict(&self, table: &mut Table) -> bool {
        let is_free = |link: &Link| !link.is_busy.load(Relaxed) || link.claim.lock().is_none();
        let places = table.places.iter().filter(|(_, link)| is_free(link));
        let longest = places.map(|(key, link)| (link.is_busy.load(Relaxed), link.since.load(Relaxed), key)).min();
        let Some((_, _, key)) = longest else { return false };
        self.close(table, key, "full");
        true
    }

    fn close(&self, table: &mut Table, key: usize, why: &'static str) {
        let Some(link) = table.places.try_remove(key) else { return };
        link.close.notify_one();
        self.closed.count(why);
    }

    /// Notes whose request is under way on a connection. When requests have all places, the client that holds most
    /// gives its newest connection back, if it holds more than this one does; else the request must be refused.
    fn claim(&self, link: &Arc<Link>, key: usize, client: &ClientId) -> bool {
        let mut table = self.table.lock();
        if !table.has(key, link) {
            return true; // It was told to close just now, and holds nothing any more.
        }
        table.claims += 1;
        let claim = (table.claims, key);
        let held = table.holders.get(client).map_or(0, BTreeSet::len) + 1;
        if table.held >= self.max {
            let Some((largest, newest)) = table.newest_of_largest(held) else { return false };
            table.release(&largest, newest);
            self.close(&mut table, newest.1, "share");
        }
        table.holders.entry(client.clone()).or_default().insert(claim);
        table.held += 1;
        *link.claim.lock() = Some((client.clone(), claim.0));
        true
    }
}

/// A connection's place in the table.
pub(crate) struct Entered {
    pub(crate) links: Arc<Links>,
    pub(crate) link: Arc<Link>,
    key: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.links.table.lock();
        // Evicted: the place may be another's by now.
        if table.has(self.key, &self.link) {
            table.places.remove(self.key);
        }
        self.links.open.store(table.places.len(), Relaxed);
    }
}

/// A request that is under way on a connection.
pub(crate) struct UnderWay(Seat);

/// The connection that a request came on.
#[derive(Clone)]
pub(crate) struct Seat {
    links: Arc<Links>,
    link: Arc<Link>,
    key: usize,
}

impl Seat {
    /// Notes whose request this is; returns whether there is room for it.
    pub(crate) fn claim(&self, client: &ClientId) -> bool {
        self.links.claim(&self.link, self.key, client)
    }

    /// Has the connection closed when the answer must end and does not.
    pub(crate) fn end_when(&self, must_end: impl Fn() -> bool + Send + 'static) {
        *self.link.must_end.lock() = Some((Box::new(must_end), false));
    }
}

impl UnderWay {
    pub(crate) fn begin(entered: &Entered) -> Self {
        entered.link.since.store(entered.links.env.now().as_micros(), Relaxed);
        entered.link.is_busy.store(true, Relaxed);
        entered.link.has_asked.store(true, Relaxed);
        UnderWay(Seat { links: entered.links.clone(), link: entered.link.clone(), key: entered.key })
    }

    pub(crate) fn seat(&self) -> Seat {
        self.0.clone()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Seat { links, link, key } = &self.0;
        let must_end = link.must_end.lock().take();
        drop(must_end); // Not under its lock, nor under the table's.
        let claim = link.claim.lock().take();
        if let Some((client, claim)) = claim {
            links.table.lock().release(&client, (claim, *key));
        }
        link.since.store(links.env.now().as_micros(), Relaxed);
        link.is_busy.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> ClientId {
        ClientId::parse(name).expect("valid")
    }

    /// A connection with a request of this client's under way.
    fn busy(links: &Arc<Links>, name: &str) -> Option<(Entered, UnderWay)> {
        let entered = links.enter()?;
        let under_way = UnderWay::begin(&entered);
        under_way.seat().claim(&client(name)).then_some((entered, under_way))
    }

    #[test]
    fn who_holds_least_gets_a_place_of_who_holds_most_and_the_newest_goes() {
        let links = Links::new(Env::simulated(0), 8);
        let hog: Vec<_> = (0..8).map(|_| busy(&links, "hog").expect("room")).collect();
        assert!(busy(&links, "hog").is_none(), "nobody holds more than it does");
        let polite = busy(&links, "polite").expect("the hog gives one back");
        assert_eq!(links.closed.all().iter().find(|(why, _)| *why == "share"), Some(&("share", 1)));
        let is_closed = |place: &(Entered, UnderWay)| !links.table.lock().has(place.0.key, &place.0.link);
        assert!(is_closed(&hog[7]) && !is_closed(&hog[0]) && !is_closed(&polite));
        let others: Vec<_> = (0..3).map(|_| busy(&links, "polite").expect("up to an equal part")).collect();
        assert!(busy(&links, "polite").is_none() && busy(&links, "hog").is_none(), "four each");
        assert!(busy(&links, "third").is_some());
        drop((hog, polite, others));
        let table = links.table.lock();
        assert!(table.places.is_empty() && table.holders.is_empty() && table.held == 0 && links.open() == 0);
    }

    #[test]
    fn who_needs_no_key_locks_nobody_out_and_stalled_answers_end() {
        let links = Links::new(Env::simulated(0), 2);
        let held: Vec<_> = (0..2 + KEPT_MIN).filter_map(|_| links.enter()).collect();
        let pages: Vec<_> = held.iter().map(UnderWay::begin).collect();
        assert!(held.len() == 2 + KEPT_MIN && links.enter().is_some(), "the page that is sent longest makes room");
        drop((pages, held));
        let (entered, under_way) = busy(&links, "alice").expect("room");
        under_way.seat().end_when(|| true);
        links.end_stalled();
        assert_eq!(links.table.lock().places.len(), 1, "it has a moment to end by itself");
        links.end_stalled();
        assert!(links.table.lock().places.is_empty());
        drop((under_way, entered));
        assert_eq!(links.table.lock().held, 0);
    }

    #[test]
    fn pages_for_everybody_are_answered_when_all_places_are_held() {
        let links = Links::new(Env::simulated(0), 2);
        let _hog: Vec<_> = (0..2).map(|_| busy(&links, "hog").expect("room")).collect();
        for _ in 0..100 {
            let entered = links.enter().expect("a place is kept");
            drop(UnderWay::begin(&entered)); // A health page: nobody claims anything.
        }
        let kept: Vec<_> = (0..KEPT_MIN).map(|_| links.enter().map(|entered| UnderWay::begin(&entered))).collect();
        assert!(kept.iter().all(Option::is_some));
    }
}
