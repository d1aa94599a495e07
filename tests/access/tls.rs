//! Encrypted connections, clients with certificates, and addresses that others can reach.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{file, key, keys, orchestratord};
use crate::support::Service;

/// A CA and what it has signed, in PEM files and ready for a client.
struct Certificates {
    ca: CertificateDer<'static>,
    client: (CertificateDer<'static>, PrivateKeyDer<'static>),
    files: [String; 3],
}

fn certificates(name: &str) -> Certificates {
    let sign = |names: &[&str], issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        (rcgen::CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap(), key)
    };
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let (server, server_key) = sign(&["localhost", "127.0.0.1"], &issuer);
    let (client, client_key) = sign(&["client"], &issuer);
    let write = |what: &str, text: String| {
        let path = file(&format!("{name}-{what}.pem"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    Certificates {
        files: [write("cert", server.pem()), write("key", server_key.serialize_pem()), write("ca", ca.pem())],
        ca: ca.der().clone(),
        client: (client.der().clone(), PrivateKeyDer::try_from(client_key.serialize_der()).unwrap()),
    }
}

/// Asks for a page over TLS, with a client's certificate or without.
fn ask(port: u16, certificates: &Certificates, with_certificate: bool, key: &str) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates.ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = if with_certificate {
        let (certificate, key) = (certificates.client.0.clone(), certificates.client.1.clone_key());
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let head = format!(
        "GET /v1/pools HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    );
    tls.write_all(head.as_bytes())?;
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer); // A connection that ends without a farewell is the other side's choice.
    if answer.is_empty() { Err(std::io::ErrorKind::ConnectionReset.into()) } else { Ok(answer) }
}

fn configuration(name: &str, keys: &str, [certificate, key, ca]: &[String; 3], mutual: bool) -> String {
    let ca = if mutual { format!(", client_ca_file: {ca:?}") } else { String::new() };
    let text = format!(
        "pools: [{{id: a, engine: sim, model: m, sim: {{preload_us: 0}}}}]\naccess: {{keys_file: {keys:?}}}\n\
         http: {{tls: {{certificate_file: {certificate:?}, key_file: {key:?}{ca}}}}}\n"
    );
    let path = file(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn connections_are_encrypted_and_with_a_ca_only_certified_clients_come_in() {
    let keys = keys("tls.json");
    let good = key(&keys, "alice", "read", &[]);
    let certificates = certificates("tls");
    let service = Service::start(&["--config", &configuration("tls.yaml", &keys, &certificates.files, false)]);
    assert!(service.greeting.contains("https://"), "{}", service.greeting);
    assert!(ask(service.port, &certificates, false, &good).unwrap().starts_with("HTTP/1.1 200"));
    assert!(ask(service.port, &certificates, false, "oc_x").unwrap().starts_with("HTTP/1.1 401"));
    // Whoever speaks plainly gets nothing.
    let (status, _, _) = crate::support::exchange(service.port, "GET", "/healthz", &[], b"");
    assert_eq!(status, 0);
    let mutual = Service::start(&["--config", &configuration("mtls.yaml", &keys, &certificates.files, true)]);
    assert!(ask(mutual.port, &certificates, true, &good).unwrap().starts_with("HTTP/1.1 200"));
    assert!(ask(mutual.port, &certificates, false, &good).is_err(), "no certificate");
    let stranger = super::tls::certificates("tls-stranger");
    let posing = Certificates { client: stranger.client, ..certificates };
    assert!(ask(mutual.port, &posing, true, &good).is_err(), "another CA's certificate");
}

#[test]
fn new_certificates_are_used_without_a_restart_and_wrong_ones_change_nothing() {
    let keys = keys("renew.json");
    let good = key(&keys, "alice", "read", &[]);
    let old = certificates("renew");
    let service = Service::start(&["--config", &configuration("renew.yaml", &keys, &old.files, false)]);
    assert!(ask(service.port, &old, false, &good).is_ok());
    std::fs::write(&old.files[0], "no certificate").unwrap();
    let fresh = certificates("renew-fresh");
    assert!(ask(service.port, &old, false, &good).is_ok(), "the old one stays");
    std::fs::copy(&fresh.files[1], &old.files[1]).unwrap();
    std::fs::copy(&fresh.files[0], &old.files[0]).unwrap();
    while ask(service.port, &fresh, false, &good).is_err() {}
    assert!(ask(service.port, &old, false, &good).is_err());
}

#[test]
fn an_address_that_others_can_reach_wants_keys_and_encryption_or_a_word() {
    let config = file("open.yaml");
    std::fs::write(&config, "pools: [{id: a, engine: sim, model: m, sim: {preload_us: 0}}]\n").unwrap();
    let config = config.display().to_string();
    let (ok, _, err) = orchestratord(&["serve", "--config", &config, "--listen", "0.0.0.0:0"]);
    assert!(!ok && err.contains("--insecure") && err.contains("access.keys_file"), "{err}");
    let service = Service::start(&["--config", &config, "--listen", "0.0.0.0:0", "--insecure"]);
    assert_eq!(crate::support::exchange(service.port, "GET", "/healthz", &[], b"").0, 200);
    let (ok, _, err) = orchestratord(&["serve", "--config", &config, "--admin-listen", "0.0.0.0:0"]);
    assert!(!ok && err.contains("--insecure"), "{err}");
}

#[test]
fn operators_have_a_listener_of_their_own_where_there_is_one() {
    let service = Service::start(&["--admin-listen", "127.0.0.1:0"]);
    let port: u16 = service
        .greeting
        .split("dashboard: http://127.0.0.1:")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let status = |port, method, path| crate::support::exchange(port, method, path, &[], b"{}").0;
    for path in ["/metrics", "/v1/pools", "/v1/config", "/v1/overview"] {
        assert_eq!((status(service.port, "GET", path), status(port, "GET", path)), (404, 200), "{path}");
    }
    assert_eq!((status(service.port, "POST", "/v1/tasks"), status(port, "POST", "/v1/tasks")), (400, 404));
    assert_eq!((status(service.port, "GET", "/healthz"), status(port, "GET", "/healthz")), (200, 200));
}
