//! Certificates of the HTTP API: read from files, and again when those have changed. TLS 1.2 and 1.3 by rustls; with a client's CA, mutual.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{certificates, private_key, roots};
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
        let TlsConfig { certificate_file, key_file, client_ca_file } = &self.config;
        [Some(certificate_file), Some(key_file), client_ca_file.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
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
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| format!("{path}: {error}"))?)
        }
    };
    let mut server = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{} and {}: they do not fit: {error}", config.certificate_file, config.key_file))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}
