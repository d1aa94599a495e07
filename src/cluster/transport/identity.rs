//! What a node is known by: its name, a certificate for that name, and the cookie that all nodes of a cluster have.
//!
//! TLS 1.3 in both directions, always: each side shows a certificate, by the cluster's own authority. The cookie is a
//! second factor, for the case that the authority signs for others too.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    VerifierBuilderError, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::certificates::{certificates, private_key, revocation_lists, roots};
use crate::cluster::transport::handshake::Role;
use crate::cluster::transport::x509::{CertificateFacts, Shown};
use crate::core::cluster::node::NodeName;
use crate::core::text::line::Line;

/// Fewest bytes of a cookie. It is no password: 32 bytes of chance cannot be guessed.
pub const COOKIE_BYTES_MIN: usize = 32;
/// Most bytes of a cookie.
const COOKIE_BYTES_MAX: usize = 1024;

/// Longest objection to a certificate, in characters: the peer is told.
const OBJECTION_CHARS_MAX: usize = 200;

/// What all nodes of a cluster have and nobody else has.
#[derive(Clone)]
pub struct Cookie(Arc<[u8]>);

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(..)")
    }
}

impl Cookie {
    /// A cookie of these bytes.
    ///
    /// # Errors
    /// One line, without the cookie: it is too short, or too long.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        if (COOKIE_BYTES_MIN..=COOKIE_BYTES_MAX).contains(&bytes.len()) {
            return Ok(Cookie(bytes.into()));
        }
        Err(format!(
            "a cookie has {COOKIE_BYTES_MIN} to {COOKIE_BYTES_MAX} bytes of chance, this one has {}",
            bytes.len()
        ))
    }

    /// The cookie of a file, without white space around it.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn from_file(path: &str) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        Cookie::new(bytes.trim_ascii()).map_err(|error| format!("{path}: {error}"))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Files of a node's certificate, in PEM format.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Who vouches for the nodes of the cluster.
    pub ca: String,
    /// The node's certificate, and behind it those that vouch for it.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// What the authority has revoked; left out, nothing.
    pub crl: Option<String>,
}

impl CertificateFiles {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.ca, &self.certificate, &self.key].into_iter().chain(&self.crl).map(String::as_str)
    }
}

/// When certificates end, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The node's own, or the first of those behind it.
    pub own_s: i64,
    /// The first of the authorities'.
    pub authority_s: i64,
}

/// What a node is known by.
#[derive(Clone)]
pub struct Identity {
    pub(crate) name: NodeName,
    pub(crate) cookie: Cookie,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// For an address at which any node of the cluster may be.
    pub(crate) searcher: Arc<ClientConfig>,
    /// Those who ask what the authority says of a certificate now: of one that dialled, and of one that was dialled.
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    ends: Ends,
}

impl Identity {
    /// Reads a node's certificate.
    ///
    /// # Errors
    /// One line that says which file is wrong, and how; also when the certificate is not one for `name`, which every
    /// peer would refuse.
    pub fn load(name: NodeName, cookie: Cookie, files: &CertificateFiles) -> Result<Self, String> {
        let chain = certificates(&files.certificate)?;
        if !chain.first().is_some_and(|own| is_for(own, &name)) {
            return Err(format!(
                "{}: the certificate is not for node {name}: it needs that name as a DNS name",
                files.certificate
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(&files.ca)?);
        let (clients, servers) = verifiers(files, &roots, &provider)?;
        check_lists(files, &chain, &servers, &name)?;
        let ends = Ends { own_s: first_end(&files.certificate)?, authority_s: first_end(&files.ca)? };
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| format!("{}: {error}", files.ca))?;
        let misfit =
            |error: rustls::Error| format!("{} and {}: they do not fit: {error}", files.certificate, files.key);
        let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
        let server = server.map_err(|error| error.to_string())?.with_client_cert_verifier(verifier);
        let key = private_key(&files.key)?;
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(misfit)?;
        server.send_tls13_tickets = 0; // No connection is ever resumed: each shows its certificate anew.
        let client = || {
            let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
            client.map_err(|error| error.to_string())
        };
        let by_name = client()?.with_root_certificates(roots.clone());
        let by_name = by_name.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(misfit)?;
        let any = Arc::new(AnyNode { roots, algorithms: provider.signature_verification_algorithms });
        let searcher = client()?.dangerous().with_custom_certificate_verifier(any);
        let searcher = searcher.with_client_auth_cert(chain, key).map_err(misfit)?;
        let (server, client, searcher) = (Arc::new(server), Arc::new(by_name), Arc::new(searcher));
        Ok(Identity { name, cookie, server, client, searcher, clients, servers, ends })
    }

    /// When its certificates end.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// What speaks now against a certificate that a handshake has found good: the authority has revoked it, or does not
    /// vouch any more.
    pub(crate) fn objection(&self, name: &NodeName, shown: &Shown) -> Option<String> {
        let (own, behind) = shown.chain.split_first()?;
        let verdict = match shown.role {
            Role::Acceptor => self.clients.verify_client_cert(own, behind, shown.at).map(drop),
            Role::Dialler => match ServerName::try_from(name.as_str()) {
                Ok(name) => self.servers.verify_server_cert(own, behind, &name, &[], shown.at).map(drop),
                Err(error) => Err(rustls::Error::General(error.to_string())),
            },
        };
        verdict.err().map(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::Revoked) => "the authority has revoked it".to_owned(),
            error => Line::<OBJECTION_CHARS_MAX>::new(&error.to_string()).into(),
        })
    }
}

/// Those who ask the authority and its revocation lists. A list counts until another takes its place, however old it
/// is; an authority that has no list there has revoked nothing.
fn verifiers(
    files: &CertificateFiles,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<dyn ClientCertVerifier>, Arc<WebPkiServerVerifier>), String> {
    let lists = files.crl.as_deref().map(revocation_lists).transpose()?.unwrap_or_default();
    let place = files.crl.as_ref().unwrap_or(&files.ca);
    let fault = |error: VerifierBuilderError| format!("{place}: {error}");
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let clients = clients.with_crls(lists.clone()).allow_unknown_revocation_status().build().map_err(fault)?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let servers = servers.with_crls(lists).allow_unknown_revocation_status().build().map_err(fault)?;
    Ok((clients, servers))
}

/// A list that the authority has not signed would make this node refuse everybody.
fn check_lists(
    files: &CertificateFiles,
    chain: &[CertificateDer<'static>],
    servers: &WebPkiServerVerifier,
    name: &NodeName,
) -> Result<(), String> {
    let (Some(place), Some((own, behind))) = (&files.crl, chain.split_first()) else { return Ok(()) };
    let Ok(name) = ServerName::try_from(name.as_str()) else { return Ok(()) };
    match servers.verify_server_cert(own, behind, &name, &[], UnixTime::now()) {
        Err(error @ rustls::Error::InvalidCertRevocationList(_)) => {
            Err(format!("{place}: it is no list of the authority of {}: {error}", files.ca))
        }
        _ => Ok(()), // What else speaks against its certificate, its peers will say.
    }
}

/// When the first of a file's certificates ends.
fn first_end(path: &str) -> Result<i64, String> {
    let ends = certificates(path)?.iter().map(|one| CertificateFacts::read(one).map(|facts| facts.ends_at_s)).min();
    ends.flatten().ok_or_else(|| format!("{path}: a certificate that cannot be read"))
}

/// Takes every certificate that the cluster's authority vouches for: whose it is, the introduction compares with what
/// the node says.
#[derive(Debug)]
struct AnyNode {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&shown, &self.roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("nodes speak TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate is one for this node. Who vouches for it has been looked at by the handshake.
pub(crate) fn is_for(certificate: &CertificateDer<'_>, name: &NodeName) -> bool {
    let parsed = ParsedCertificate::try_from(certificate);
    let name = ServerName::try_from(name.as_str());
    matches!((parsed, name), (Ok(parsed), Ok(name)) if verify_server_name(&parsed, &name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_long_and_is_not_shown() {
        assert!(Cookie::new(&[7; 31]).expect_err("too short").contains("32 to 1024 bytes of chance, this one has 31"));
        let cookie = Cookie::new(b"0123456789abcdef0123456789abcdef").expect("long enough");
        assert_eq!(format!("{cookie:?}"), "Cookie(..)");
        assert!(Cookie::from_file("/nowhere/cookie").expect_err("no file").starts_with("/nowhere/cookie: "));
    }
}
