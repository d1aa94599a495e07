//! What a door takes up while it is open: who is listed, who is denied, what has been revoked, and another certificate.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use orchestrator_core::cluster::identity::CertificateFiles;
use orchestrator_core::cluster::{
    Acceptor, AcceptorError, Cookie, HandshakeError, Identity, Network, Roster, TlsNetwork,
};
use orchestrator_core::core::cluster::membership::{Denial, Membership, NamePattern};
use orchestrator_core::core::node::PeerRefusal;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Authority, COOKIE, dial, door, name, open, raw};

/// A certificate with this serial number, which ends with that year.
fn numbered(authority: &Authority, node: &str, serial: u64, year: i32) -> CertificateFiles {
    let mut params = CertificateParams::new(vec![node.to_owned()]).unwrap();
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_after = rcgen::date_time_ymd(year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let at = |what: &str| authority.folder.join(what).display().to_string();
    let files = CertificateFiles {
        ca: at("ca.pem"),
        certificate: at(&format!("{node}.pem")),
        key: at(&format!("{node}.key")),
        crl: None,
    };
    std::fs::write(&files.certificate, params.signed_by(&key, &authority.issuer).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// The authority's revocation list: a file.
fn list(authority: &Authority, serials: &[u64]) -> Option<String> {
    let entry = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2026, 1, 2), // Long ago: it counts all the same.
        crl_number: SerialNumber::from(serials.len() as u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let path = authority.folder.join("crl.pem");
    std::fs::write(&path, list.signed_by(&authority.issuer).unwrap().pem().unwrap()).unwrap();
    Some(path.display().to_string())
}

fn identity(node: &str, files: &CertificateFiles) -> Result<Identity, String> {
    Identity::load(name(node), Cookie::new(COOKIE).unwrap(), files)
}

fn listing(allow: &[&str], deny: &[&str]) -> Membership {
    let allow = allow.iter().map(|text| NamePattern::parse(text).unwrap());
    let deny = deny.iter().map(|text| Denial::parse(text).unwrap());
    Membership::new(BTreeSet::new(), allow.collect(), deny.collect())
}

/// Why this node refuses whoever is there.
async fn refusal(door: &Acceptor, to: &str, at: std::net::SocketAddr) -> PeerRefusal {
    match dial(door, to, at).await.err() {
        Some(AcceptorError::Hello(HandshakeError::Refused(refusal))) => refusal,
        other => panic!("it refuses nobody: {other:?}"),
    }
}

#[tokio::test]
async fn who_is_not_listed_or_is_denied_is_refused_told_and_counted() {
    let authority = Authority::new("listed");
    let roster = Roster::new(listing(&["c"], &[]));
    let b = authority.door("b", COOKIE).admitting(roster.clone());
    let mut open_b = open(b.clone()).await;
    let a = door("a", COOKIE, &numbered(&authority, "a", 0x0a1b, 2040), None);
    let at = open_b.at;
    let told = async || dial(&a, "b", at).await.err().unwrap().to_string();
    let why = told().await;
    assert!(why.contains("the peer says: node a is not listed") && why.contains("cluster.allow"), "{why}");
    roster.set(listing(&["*"], &["a"]));
    let why = told().await;
    assert!(why.contains("node a is denied by cluster.deny (a)"), "{why}");
    roster.set(listing(&["*"], &["serial:A1B"]));
    let why = told().await;
    assert!(why.contains("(serial:a1b)"), "{why}");
    while open_b.counts.not_listed.load(Relaxed) < 1 || open_b.counts.denied.load(Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!((open_b.counts.refused.load(Relaxed), open_b.counts.other.load(Relaxed)), (3, 0));
    assert!(open_b.arrived.try_recv().is_err(), "none of them got further");
    // In the other direction: by its name it is not even dialled, by its number it is found out.
    let open_a = open(a.clone()).await;
    let found_out = refusal(&b, "a", open_a.at).await;
    assert!(matches!(found_out, PeerRefusal::Denied { .. }), "{found_out}");
    assert_eq!(open_b.counts.denied.load(Relaxed), 3);
    roster.set(listing(&[], &[]));
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let refused = refusal(&b, "a", nowhere).await;
    assert!(matches!(refused, PeerRefusal::NotListed(_)), "{refused}");
    roster.set(listing(&["a"], &[]));
    dial(&a, "b", open_b.at).await.unwrap();
    assert_eq!(open_b.arrived.recv().await.unwrap().peer.hello.name, name("a"));
}

#[tokio::test]
async fn a_revoked_certificate_opens_nothing_and_its_link_does_not_stay() {
    let authority = Authority::new("revoked");
    let mut files = numbered(&authority, "b", 1, 2040);
    files.crl = list(&authority, &[]);
    let b = door("b", COOKIE, &files, None);
    let mut open_b = open(b.clone()).await;
    let a = door("a", COOKIE, &numbered(&authority, "a", 7, 2040), None);
    let at_a = dial(&a, "b", open_b.at).await.unwrap();
    let at_b = open_b.arrived.recv().await.unwrap();
    let network = TlsNetwork::open(b.clone(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let shown = at_b.shown.clone().expect("it has shown one");
    assert_eq!(network.objection(&name("a"), &shown), None);

    files.crl = list(&authority, &[5, 7]);
    b.renew(identity("b", &files).unwrap());
    assert_eq!(network.objection(&name("a"), &shown).as_deref(), Some("the authority has revoked it"));
    let why = dial(&a, "b", open_b.at).await.err().unwrap().to_string();
    assert!(why.contains("the certificate of node a does not count: the authority has revoked it"), "{why}");
    let open_a = open(a.clone()).await;
    assert!(matches!(refusal(&b, "a", open_a.at).await, PeerRefusal::NotVouchedFor { .. }));
    let found = b.find(&open_a.at.to_string()).await.err();
    let is_refused = |error: &AcceptorError| {
        matches!(error, AcceptorError::Hello(HandshakeError::Refused(PeerRefusal::NotVouchedFor { .. })))
    };
    assert!(found.as_ref().is_some_and(is_refused), "{found:?}");
    while open_b.counts.not_vouched_for.load(Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    // The side that dialled has shown nothing that is revoked, and nothing speaks against it there.
    let shown_by_b = at_a.shown.clone().expect("it has shown one");
    let network = TlsNetwork::open(a.clone(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    assert_eq!(network.objection(&name("b"), &shown_by_b), None);
    // Another certificate of the same node is another.
    a.renew(identity("a", &numbered(&authority, "a", 8, 2040)).unwrap());
    dial(&a, "b", open_b.at).await.unwrap();
    open_b.arrived.recv().await.unwrap();
}

#[tokio::test]
async fn a_list_of_another_authority_or_none_is_not_taken() {
    let (authority, other) = (Authority::new("lists"), Authority::new("lists-other"));
    let mut files = numbered(&authority, "b", 1, 2040);
    files.crl = list(&other, &[1]);
    let why = identity("b", &files).err().unwrap();
    assert!(why.contains("crl.pem: it is no list of the authority of") && why.contains("ca.pem"), "{why}");
    files.crl = Some(files.ca.clone());
    let why = identity("b", &files).err().unwrap();
    assert!(why.contains("ca.pem: no revocation lists in PEM format: there is none"), "{why}");
    files.crl = Some("/nowhere/crl.pem".into());
    assert!(identity("b", &files).err().unwrap().starts_with("/nowhere/crl.pem: "));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_the_next_connection_on_and_links_stay() {
    let authority = Authority::new("renewed");
    let b = door("b", COOKIE, &numbered(&authority, "b", 1, 2030), None);
    let mut open_b = open(b.clone()).await;
    let (visitor, at) = (numbered(&authority, "c", 3, 2040), open_b.at);
    let seen = async || {
        let stream = raw(&visitor, "b", at).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let (before, ends) = (seen().await, b.ends());
    let a = door("a", COOKIE, &numbered(&authority, "a", 2, 2040), None);
    let mut at_a = dial(&a, "b", open_b.at).await.unwrap().stream;
    let mut at_b = open_b.arrived.recv().await.unwrap().stream;
    b.renew(identity("b", &numbered(&authority, "b", 4, 2031)).unwrap());
    assert_ne!(seen().await, before);
    assert_eq!((b.ends().own_s - ends.own_s) / 86_400, 365);
    assert_eq!(b.ends().authority_s, ends.authority_s);
    at_a.write_all(b"still here").await.unwrap();
    at_a.flush().await.unwrap();
    let mut heard = [0; 10];
    at_b.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    dial(&a, "b", open_b.at).await.unwrap();
}
