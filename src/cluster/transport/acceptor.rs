//! The way in for other nodes, and the way to theirs: handshakes with deadlines, few at once, and none that keeps
//! others out.
//!
//! Each connection has a task of its own until it is introduced, so a silent one holds up nobody. When too many are
//! under way, the one that has said nothing for longest makes room, and only when all have spoken the oldest. A good
//! peer speaks at once.
//!
//! Spec: ORCH-3035, ORCH-3044.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::ServerName;
use slab::Slab;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::cluster::membership::roster::Roster;
use crate::cluster::transport::handshake::{Authenticated, HandshakeError, Nonces, Role, Side, introduce};
use crate::cluster::transport::identity::{Ends, Identity, is_for};
use crate::cluster::transport::x509::Shown;
use crate::core::cluster::link::Liveness;
use crate::core::cluster::node::{BootId, Evidence, Hello, NodeName, PROTOCOLS, PeerRefusal, judge};
use crate::env::Env;

/// Longest time from a connection's first moment to the end of its introduction.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections that are not introduced yet.
pub const HANDSHAKES_MAX: usize = 64;
/// Authenticated peers that nobody has fetched yet; more are closed.
const ARRIVED_MAX: usize = 16;
/// Wait when the system has no more files for us.
const NO_FILES_WAIT: Duration = Duration::from_millis(20);
/// What was sent and is not acknowledged for so long ends the connection, in milliseconds.
const STALL_MS: u32 = 5_000;
/// Lines about refused connections that are written in one second; the others are counted.
const LINES_PER_S: u64 = 10;
/// The server name that is sent to a node whose name is not known.
const ANY_NODE: &str = "any-node";
/// Label of the key material that a connection's introduction is bound to.
const BINDING_LABEL: &[u8] = b"EXPORTER-orchestrator-core-node";

/// What there is between this node and one of that name.
pub type Linked = Arc<dyn Fn(&NodeName) -> Option<(BootId, Liveness)> + Send + Sync>;

/// A peer that has been introduced.
pub struct AuthenticatedPeer {
    /// Who it is.
    pub peer: Authenticated,
    /// What it has to show with everything that it says.
    pub token: [u8; 16],
    /// Which side this is.
    pub role: Role,
    /// The connection, behind the introduction.
    pub stream: TlsStream<TcpStream>,
    /// Where it is.
    pub address: SocketAddr,
    /// The certificate that it has shown.
    pub shown: Option<Arc<Shown>>,
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AcceptorError {
    /// It could not be made, or broke.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// No encrypted connection came about: no certificate, one that nobody vouches for, one that has expired, another
    /// name's.
    #[error("the handshake failed: {0}")]
    Handshake(std::io::Error),
    /// The introduction failed.
    #[error(transparent)]
    Hello(#[from] HandshakeError),
    /// It took too long, from the first moment.
    #[error("not introduced within {HANDSHAKE_TIMEOUT:?}")]
    Late,
    /// It made room for another, or there was none for it.
    #[error("{HANDSHAKES_MAX} connections that are not introduced, and {ARRIVED_MAX} peers that are, are enough")]
    MadeRoom,
}

/// Connections that came to nothing, by why, since the listener was opened.
#[derive(Debug, Default)]
pub struct AcceptorCounts {
    /// The handshake or the introduction failed.
    pub refused: AtomicU64,
    /// They said too little for too long, or made room for others.
    pub silent: AtomicU64,
    /// The same without those that follow.
    pub other: AtomicU64,
    /// Peers that are not listed. These and the next two are counted of those who answered this node, too.
    pub not_listed: AtomicU64,
    /// Peers that are denied.
    pub denied: AtomicU64,
    /// Peers whose certificates do not count any more.
    pub not_vouched_for: AtomicU64,
    /// The second, and the lines that were written in it.
    lines: Mutex<(u64, u64)>,
}

/// What this node shows and asks for.
#[derive(Clone)]
struct HandshakeContext {
    /// Read once for each connection, written when the files have changed.
    identity: Arc<RwLock<Arc<Identity>>>,
    roster: Roster,
    env: Env,
    hello: Hello,
    linked: Linked,
}

/// The way in, and out. Clones are one acceptor.
#[derive(Clone)]
pub struct Acceptor {
    context: HandshakeContext,
    counts: Arc<AcceptorCounts>,
}

/// One connection that is not introduced yet.
#[derive(Default)]
struct PendingHandshake {
    received_bytes: AtomicBool,
    leave: Notify,
}

/// Those that are not introduced yet, in the order of their numbers.
type Handshakes = Arc<Mutex<Slab<(u64, Arc<PendingHandshake>)>>>;

impl Acceptor {
    /// A node's acceptor, which lets nobody in before [`Acceptor::open`]. `boot_id` is this life of the node.
    pub fn new(identity: Identity, env: Env, boot_id: BootId, linked: Linked) -> Self {
        let hello = Hello { protocols: PROTOCOLS, name: identity.name.clone(), boot_id };
        let (identity, roster) = (Arc::new(RwLock::new(Arc::new(identity))), Roster::open());
        Acceptor { context: HandshakeContext { identity, roster, env, hello, linked }, counts: Arc::default() }
    }

    /// The same for whom this roster admits.
    #[must_use]
    pub fn admitting(mut self, roster: Roster) -> Self {
        self.context.roster = roster;
        self
    }

    /// The same for a node that speaks other protocols: a newer or an older build.
    #[must_use]
    pub fn speaking(mut self, protocols: (u16, u16)) -> Self {
        self.context.hello.protocols = protocols;
        self
    }

    /// Shows another certificate from the next connection on, and asks another authority or list. Links that these do
    /// not vouch for are judged anew; others stay.
    pub fn renew(&self, identity: Identity) {
        *self.context.identity.write() = Arc::new(identity);
        self.context.roster.note_change();
    }

    /// When the certificates in use end.
    pub fn ends(&self) -> Ends {
        self.context.identity().ends()
    }

    /// What speaks now against the certificate that a linked peer has shown.
    pub(crate) fn objection(&self, peer: &NodeName, shown: &Shown) -> Option<String> {
        self.context.identity().objection(peer, shown)
    }

    /// What came to nothing so far.
    pub fn counts(&self) -> Arc<AcceptorCounts> {
        self.counts.clone()
    }

    /// Dials a node, and is introduced to it.
    ///
    /// # Errors
    /// [`AcceptorError`]; nothing of the connection is left.
    ///
    /// # Cancel safety
    /// Dropped, it closes the connection.
    pub async fn dial(&self, name: &NodeName, address: &str) -> Result<AuthenticatedPeer, AcceptorError> {
        let admitted = self.context.roster.membership().admit(name, None);
        admitted.map_err(HandshakeError::Refused)?; // One that may not come is not asked either.
        let dialled = timeout(HANDSHAKE_TIMEOUT, self.context.dial(Some(name), address)).await;
        let dialled = dialled.unwrap_or(Err(AcceptorError::Late));
        dialled.inspect_err(|error| {
            self.counts.note_membership(error);
        })
    }

    /// Dials an address to find out which node is there.
    ///
    /// # Errors
    /// As [`Acceptor::dial`]; also a refusal that says who is there
    /// ([`PeerRefusal::found`](crate::core::cluster::node::PeerRefusal::found)).
    ///
    /// # Cancel safety
    /// Dropped, it closes the connection.
    pub async fn find(&self, address: &str) -> Result<AuthenticatedPeer, AcceptorError> {
        let found =
            timeout(HANDSHAKE_TIMEOUT, self.context.dial(None, address)).await.unwrap_or(Err(AcceptorError::Late));
        found.inspect_err(|error| {
            self.counts.note_membership(error);
        })
    }

    /// Lets peers in as long as somebody receives them. Runs in a task of its own; dropped, it ends every introduction
    /// under way.
    pub fn open(
        &self,
        listener: TcpListener,
    ) -> (mpsc::Receiver<AuthenticatedPeer>, impl Future<Output = ()> + Send + use<>) {
        let (arrived, receiver) = mpsc::channel(ARRIVED_MAX);
        (receiver, self.clone().serve(listener, arrived))
    }

    async fn serve(self, listener: TcpListener, arrived: mpsc::Sender<AuthenticatedPeer>) {
        let (mut tasks, handshakes, mut number) = (JoinSet::new(), Handshakes::default(), 0);
        loop {
            let accepted = tokio::select! {
                biased;
                () = arrived.closed() => return,
                Some(_) = tasks.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, address)) = accepted else {
                tokio::time::sleep(NO_FILES_WAIT).await;
                continue;
            };
            number += 1;
            let handshake = Arc::new(PendingHandshake::default());
            let key = enter(&handshakes, number, handshake.clone());
            let (context, counts, arrived) = (self.context.clone(), self.counts.clone(), arrived.clone());
            let place = Place { handshakes: handshakes.clone(), key, number };
            tasks.spawn(async move {
                let introduced = tokio::select! {
                    biased;
                    introduced = timeout(HANDSHAKE_TIMEOUT, Box::pin(context.accept(stream, address, &handshake))) => {
                        introduced.unwrap_or(Err(AcceptorError::Late))
                    }
                    () = handshake.leave.notified() => Err(AcceptorError::MadeRoom),
                };
                drop(place);
                // With too many that nobody has fetched, it is closed, and dials again.
                let taken = introduced.and_then(|peer| arrived.try_send(peer).map_err(|_| AcceptorError::MadeRoom));
                if let Err(error) = taken {
                    counts.note(&context.env, address, &error);
                }
            });
        }
    }
}

/// A place among those that are not introduced yet.
struct Place {
    handshakes: Handshakes,
    key: usize,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut handshakes = self.handshakes.lock();
        // Told to leave: the place may be another's by now.
        if handshakes.get(self.key).is_some_and(|(number, _)| *number == self.number) {
            handshakes.remove(self.key);
        }
    }
}

/// Enters a connection; too many, and another is told to leave.
fn enter(handshakes: &Handshakes, number: u64, handshake: Arc<PendingHandshake>) -> usize {
    let mut handshakes = handshakes.lock();
    if handshakes.len() >= HANDSHAKES_MAX {
        let first =
            handshakes.iter().min_by_key(|(_, (number, handshake))| (handshake.received_bytes.load(Relaxed), *number));
        if let Some(key) = first.map(|(key, _)| key) {
            handshakes.remove(key).1.leave.notify_one();
        }
    }
    handshakes.insert((number, handshake))
}

impl HandshakeContext {
    fn identity(&self) -> Arc<Identity> {
        self.identity.read().clone()
    }

    async fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handshake: &PendingHandshake,
    ) -> Result<AuthenticatedPeer, AcceptorError> {
        prepare(&stream);
        if stream.peek(&mut [0; 1]).await? == 0 {
            return Err(AcceptorError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        handshake.received_bytes.store(true, Relaxed);
        let identity = self.identity();
        let acceptor = TlsAcceptor::from(identity.server.clone());
        let stream = acceptor.accept(stream).await.map_err(AcceptorError::Handshake)?;
        self.introduce(&identity, stream.into(), (address, Role::Acceptor), None).await
    }

    /// Dials the node of this name, or whichever is there.
    async fn dial(&self, name: Option<&NodeName>, address: &str) -> Result<AuthenticatedPeer, AcceptorError> {
        let stream = TcpStream::connect(address).await?;
        prepare(&stream);
        let address = stream.peer_addr()?;
        let server = name.map_or(ANY_NODE, NodeName::as_str).to_owned();
        let server = ServerName::try_from(server).map_err(std::io::Error::other)?;
        let identity = self.identity();
        let config = if name.is_some() { &identity.client } else { &identity.searcher };
        let stream =
            TlsConnector::from(config.clone()).connect(server, stream).await.map_err(AcceptorError::Handshake)?;
        self.introduce(&identity, stream.into(), (address, Role::Dialler), name).await
    }

    async fn introduce(
        &self,
        identity: &Identity,
        mut stream: TlsStream<TcpStream>,
        (address, role): (SocketAddr, Role),
        wanted: Option<&NodeName>,
    ) -> Result<AuthenticatedPeer, AcceptorError> {
        let (_, tls) = stream.get_ref();
        let shown = tls.peer_certificates().and_then(|chain| Shown::new(chain, role)).map(Arc::new);
        let binding = match &stream {
            TlsStream::Client(client) => client.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None),
            TlsStream::Server(server) => server.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None),
        };
        let binding = binding.map_err(|error| AcceptorError::Handshake(std::io::Error::other(error)))?;
        let chance = Nonces { nonce: self.env.secret()?, token: self.env.secret()? };
        let side = Side { hello: &self.hello, cookie: &identity.cookie, role, binding, chance };
        let membership = self.roster.membership();
        let decide = |theirs: &Hello, knows_cookie| {
            let name = &theirs.name;
            let shown = shown.as_deref();
            let is_certified = shown.and_then(|shown| shown.chain.first()).is_some_and(|own| is_for(own, name));
            let objection = shown.filter(|_| is_certified).and_then(|shown| identity.objection(name, shown));
            let linked = if is_certified { (self.linked)(name) } else { None };
            let is_search = role == Role::Dialler && wanted.is_none();
            let (objection, certificate) = (objection.as_deref(), shown.map(|shown| &shown.id));
            let membership = &*membership;
            let evidence =
                Evidence { is_certified, knows_cookie, wanted, is_search, linked, objection, certificate, membership };
            judge(&self.hello, theirs, evidence)
        };
        let peer = introduce(&mut stream, side, decide).await?;
        Ok(AuthenticatedPeer { peer, token: chance.token, role, stream, address, shown })
    }
}

fn prepare(stream: &TcpStream) {
    // Fails on a connection that is gone already, which the first read finds.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, STALL_MS);
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
}

impl AcceptorCounts {
    /// Counts what came to nothing since this node will have nothing to do with a peer, and returns whether it was
    /// that.
    fn note_membership(&self, error: &AcceptorError) -> bool {
        let AcceptorError::Hello(HandshakeError::Refused(refusal)) = error else { return false };
        let count = match refusal {
            PeerRefusal::NotListed(_) => &self.not_listed,
            PeerRefusal::Denied { .. } => &self.denied,
            PeerRefusal::NotVouchedFor { .. } => &self.not_vouched_for,
            _ => return false,
        };
        count.fetch_add(1, Relaxed);
        true
    }

    fn note(&self, env: &Env, address: SocketAddr, error: &AcceptorError) {
        if let AcceptorError::Late | AcceptorError::MadeRoom = error {
            self.silent.fetch_add(1, Relaxed);
        } else {
            self.refused.fetch_add(1, Relaxed);
            self.other.fetch_add(u64::from(!self.note_membership(error)), Relaxed);
        }
        let second = env.now().as_micros() / 1_000_000;
        let mut lines = self.lines.lock();
        *lines = if lines.0 == second { (second, lines.1 + 1) } else { (second, 1) };
        if lines.1 <= LINES_PER_S {
            tracing::warn!(target: "audit", event = "peer_refused", %address, %error);
        }
    }
}
