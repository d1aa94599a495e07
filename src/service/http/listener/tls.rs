//! Certificates of the HTTP API: read from files, and again when those have changed. TLS 1.2 and 1.3 by rustls; with a
//! client's CA, mutual, and then with lists of certificates that do not count any more.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use crate::certificates::{certificates, private_key, revocation_lists, roots};
use crate::config::TlsConfig;

/// The certificates that are in use.
pub(crate) struct Tls {
    config: TlsConfig,
    /// Read once for each connection, written when the files have changed.
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One line that names the file and says what is wrong with it.
    pub(crate) fn load(config: TlsConfig) -> Result<Arc<Self>, String> {
        let current = RwLock::new(Arc::new(read(&config)?));
        Ok(Arc::new(Tls { config, current }))
    }

    /// Reads the files again. What is in use stays when they are wrong.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub(crate) fn reload(&self) -> Result<(), String> {
        *self.current.write() = Arc::new(read(&self.config)?);
        Ok(())
    }

    /// The files.
    pub(crate) fn files(&self) -> Vec<&str> {
        self.config.files().collect()
    }

    /// What greets the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().clone())
    }
}

fn read(config: &TlsConfig) -> Result<ServerConfig, String> {
    let chain = certificates(&config.certificate_file)?;
    let key = private_key(&config.key_file)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(verifier(ca, config.client_crl_file.as_deref(), provider)?),
    };
    let mut server = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{} and {}: they do not fit: {error}", config.certificate_file, config.key_file))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    if config.client_crl_file.is_some() {
        // A session that is taken up again is not judged again, and a list may be over by then.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    Ok(server)
}

/// Who judges the certificates of clients. With lists, one is good when each authority in its chain has a list that is
/// not over, and none of the chain is in one: what is not known to be good is refused, and so are all when nobody
/// renews a list.
fn verifier(
    ca: &str,
    lists: Option<&str>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider);
    let builder = match lists {
        None => builder,
        Some(path) => builder.with_crls(revocation_lists(path)?).enforce_revocation_expiration(),
    };
    builder.build().map_err(|error| match (&error, lists) {
        (VerifierBuilderError::InvalidCrl(_), Some(path)) => format!("{path}: {error}"),
        _ => format!("{ca}: {error}"),
    })
}
