//! Who is let in as a node of the cluster, and who is not (ORCH-3035, ORCH-3044). With the feature `cluster`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "nodes/rules.rs"]
mod rules;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use orchestrator_core::Env;
use orchestrator_core::cluster::acceptor::Linked;
use orchestrator_core::cluster::handshake::{Nonces, Role, Side, introduce};
use orchestrator_core::cluster::identity::CertificateFiles;
use orchestrator_core::cluster::{
    Acceptor, AcceptorCounts, AcceptorError, AuthenticatedPeer, Cookie, HandshakeError, Identity, Network, TlsNetwork,
};
use orchestrator_core::core::cluster::link::Liveness;
use orchestrator_core::core::node::{BootId, Hello, NodeName, PROTOCOLS, PeerRefusal, Taken};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

const COOKIE: &[u8] = b"a cookie of thirty-two bytes, or";
const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

/// An authority of this test, which signs for whom it is asked.
struct Authority {
    folder: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(test: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nodes").join(test);
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { folder, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, node: &str, has_expired: bool) -> CertificateFiles {
        let mut params = rcgen::CertificateParams::new(vec![node.to_owned()]).unwrap();
        if has_expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let at = |what: &str| self.folder.join(what).display().to_string();
        let files = CertificateFiles {
            ca: at("ca.pem"),
            certificate: at(&format!("{node}.pem")),
            key: at(&format!("{node}.key")),
            crl: None,
        };
        std::fs::write(&files.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn door(&self, node: &str, cookie: &[u8]) -> Acceptor {
        door(node, cookie, &self.sign(node, false), None)
    }
}

fn door(node: &str, cookie: &[u8], files: &CertificateFiles, linked: Option<(BootId, Liveness)>) -> Acceptor {
    let identity = Identity::load(name(node), Cookie::new(cookie).unwrap(), files).unwrap();
    let linked: Linked = Arc::new(move |_| linked);
    Acceptor::new(identity, Env::real(), BootId(u64::from(node.as_bytes()[0])), linked)
}

/// A node whose door is open.
struct Open {
    at: SocketAddr,
    arrived: Receiver<AuthenticatedPeer>,
    counts: Arc<AcceptorCounts>,
}

async fn open(door: Acceptor) -> Open {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, counts) = (listener.local_addr().unwrap(), door.counts());
    let (arrived, serve) = door.open(listener);
    tokio::spawn(serve);
    Open { at, arrived, counts }
}

async fn dial(door: &Acceptor, to: &str, at: SocketAddr) -> Result<AuthenticatedPeer, AcceptorError> {
    timeout(SECOND, door.dial(&name(to), &at.to_string())).await.expect("an answer within a second")
}

/// A connection with a good certificate that behaves as the test wants.
async fn raw(files: &CertificateFiles, to: &str, at: SocketAddr) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap();
    let stream = TcpStream::connect(at).await.unwrap();
    let to = ServerName::try_from(to.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(to, stream).await.unwrap()
}

/// Introduces itself over such a connection, as whoever the test says.
async fn claim(stream: &mut TlsStream<TcpStream>, says: &str, nonce: [u8; 16]) -> Result<(), HandshakeError> {
    let binding = stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-orchestrator-core-node", None).unwrap();
    let hello = Hello { protocols: PROTOCOLS, name: name(says), boot_id: BootId(9) };
    let (cookie, chance) = (Cookie::new(COOKIE).unwrap(), Nonces { nonce, token: [0; 16] });
    let side = Side { hello: &hello, cookie: &cookie, role: Role::Dialler, binding, chance };
    introduce(stream, side, |_, _| Ok(Taken { protocol: 1, replaces: false })).await.map(drop)
}

/// The next message of the other side, with its length in front.
async fn message(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.unwrap();
    [&length.to_be_bytes(), &bytes[..]].concat()
}

/// Waits until the other side has closed, and returns what it still said.
async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(SECOND, stream.read_to_end(&mut bytes)).await.expect("closed within a second");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn two_nodes_are_introduced_and_each_has_what_the_other_asks_for() {
    let authority = Authority::new("good");
    let mut b = open(authority.door("b", COOKIE)).await;
    let a = dial(&authority.door("a", COOKIE), "b", b.at).await.unwrap();
    let at_b = b.arrived.recv().await.unwrap();
    assert_eq!((a.peer.hello.name.as_str(), at_b.peer.hello.name.as_str()), ("b", "a"));
    assert_eq!((a.peer.token, at_b.peer.token), (at_b.token, a.token));
    assert_eq!((a.peer.hello.boot_id, at_b.peer.hello.boot_id), (BootId(98), BootId(97)));
    assert_ne!(a.token, at_b.token);
    let mut streams = (a.stream, at_b.stream);
    streams.0.write_all(b"behind it").await.unwrap();
    streams.0.flush().await.unwrap();
    let mut heard = [0; 9];
    streams.1.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"behind it");
}

#[tokio::test]
async fn whoever_cannot_show_who_it_is_is_refused_within_a_second() {
    let (authority, strangers) = (Authority::new("refused"), Authority::new("strangers"));
    let b = open(authority.door("b", COOKIE)).await;
    let expired = door("e", COOKIE, &authority.sign("e", true), None);
    // TLS 1.3: whoever dials hears of it with the first answer.
    for (who, stranger) in [("strangers", strangers.door("a", COOKIE)), ("expired", expired)] {
        let error = dial(&stranger, "b", b.at).await.err().unwrap().to_string();
        assert!(error.contains("failed") || error.contains("broke"), "{who}: {error}");
    }
    let error = dial(&authority.door("a", &[7; 32]), "b", b.at).await.err().unwrap();
    assert!(matches!(error, AcceptorError::Hello(HandshakeError::Refused(PeerRefusal::Cookie(_)))), "{error}");
    let error = dial(&authority.door("a", COOKIE), "c", b.at).await.err().unwrap();
    assert!(matches!(error, AcceptorError::Handshake(_)), "b's certificate is not c's: {error}");
    let error = dial(&authority.door("b", COOKIE), "b", b.at).await.err().unwrap().to_string();
    assert!(error.contains("own name"), "{error}");
    let newer = authority.door("a", COOKIE).speaking((2, 3));
    let error = dial(&newer, "b", b.at).await.err().unwrap().to_string();
    assert!(error.contains("node b speaks protocols 1 to 1, this node 2 to 3"), "{error}");
    while b.counts.refused.load(Relaxed) < 6 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_certificate_opens_for_its_own_name_only() {
    let authority = Authority::new("names");
    let b = open(authority.door("b", COOKIE)).await;
    let files = authority.sign("c", false);
    let mut stream = raw(&files, "b", b.at).await;
    let error = claim(&mut stream, "a", [1; 16]).await.err().unwrap().to_string();
    assert!(error.contains("says that it is node a, and its certificate is not for that name"), "{error}");
    assert!(claim(&mut raw(&files, "b", b.at).await, "c", [1; 16]).await.is_ok());
    let error = Identity::load(name("a"), Cookie::new(COOKIE).unwrap(), &files).err().unwrap();
    assert!(error.contains("c.pem: the certificate is not for node a"), "{error}");
}

#[tokio::test]
async fn what_was_recorded_or_is_reflected_proves_nothing() {
    let authority = Authority::new("replay");
    let b = open(authority.door("b", COOKIE)).await;
    let files = authority.sign("c", false);
    // Recorded by one that knows the cookie, on a connection of its own, with the same nonce.
    let (mut near, mut far) = tokio::io::duplex(4096);
    let recorded = tokio::spawn(async move {
        let hello = Hello { protocols: PROTOCOLS, name: name("c"), boot_id: BootId(9) };
        let (cookie, chance) = (Cookie::new(COOKIE).unwrap(), Nonces { nonce: [1; 16], token: [0; 16] });
        let side = Side { hello: &hello, cookie: &cookie, role: Role::Dialler, binding: [0; 32], chance };
        let _ = introduce(&mut near, side, |_, _| Ok(Taken { protocol: 1, replaces: false })).await;
    });
    let mut stream = raw(&files, "b", b.at).await;
    let mut greeting = vec![0; 2];
    far.read_exact(&mut greeting).await.unwrap();
    greeting.resize(2 + usize::from(u16::from_be_bytes([greeting[0], greeting[1]])), 0);
    far.read_exact(&mut greeting[2..]).await.unwrap();
    stream.write_all(&greeting).await.unwrap();
    far.write_all(&message(&mut stream).await).await.unwrap();
    let mut proof = [0; 34];
    far.read_exact(&mut proof).await.unwrap();
    stream.write_all(&proof).await.unwrap();
    stream.flush().await.unwrap();
    assert!(rest(&mut stream).await.contains("does not have this cluster's cookie"), "bound to its connection");
    drop(far);
    recorded.await.unwrap();
    // Its own proof, sent back.
    let mut stream = raw(&files, "b", b.at).await;
    stream.write_all(&greeting).await.unwrap();
    message(&mut stream).await;
    let theirs = message(&mut stream).await;
    stream.write_all(&theirs).await.unwrap();
    stream.flush().await.unwrap();
    assert!(rest(&mut stream).await.contains("does not have this cluster's cookie"), "bound to its role");
}

#[tokio::test]
async fn garbage_and_too_much_of_it_closes_the_connection_at_once() {
    let authority = Authority::new("garbage");
    let mut b = open(authority.door("b", COOKIE)).await;
    let files = authority.sign("c", false);
    for garbage in
        [&[0xff; 64][..], &[0, 3, 9, 9, 9], &[0, 0], &[4, 0, 1, 253, 0, 0, 0, 0, 0, 1, 0, 0], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut stream = raw(&files, "b", b.at).await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(&mut stream).await;
        let mut plain = TcpStream::connect(b.at).await.unwrap();
        plain.write_all(garbage).await.unwrap();
        plain.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        let _ = timeout(SECOND, plain.read_to_end(&mut bytes)).await.expect("closed within a second");
    }
    assert!(dial(&authority.door("a", COOKIE), "b", b.at).await.is_ok());
    assert_eq!(b.arrived.recv().await.unwrap().peer.hello.name.as_str(), "a");
}

#[tokio::test]
async fn a_second_link_is_refused_while_the_first_is_well_and_takes_its_place_when_it_is_not() {
    let authority = Authority::new("linked");
    let files = authority.sign("b", false);
    let a = authority.door("a", COOKIE);
    let there = open(door("b", COOKIE, &files, Some((BootId(97), Liveness::Alive)))).await;
    let error = dial(&a, "b", there.at).await.err().unwrap().to_string();
    assert!(error.contains("the peer says: there is a link with node a already"), "{error}");
    let mut sick = open(door("b", COOKIE, &files, Some((BootId(97), Liveness::Suspect)))).await;
    dial(&a, "b", sick.at).await.unwrap();
    assert!(sick.arrived.recv().await.unwrap().peer.taken.replaces);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_keep_no_peer_out() {
    let authority = Authority::new("silent");
    let mut b = open(authority.door("b", COOKIE)).await;
    let a = authority.door("a", COOKIE);
    let (mut silent, mut slowest, mut joined) = (std::collections::VecDeque::new(), Duration::ZERO, 0);
    for number in 1..=10_000 {
        let mut connection = TcpStream::connect(b.at).await.unwrap();
        if number % 2 == 0 {
            connection.write_all(&[22]).await.unwrap(); // The first byte of a handshake, and never more.
        }
        silent.push_back(connection);
        if silent.len() > 500 {
            silent.pop_front(); // All but the last 64 have been closed by the other side long ago.
        }
        if number % 1000 == 0 {
            let began = Instant::now();
            timeout(2 * SECOND, a.dial(&name("b"), &b.at.to_string())).await.expect("within two seconds").unwrap();
            b.arrived.recv().await.unwrap();
            (slowest, joined) = (slowest.max(began.elapsed()), joined + 1);
        }
    }
    while b.counts.silent.load(Relaxed) < 9_000 {
        tokio::task::yield_now().await;
    }
    println!(
        "{joined} peers were introduced beside 10,000 connections that say nothing or one byte, the slowest in {slowest:?}"
    );
}

/// An address where any node may be: who is there says its certificate, and nobody else is taken.
#[tokio::test]
async fn who_is_at_an_address_says_its_certificate() {
    let (authority, stranger) = (Authority::new("search"), Authority::new("search-stranger"));
    let find = async |door: &Acceptor, at: SocketAddr| {
        timeout(SECOND, door.find(&at.to_string())).await.expect("an answer within a second")
    };
    let [a, b, m] = ["a", "b", "m"].map(|node| authority.door(node, COOKIE));
    let mut open_b = open(b.clone()).await;
    assert_eq!(find(&a, open_b.at).await.unwrap().peer.hello.name, name("b"));
    assert_eq!(open_b.arrived.recv().await.unwrap().peer.hello.name, name("a"));
    let who = |found: Result<AuthenticatedPeer, AcceptorError>| match found.err() {
        Some(AcceptorError::Hello(HandshakeError::Refused(refusal))) => refusal.found().map(ToString::to_string),
        _ => None,
    };
    assert_eq!(who(find(&m, open_b.at).await).as_deref(), Some("b"), "it is b's turn to dial");
    assert_eq!(who(find(&b, open_b.at).await).as_deref(), Some("b"), "itself");
    let other_cookie = open(authority.door("x", b"another cookie of thirty-two byt")).await;
    let refused = find(&a, other_cookie.at).await.err();
    assert!(
        matches!(refused, Some(AcceptorError::Hello(HandshakeError::Refused(PeerRefusal::Cookie(_))))),
        "{refused:?}"
    );
    let foreign = open(stranger.door("y", COOKIE)).await;
    let refused = find(&a, foreign.at).await.err();
    assert!(matches!(refused, Some(AcceptorError::Handshake(_))), "nobody vouches for it: {refused:?}");

    // A certificate of the cluster's for c, and whoever has it says that it is d.
    let files = authority.sign("c", false);
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let liar = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let binding = stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-orchestrator-core-node", None);
        let hello = Hello { protocols: PROTOCOLS, name: name("d"), boot_id: BootId(9) };
        let (cookie, chance) = (Cookie::new(COOKIE).unwrap(), Nonces { nonce: [1; 16], token: [0; 16] });
        let binding = binding.unwrap();
        let side = Side { hello: &hello, cookie: &cookie, role: Role::Acceptor, binding, chance };
        introduce(&mut stream, side, |_, _| Ok(Taken { protocol: 1, replaces: false })).await.map(drop)
    });
    let refused = find(&a, at).await.err();
    assert!(
        matches!(refused, Some(AcceptorError::Hello(HandshakeError::Refused(PeerRefusal::Certificate(_))))),
        "{refused:?}"
    );
    assert!(liar.await.unwrap().is_err(), "and it is told so");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let network = TlsNetwork::open(a, listener);
    let addresses = network.resolve("localhost:7710").await.unwrap();
    assert!(addresses.contains(&"127.0.0.1:7710".to_owned()), "{addresses:?}");
}
