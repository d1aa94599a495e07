//! The HTTP API of the service: where it listens, how much it takes, and whom it lets in.

use serde::{Deserialize, Serialize};

use crate::config::{Config, section};

section! {
    /// The HTTP API of the service.
    pub struct HttpConfig {
        /// Address and port to listen on; `--listen` comes first. One that others can reach wants `access.keys_file` and `tls`, unless
        /// `--insecure` is given.
        pub listen: String = "127.0.0.1:7700".into(),
        /// Address and port for whoever operates the service; `--admin-listen` comes first. With one, what needs the scope `read` or
        /// `admin` is served there and nowhere else.
        pub admin_listen: Option<String> = None,
        /// Certificates, for both listeners; left out, connections are not encrypted.
        pub tls: Option<TlsConfig> = None,
        /// Most connections of a listener. When there are more, the one that has been idle longest is closed; with none idle, the new
        /// one is. A connection without a request takes some 5 KiB.
        pub connections_max: u32 = 16_384,
        /// Longest wait for the head of a request, in milliseconds; so long, too, a connection may stay without one.
        pub head_ms: u64 = 10_000,
        /// Longest wait for the body of a request, in milliseconds.
        pub body_ms: u64 = 30_000,
        /// Largest body of a request, in bytes. JSON may need several bytes for one of the prompt.
        pub body_bytes_max: u32 = 8 * 1024 * 1024,
        /// Time between two comments on a stream without events, in milliseconds: proxies close silent connections.
        pub keep_alive_ms: u64 = 15_000,
        /// Time between two `metrics` events on a stream, in milliseconds.
        pub metrics_ms: u64 = 1_000,
    }
}

/// Certificates of the HTTP API: files in PEM format. They are read again when they have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct TlsConfig {
    /// The certificate, and behind it those that vouch for it.
    pub certificate_file: String,
    /// Its private key.
    pub key_file: String,
    /// Who vouches for clients. With it, a client without such a certificate is not let in (mutual TLS).
    #[serde(default)]
    pub client_ca_file: Option<String>,
}

section! {
    /// Who may use the service.
    pub struct AccessConfig {
        /// The file of API keys that `orchestratord key` keeps. With it every request but those of the health pages needs a key; it is
        /// read again within a second when it has changed. Without it anybody who reaches the port may do everything.
        pub keys_file: Option<String> = None,
        /// Wrong keys that one address may send at once before it is told to slow down.
        pub failures_burst: u32 = 10,
        /// Wrong keys a second that it may send in the long run.
        pub failures_per_s: f64 = 1.0,
    }
}

impl Config {
    /// The files of keys and certificates that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let tls = self.http.tls.iter();
        let tls = tls.flat_map(|tls| [Some(&tls.certificate_file), Some(&tls.key_file), tls.client_ca_file.as_ref()]);
        self.access.keys_file.iter().chain(tls.flatten()).map(String::as_str)
    }

    /// The same with other addresses to listen on, where they are given.
    #[must_use]
    pub fn with_listeners(mut self, listen: Option<String>, admin_listen: Option<String>) -> Self {
        self.http.listen = listen.unwrap_or(self.http.listen);
        self.http.admin_listen = admin_listen.or(self.http.admin_listen);
        self
    }
}
