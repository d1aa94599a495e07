//! The HTTP API of the service: where it listens, how much it takes, and whom it lets in.

use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError, NodeTlsConfig, section};

section! {
    /// The HTTP API of the service.
    pub struct HttpConfig {
        /// Address and port to listen on; `--listen` comes first. One that others can reach wants `access.keys_file`
        /// and `tls`, unless `--insecure` is given.
        pub listen: String = "127.0.0.1:7700".into(),
        /// Address and port for whoever operates the service; `--admin-listen` comes first. With one, what needs the
        /// scope `read` or `admin` is served there and nowhere else.
        pub admin_listen: Option<String> = None,
        /// Names by which the service is reached beside loopback's and its own addresses, such as a proxy's: the
        /// `Host` of a request, and the `Origin` of a page that may use the service, must be one of them. `*.` in front
        /// stands for one or more labels. An address that others can reach, with `access.keys_file` and none of these,
        /// is reached by any name.
        pub hosts: Vec<String> = Vec::new(),
        /// Certificates, for both listeners; left out, connections are not encrypted.
        pub tls: Option<TlsConfig> = None,
        /// Most connections of a listener. When there are more, the one that has been idle longest is closed; with none
        /// idle, the client that holds most gives its newest one back to one that holds fewer. A connection without a
        /// request takes some 5 KiB.
        pub connections_max: u32 = 16_384,
        /// Longest wait for the head of a request, in milliseconds; so long, too, a connection may stay without one.
        pub head_ms: u64 = 10_000,
        /// Longest wait for the body of a request, in milliseconds.
        pub body_ms: u64 = 30_000,
        /// Largest body of a request, in bytes. JSON may need several bytes for one of the prompt.
        pub body_bytes_max: u32 = 8 * 1024 * 1024,
        /// Most bytes of all bodies under way together. One client alone gets half of it, and what it may have shrinks
        /// as others come.
        pub bodies_bytes_max: u64 = 128 * 1024 * 1024,
        /// Requests a second of one client that are no submissions; those that cost an actor's time, such as `explain`,
        /// count as five, and a refused submission as one. Twice as many may come at once; what comes faster waits, and
        /// is refused beyond a second.
        pub requests_per_s: f64 = 500.0,
        /// Most connections that read the events of one task at a time.
        pub readers_max: u32 = 16,
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
    /// Certificate revocation lists: a client whose certificate is in one is not let in. Every authority in a client's
    /// chain needs a list here, and one that is not over (`nextUpdate`); without, its clients are not let in. Needs
    /// `client_ca_file`.
    #[serde(default)]
    pub client_crl_file: Option<String>,
}

impl TlsConfig {
    /// Its files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let TlsConfig { certificate_file, key_file, client_ca_file, client_crl_file } = self;
        let files = [Some(certificate_file), Some(key_file), client_ca_file.as_ref(), client_crl_file.as_ref()];
        files.into_iter().flatten().map(String::as_str)
    }
}

section! {
    /// Who may use the service.
    pub struct AccessConfig {
        /// The file of API keys that `orchestratord key` keeps. With it every request but those of the health pages
        /// needs a key; it is read again within a second when it has changed. Without it anybody who reaches the port
        /// may do everything.
        pub keys_file: Option<String> = None,
        /// Wrong keys that one address may send at once before it is told to slow down.
        pub failures_burst: u32 = 10,
        /// Wrong keys a second that it may send in the long run.
        pub failures_per_s: f64 = 1.0,
    }
}

/// Longest name of a host, in bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// Whether a text is a host's name or address without a port, or `*.` before a name.
fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(address) = bare {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= HOST_BYTES_MAX && name.split('.').all(is_label)
}

impl HttpConfig {
    /// What is wrong with the names of hosts.
    pub(crate) fn host_faults(&self) -> impl Iterator<Item = ConfigError> {
        let wrong = self.hosts.iter().enumerate().filter(|(_, host)| !is_host(host));
        wrong.map(|(position, host)| {
            let text = format!(
                "{host:?} is no host: it must be a name or an address without scheme, port and path, as in \
                 \"llm.example.com\", \"*.example.com\", \"[::1]\""
            );
            ConfigError::new(format!("http.hosts[{position}]"), text)
        })
    }

    /// What is wrong with the certificates' files, as far as it is seen without them.
    pub(crate) fn tls_fault(&self) -> Option<ConfigError> {
        let tls = self.tls.as_ref().filter(|tls| tls.client_crl_file.is_some() && tls.client_ca_file.is_none())?;
        let list = tls.client_crl_file.as_deref().unwrap_or_default();
        let text = format!("{list:?} says nothing while clients need no certificate; set client_ca_file too");
        Some(ConfigError::new("http.tls.client_crl_file", text))
    }
}

impl Config {
    /// The files of keys and certificates that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let node = self.cluster.iter().flat_map(|cluster| {
            let NodeTlsConfig { ca_file, certificate_file, key_file } = &cluster.tls;
            [ca_file, certificate_file, key_file].into_iter().chain(&cluster.crl_file).map(String::as_str)
        });
        let tls = self.http.tls.iter().flat_map(TlsConfig::files);
        self.access.keys_file.as_deref().into_iter().chain(tls).chain(node)
    }

    /// The same with other addresses to listen on, where they are given.
    #[must_use]
    pub fn with_listeners(mut self, listen: Option<String>, admin_listen: Option<String>) -> Self {
        self.http.listen = listen.unwrap_or(self.http.listen);
        self.http.admin_listen = admin_listen.or(self.http.admin_listen);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_and_nothing_else() {
        for host in
            ["llm.example.com", "gpu-1", "a_b.test.", "*.example.com", "10.0.0.5", "[::1]", "xn--bcher-kva.test"]
        {
            assert!(is_host(host), "{host:?}");
        }
        for host in [
            "",
            "*",
            "*.",
            ".",
            "a.*.test",
            "*a.test",
            "http://a.test",
            "a.test:80",
            "a.test/",
            "a b",
            "a,b",
            "::1",
            "[10.0.0.5]",
            "b\u{fc}cher.test",
        ] {
            assert!(!is_host(host), "{host:?}");
        }
        let http = HttpConfig { hosts: vec!["a.test".into(), "a.test:80".into()], ..HttpConfig::default() };
        let faults: Vec<String> = http.host_faults().map(|fault| fault.path).collect();
        assert_eq!(faults, ["http.hosts[1]"]);
    }

    #[test]
    fn lists_of_revoked_certificates_need_somebody_who_vouches_for_clients() {
        let file = |name: &str| Some(name.to_owned());
        let fault = |ca: Option<String>, crl: Option<String>| {
            let tls = TlsConfig {
                certificate_file: "cert".into(),
                key_file: "key".into(),
                client_ca_file: ca,
                client_crl_file: crl,
            };
            let config = Config {
                http: HttpConfig { tls: Some(tls), ..HttpConfig::default() },
                access: AccessConfig { keys_file: file("keys"), ..AccessConfig::default() },
                ..Config::default()
            };
            let files = config.files().collect::<Vec<_>>().join(" ");
            (files, config.http.tls_fault().map(|fault| fault.to_string()))
        };
        assert_eq!(fault(None, None), ("keys cert key".into(), None));
        assert_eq!(fault(file("ca"), file("crl")), ("keys cert key ca crl".into(), None));
        let (files, wrong) = fault(None, file("crl"));
        assert_eq!(files, "keys cert key crl");
        assert!(wrong.is_some_and(|wrong| wrong.starts_with("http.tls.client_crl_file: \"crl\" says nothing")));
        assert!(HttpConfig::default().tls_fault().is_none());
    }
}
