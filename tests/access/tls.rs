//! Encrypted connections, clients with certificates, and addresses that others can reach.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{file, key, keys, orchestratord};
use crate::support::Service;

/// Serial numbers of the two clients' certificates.
const CLIENTS: [u64; 2] = [4711, 4712];

/// A CA and what it has signed, in PEM files and ready for a client.
struct Certificates {
    ca: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    client: (CertificateDer<'static>, PrivateKeyDer<'static>),
    other_client: (CertificateDer<'static>, PrivateKeyDer<'static>),
    files: [String; 3],
}

impl Certificates {
    /// The same with the other client.
    fn of_the_other(self) -> Self {
        Certificates { client: self.other_client, other_client: self.client, ..self }
    }

    /// A list of these revoked certificates, in PEM format, which is over in that year.
    fn revoked(&self, serials: &[u64], until: i32) -> String {
        let revoked = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 2),
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: rcgen::SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn certificates(name: &str) -> Certificates {
    let sign = |names: &[&str], serial: u64, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.serial_number = Some(rcgen::SerialNumber::from(serial));
        (params.signed_by(&key, issuer).unwrap(), key)
    };
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let (server, server_key) = sign(&["localhost", "127.0.0.1"], 4700, &issuer);
    let [client, other_client] = CLIENTS.map(|serial| {
        let (certificate, key) = sign(&["client"], serial, &issuer);
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    });
    let write = |what: &str, text: String| {
        let path = file(&format!("{name}-{what}.pem"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    Certificates {
        files: [write("cert", server.pem()), write("key", server_key.serialize_pem()), write("ca", ca.pem())],
        ca: ca.der().clone(),
        issuer,
        client,
        other_client,
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

fn configuration(name: &str, keys: &str, files: &[String; 3], mutual: bool) -> String {
    let ca = if mutual { format!(", client_ca_file: {:?}", files[2]) } else { String::new() };
    with_clients(name, keys, files, &ca)
}

/// A configuration with more that is said of clients' certificates.
fn with_clients(name: &str, keys: &str, [certificate, key, _]: &[String; 3], ca: &str) -> String {
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
fn a_revoked_certificate_does_not_get_in_once_the_list_has_changed_and_no_list_is_trusted_for_ever() {
    let keys = keys("revoked.json");
    let good = key(&keys, "alice", "read", &[]);
    let one = certificates("revoked");
    let path = file("revoked-list.pem");
    let list = |text: &str| std::fs::write(&path, text).unwrap();
    let (none, first) = (one.revoked(&[], 4000), one.revoked(&CLIENTS[..1], 4000));
    let (both, old) = (one.revoked(&CLIENTS, 4000), one.revoked(&[], 2021));
    list(&none);
    let said = format!(", client_ca_file: {:?}, client_crl_file: {:?}", one.files[2], path.display().to_string());
    let config = with_clients("revoked.yaml", &keys, &one.files, &said);
    let service = Service::start(&["--config", &config]);
    assert!(ask(service.port, &one, true, &good).unwrap().starts_with("HTTP/1.1 200"));
    list(&first);
    while ask(service.port, &one, true, &good).is_ok() {}
    let other = one.of_the_other();
    assert!(ask(service.port, &other, true, &good).unwrap().starts_with("HTTP/1.1 200"), "it is in no list");
    // A list that is wrong changes nothing; one that is over says of nobody that he is good.
    list("no list");
    while !service.log().contains("no revocation lists in PEM format") {}
    assert!(ask(service.port, &other, true, &good).is_ok());
    let one = other.of_the_other();
    assert!(ask(service.port, &one, true, &good).is_err());
    list(&both);
    let other = one.of_the_other();
    while ask(service.port, &other, true, &good).is_ok() {}
    list(&none);
    while ask(service.port, &other, true, &good).is_err() {}
    list(&old);
    while ask(service.port, &other, true, &good).is_ok() {}
    // At the start a wrong list ends the service, and one without a CA is a wrong configuration.
    list("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let (ok, _, err) = orchestratord(&["serve", "--config", &config, "--listen", "127.0.0.1:0"]);
    assert!(!ok && err.contains("revoked-list.pem: "), "{err}");
    let alone = with_clients("revoked-alone.yaml", &keys, &other.files, ", client_crl_file: list.pem");
    let (ok, _, err) = orchestratord(&["check", &alone]);
    assert!(!ok && err.contains("http.tls.client_crl_file: ") && err.contains("set client_ca_file too"), "{err}");
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
