//! The network of real nodes: the acceptor, and what comes through it.

use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsStream;

use crate::cluster::transport::acceptor::{Acceptor, AcceptorError, AuthenticatedPeer};
use crate::cluster::transport::network::{Caller, Found, Network, Pending};
use crate::cluster::transport::x509::Shown;
use crate::core::cluster::node::NodeName;

/// Nodes that are reached over TCP and TLS.
pub struct TlsNetwork {
    acceptor: Acceptor,
    /// One waits at a time; a lock across the wait, so that a second would queue behind it.
    arrived: Mutex<mpsc::Receiver<AuthenticatedPeer>>,
    serving: JoinHandle<()>,
}

impl TlsNetwork {
    /// Lets peers in that come to this listener.
    pub fn open(acceptor: Acceptor, listener: TcpListener) -> Self {
        let (arrived, serve) = acceptor.open(listener);
        let serving = tokio::spawn(serve);
        TlsNetwork { acceptor, arrived: Mutex::new(arrived), serving }
    }
}

impl Drop for TlsNetwork {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Network for TlsNetwork {
    fn dial<'a>(&'a self, name: &'a NodeName, address: &'a str) -> Pending<'a, Result<Caller, String>> {
        Box::pin(async move { self.acceptor.dial(name, address).await.map(caller).map_err(|error| error.to_string()) })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host(name).await.map_err(|error| format!("{name}: {error}"))?;
            Ok(found.map(|address| address.to_string()).collect())
        })
    }

    fn find<'a>(&'a self, address: &'a str) -> Pending<'a, Found> {
        Box::pin(async move {
            match self.acceptor.find(address).await {
                Ok(arrived) => Found::Node(caller(arrived)),
                Err(AcceptorError::Hello(error)) => Found::of(Err(error)),
                Err(error) => Found::Nobody(error.to_string()),
            }
        })
    }

    fn accept(&self) -> Pending<'_, Option<Caller>> {
        Box::pin(async move { self.arrived.lock().await.recv().await.map(caller) })
    }

    fn objection(&self, peer: &NodeName, shown: &Shown) -> Option<String> {
        self.acceptor.objection(peer, shown)
    }
}

fn caller(arrived: AuthenticatedPeer) -> Caller {
    let AuthenticatedPeer { peer, token, role, stream, address, shown } = arrived;
    Caller { peer, token, role, stream: Box::new(Encrypted(stream)), address: address.to_string(), shown }
}

struct Encrypted(TlsStream<TcpStream>);

impl ClusterBidiStream for Encrypted {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (reader, writer) = tokio::io::split(self.0);
        (Box::new(reader), Box::new(writer))
    }
}
