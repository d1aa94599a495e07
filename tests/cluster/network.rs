//! A network in memory, under virtual time: delays that follow from a seed, directions that are cut, connections that
//! are broken.
//!
//! Bytes on their way are as on a TCP connection: in order, bounded, late. What is cut off stays on its way until the
//! cut is mended, as what TCP would send again. The delay of a direction is constant between two changes, so that the
//! random pings inside `ractor_cluster` shift nothing else.
#![allow(dead_code)] // Each program uses its part.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use orchestrator_core::Env;
use orchestrator_core::cluster::acceptor::Linked;
use orchestrator_core::cluster::handshake::{HandshakeError, Nonces, Role, Side, introduce};
use orchestrator_core::cluster::{Caller, Cookie, Found, Network, Pending, Roster};
use orchestrator_core::core::node::{BootId, Evidence, Hello, NodeName, PROTOCOLS, judge};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// Bytes that may be on their way in one direction.
const CAPACITY: usize = 256 * 1024;
const INTRODUCTION: Duration = Duration::from_secs(5);

/// All nodes of a test, and what is between them.
#[derive(Default)]
pub struct Wires(Mutex<State>);

/// Tells the networks of one process apart. Link actors are named after their tokens in all of it, and nodes of two
/// tests may draw the same.
struct Salt(u128);

impl Default for Salt {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Salt(NEXT.fetch_add(1, Relaxed).into())
    }
}

#[derive(Default)]
struct State {
    salt: Salt,
    doors: BTreeMap<NodeName, mpsc::UnboundedSender<PendingHandshake>>,
    delays: BTreeMap<(NodeName, NodeName), Duration>,
    cuts: Vec<(NodeName, NodeName)>,
    pipes: Vec<(NodeName, NodeName, Weak<Pipe>)>,
    /// What a name of the domain name system stands for.
    listed: Vec<String>,
}

struct PendingHandshake {
    from: NodeName,
    stream: Duplex,
}

impl Wires {
    pub fn set_delay(&self, from: &NodeName, to: &NodeName, delay: Duration) {
        self.0.lock().unwrap().delays.insert((from.clone(), to.clone()), delay);
    }

    /// What the domain name system says from now on.
    pub fn list(&self, addresses: &[&str]) {
        self.0.lock().unwrap().listed = addresses.iter().map(|address| (*address).to_owned()).collect();
    }

    /// Nothing arrives in this direction any more.
    pub fn cut(&self, from: &NodeName, to: &NodeName) {
        self.0.lock().unwrap().cuts.push((from.clone(), to.clone()));
    }

    /// Everything arrives again, what was held up first.
    pub fn mend(&self) {
        let mut state = self.0.lock().unwrap();
        state.cuts.clear();
        let pipes: Vec<Arc<Pipe>> = state.pipes.iter().filter_map(|(.., pipe)| pipe.upgrade()).collect();
        drop(state);
        pipes.iter().for_each(|pipe| pipe.wake());
    }

    /// Breaks every connection between two nodes.
    pub fn break_between(&self, one: &NodeName, other: &NodeName) {
        let state = self.0.lock().unwrap();
        let is_it = |from: &NodeName, to: &NodeName| from == one && to == other || from == other && to == one;
        let pipes = state.pipes.iter().filter(|(from, to, _)| is_it(from, to));
        let pipes: Vec<Arc<Pipe>> = pipes.filter_map(|(.., pipe)| pipe.upgrade()).collect();
        drop(state);
        pipes.iter().for_each(|pipe| pipe.close());
    }

    fn is_cut(&self, from: &NodeName, to: &NodeName) -> bool {
        self.0.lock().unwrap().cuts.iter().any(|(a, b)| a == from && b == to)
    }

    fn delay(&self, from: &NodeName, to: &NodeName) -> Duration {
        let known = self.0.lock().unwrap().delays.get(&(from.clone(), to.clone())).copied();
        known.unwrap_or(Duration::from_micros(100))
    }

    fn connect(self: &Arc<Self>, from: &NodeName, to: &NodeName) -> io::Result<Duplex> {
        if self.is_cut(from, to) || self.is_cut(to, from) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let pipe = |from: &NodeName, to: &NodeName| {
            Arc::new(Pipe {
                wires: self.clone(),
                from: from.clone(),
                to: to.clone(),
                flow: Mutex::new(Flow::default()),
            })
        };
        let (out, back) = (pipe(from, to), pipe(to, from));
        let near = Duplex { reads: back.clone(), writes: out.clone(), timer: None };
        let far = Duplex { reads: out.clone(), writes: back.clone(), timer: None };
        let mut state = self.0.lock().unwrap();
        state.pipes.retain(|(.., pipe)| pipe.strong_count() > 0);
        state.pipes.push((from.clone(), to.clone(), Arc::downgrade(&out)));
        state.pipes.push((to.clone(), from.clone(), Arc::downgrade(&back)));
        let door = state.doors.get(to).ok_or(io::ErrorKind::ConnectionRefused)?;
        let knock = PendingHandshake { from: from.clone(), stream: far };
        door.send(knock).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(near)
    }
}

/// One direction of one connection.
struct Pipe {
    wires: Arc<Wires>,
    from: NodeName,
    to: NodeName,
    flow: Mutex<Flow>,
}

#[derive(Default)]
struct Flow {
    /// What is on its way, by when it was sent.
    chunks: VecDeque<(Instant, VecDeque<u8>)>,
    bytes: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&self) {
        let mut flow = self.flow.lock().unwrap();
        let wakers = [flow.reader.take(), flow.writer.take()];
        drop(flow);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn close(&self) {
        self.flow.lock().unwrap().closed = true;
        self.wake();
    }
}

struct Duplex {
    reads: Arc<Pipe>,
    writes: Arc<Pipe>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.reads.close();
        self.writes.close();
    }
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(context));
                self.timer = None;
            }
            let pipe = self.reads.clone();
            let is_cut = pipe.wires.is_cut(&pipe.from, &pipe.to);
            let delay = pipe.wires.delay(&pipe.from, &pipe.to);
            let mut flow = pipe.flow.lock().unwrap();
            let arrives = flow.chunks.front().filter(|_| !is_cut).map(|(sent, _)| *sent + delay);
            match arrives {
                Some(at) if at <= Instant::now() => {
                    let (_, chunk) = flow.chunks.front_mut().expect("there is one");
                    let taken = chunk.len().min(out.remaining());
                    chunk.drain(..taken).for_each(|byte| out.put_slice(&[byte]));
                    if chunk.is_empty() {
                        flow.chunks.pop_front();
                    }
                    flow.bytes -= taken;
                    let writer = flow.writer.take();
                    drop(flow);
                    writer.into_iter().for_each(Waker::wake);
                    return Poll::Ready(Ok(()));
                }
                Some(at) => {
                    drop(flow);
                    self.timer = Some(Box::pin(sleep_until(at)));
                }
                // A closed connection is noticed at once where nothing is cut: a killed process's system says so.
                None if flow.closed && !is_cut => return Poll::Ready(Ok(())),
                None => {
                    flow.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut flow = self.writes.flow.lock().unwrap();
        if flow.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(CAPACITY - flow.bytes);
        if taken == 0 {
            flow.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        flow.chunks.push_back((Instant::now(), bytes[..taken].iter().copied().collect()));
        flow.bytes += taken;
        let reader = flow.reader.take();
        drop(flow);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writes.close();
        Poll::Ready(Ok(()))
    }
}

impl ClusterBidiStream for Duplex {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (reader, writer) = tokio::io::split(*self);
        (Box::new(reader), Box::new(writer))
    }
}

/// One node's part of the network.
pub struct Port {
    wires: Arc<Wires>,
    env: Env,
    hello: Hello,
    cookie: Cookie,
    linked: Linked,
    roster: Roster,
    knocks: tokio::sync::Mutex<mpsc::UnboundedReceiver<PendingHandshake>>,
}

impl Port {
    pub fn new(wires: &Arc<Wires>, env: Env, name: &NodeName, boot_id: BootId, cookie: Cookie, linked: Linked) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        wires.0.lock().unwrap().doors.insert(name.clone(), sender);
        let hello = Hello { protocols: PROTOCOLS, name: name.clone(), boot_id };
        let (roster, knocks) = (Roster::open(), tokio::sync::Mutex::new(receiver));
        Port { wires: wires.clone(), env, hello, cookie, linked, roster, knocks }
    }

    /// The same for a node that admits these alone.
    pub fn admitting(mut self, roster: Roster) -> Self {
        self.roster = roster;
        self
    }

    /// The same for a node of another build.
    pub fn speaking(mut self, protocols: (u16, u16)) -> Self {
        self.hello.protocols = protocols;
        self
    }

    async fn meet(
        &self,
        mut stream: Duplex,
        other: NodeName,
        role: Role,
        is_search: bool,
    ) -> Result<Caller, HandshakeError> {
        let salt = self.wires.0.lock().unwrap().salt.0;
        let chance = |env: &Env| {
            let number = u128::from(env.random()) << 64 | u128::from(env.random());
            (number ^ salt).to_le_bytes()
        };
        let chance = Nonces { nonce: chance(&self.env), token: chance(&self.env) };
        let side = Side { hello: &self.hello, cookie: &self.cookie, role, binding: [0; 32], chance };
        let wanted = (role == Role::Dialler && !is_search).then_some(&other);
        let membership = self.roster.membership();
        let decide = |theirs: &Hello, knows_cookie| {
            let linked = (self.linked)(&theirs.name);
            let is_certified = theirs.name == other;
            let (objection, certificate, membership) = (None, None, &*membership);
            let evidence =
                Evidence { is_certified, knows_cookie, wanted, is_search, linked, objection, certificate, membership };
            judge(&self.hello, theirs, evidence)
        };
        let introduced = timeout(INTRODUCTION, introduce(&mut stream, side, decide)).await;
        let peer = introduced.map_err(|_| HandshakeError::Io(io::ErrorKind::TimedOut.into()))??;
        let (stream, address) = (Box::new(stream), other.to_string());
        Ok(Caller { peer, token: chance.token, role, stream, address, shown: None })
    }
}

impl Network for Port {
    fn dial<'a>(&'a self, name: &'a NodeName, _: &'a str) -> Pending<'a, Result<Caller, String>> {
        Box::pin(async move {
            self.roster.membership().admit(name, None).map_err(|refusal| refusal.to_string())?;
            let stream = self.wires.connect(&self.hello.name, name).map_err(|error| error.to_string())?;
            self.meet(stream, name.clone(), Role::Dialler, false).await.map_err(|error| error.to_string())
        })
    }

    fn resolve<'a>(&'a self, _: &'a str) -> Pending<'a, Result<Vec<String>, String>> {
        Box::pin(async move { Ok(self.wires.0.lock().unwrap().listed.clone()) })
    }

    fn find<'a>(&'a self, address: &'a str) -> Pending<'a, Found> {
        Box::pin(async move {
            let name = NodeName::parse(address).unwrap();
            match self.wires.connect(&self.hello.name, &name) {
                Err(error) => Found::Nobody(error.to_string()),
                Ok(stream) => Found::of(self.meet(stream, name, Role::Dialler, true).await),
            }
        })
    }

    fn accept(&self) -> Pending<'_, Option<Caller>> {
        Box::pin(async move {
            loop {
                let PendingHandshake { from, stream } = self.knocks.lock().await.recv().await?;
                if let Ok(caller) = self.meet(stream, from, Role::Acceptor, false).await {
                    return Some(caller);
                }
            }
        })
    }
}
