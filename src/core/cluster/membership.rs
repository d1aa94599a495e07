//! Which nodes may link with this one: those that its configuration names, and none of those that it denies.
//!
//! A right certificate and the cookie say who a node is. Whether it may come is asked here, of those who dial and of
//! those who are dialled, and again of every link when the rules change.
//!
//! Spec: ORCH-3035, ORCH-3044.

use std::collections::BTreeSet;
use std::fmt;

use crate::core::cluster::node::{NODE_NAME_BYTES_MAX, NodeName, PeerRefusal};
use crate::core::text::line::quoted;

/// Hexadecimal digits of the longest serial number that a certificate may have.
const SERIAL_DIGITS_MAX: usize = 40;
/// Hexadecimal digits of a SHA-256 digest.
const SHA256_DIGITS: usize = 64;

/// What tells one certificate from another, in hexadecimal digits, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateId {
    serial: String,
    sha256: String,
}

impl CertificateId {
    /// A certificate of this serial number, without zeros in front, and this SHA-256 digest.
    pub fn new(serial: &str, sha256: &str) -> Self {
        CertificateId { serial: digits(serial), sha256: sha256.to_ascii_lowercase() }
    }

    /// Its serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

/// A serial number in the one way that it is written here: lower case, no colons, no zeros in front.
fn digits(serial: &str) -> String {
    let plain = serial.replace(':', "").to_ascii_lowercase();
    let short = plain.trim_start_matches('0');
    if short.is_empty() && !plain.is_empty() { "0".into() } else { short.to_owned() }
}

/// Names of nodes: one, or all that a pattern such as `worker-*` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

/// Why an entry of a list of nodes is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    /// It is no name and no pattern.
    #[error(
        "{0} is no name of a node and no pattern: 1 to {NODE_NAME_BYTES_MAX} of a-z, 0-9 and '-', where '*' stands for any of them, \
         such as worker-*"
    )]
    Name(String),
    /// It begins as a serial number, and goes on as none.
    #[error(
        "{0} is no serial number: 'serial:' and 1 to {SERIAL_DIGITS_MAX} hexadecimal digits, as `openssl x509 -serial` says them"
    )]
    Serial(String),
    /// It begins as a digest, and goes on as none.
    #[error(
        "{0} is no fingerprint: 'sha256:' and {SHA256_DIGITS} hexadecimal digits, as `openssl x509 -fingerprint -sha256` says them"
    )]
    Sha256(String),
}

impl NamePattern {
    /// Checks `text` and makes it a pattern.
    ///
    /// # Errors
    /// [`InvalidEntry::Name`]: no node could have such a name.
    pub fn parse(text: &str) -> Result<Self, InvalidEntry> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*';
        let is_pattern = (1..=NODE_NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed);
        if !is_pattern || text.starts_with('-') || text.ends_with('-') {
            return Err(InvalidEntry::Name(quoted(text)));
        }
        Ok(NamePattern(text.to_owned()))
    }

    /// Whether it stands for this node.
    pub fn matches(&self, name: &NodeName) -> bool {
        let mut parts: Vec<&str> = self.0.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        let Some((first, middle)) = parts.split_first() else { return last == name.as_str() };
        let Some(mut rest) = name.as_str().strip_prefix(*first) else { return false };
        for part in middle {
            let Some((_, behind)) = rest.split_once(*part) else { return false };
            rest = behind;
        }
        rest.ends_with(last)
    }

    fn is_any(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }
}

/// Whom or what an entry of `deny` puts out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Nodes of these names.
    Name(NamePattern),
    /// Whoever shows the certificate of this serial number.
    Serial(String),
    /// Whoever shows the certificate of this SHA-256 digest.
    Sha256(String),
}

impl Denial {
    /// Reads an entry: a name or a pattern, `serial:` or `sha256:` and hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidEntry`].
    pub fn parse(text: &str) -> Result<Self, InvalidEntry> {
        let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(serial) = text.strip_prefix("serial:") {
            let serial = digits(serial);
            let is_serial = (1..=SERIAL_DIGITS_MAX).contains(&serial.len()) && is_hex(&serial);
            return if is_serial { Ok(Denial::Serial(serial)) } else { Err(InvalidEntry::Serial(quoted(text))) };
        }
        if let Some(digest) = text.strip_prefix("sha256:") {
            let digest = digest.replace(':', "").to_ascii_lowercase();
            let is_digest = digest.len() == SHA256_DIGITS && is_hex(&digest);
            return if is_digest { Ok(Denial::Sha256(digest)) } else { Err(InvalidEntry::Sha256(quoted(text))) };
        }
        NamePattern::parse(text).map(Denial::Name)
    }

    fn concerns(&self, name: &NodeName, certificate: Option<&CertificateId>) -> bool {
        match self {
            Denial::Name(pattern) => pattern.matches(name),
            Denial::Serial(serial) => certificate.is_some_and(|shown| shown.serial == *serial),
            Denial::Sha256(digest) => certificate.is_some_and(|shown| shown.sha256 == *digest),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Name(pattern) => f.write_str(&pattern.0),
            Denial::Serial(serial) => write!(f, "serial:{serial}"),
            Denial::Sha256(digest) => write!(f, "sha256:{digest}"),
        }
    }
}

/// Who may link with this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Every node whose certificate the authority vouches for.
    is_open: bool,
    peers: BTreeSet<NodeName>,
    allow: Vec<NamePattern>,
    /// Comes before the others.
    deny: Vec<Denial>,
}

impl Membership {
    /// Every node with a certificate of the authority.
    pub const fn open() -> Self {
        Membership { is_open: true, peers: BTreeSet::new(), allow: Vec::new(), deny: Vec::new() }
    }

    /// The nodes of `peers`, those that `allow` stands for, and none that `deny` names.
    pub fn new(peers: BTreeSet<NodeName>, allow: Vec<NamePattern>, deny: Vec<Denial>) -> Self {
        Membership { is_open: allow.iter().any(NamePattern::is_any), peers, allow, deny }
    }

    /// The same, and every node with a certificate of the authority beside them.
    #[must_use]
    pub fn and_any(self) -> Self {
        Membership { is_open: true, ..self }
    }

    /// Whether every node may come that is not denied.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether a node may link. `certificate` is what it has shown; `None` before it has.
    ///
    /// # Errors
    /// [`PeerRefusal::Denied`] or [`PeerRefusal::NotListed`].
    pub fn admit(&self, name: &NodeName, certificate: Option<&CertificateId>) -> Result<(), PeerRefusal> {
        if let Some(denial) = self.deny.iter().find(|denial| denial.concerns(name, certificate)) {
            return Err(PeerRefusal::Denied { peer: name.clone(), entry: denial.to_string() });
        }
        let is_listed =
            self.is_open || self.peers.contains(name) || self.allow.iter().any(|pattern| pattern.matches(name));
        if is_listed { Ok(()) } else { Err(PeerRefusal::NotListed(name.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).expect("a name")
    }

    fn rules(peers: &[&str], allow: &[&str], deny: &[&str]) -> Membership {
        let allow = allow.iter().map(|text| NamePattern::parse(text).expect("a pattern"));
        let deny = deny.iter().map(|text| Denial::parse(text).expect("an entry"));
        Membership::new(peers.iter().map(|peer| name(peer)).collect(), allow.collect(), deny.collect())
    }

    fn says(rules: &Membership, node: &str) -> String {
        rules.admit(&name(node), None).map_or_else(|refusal| refusal.to_string(), |()| "comes".into())
    }

    #[test]
    fn only_who_is_listed_may_come() {
        let listed = rules(&["a", "b"], &["worker-*", "c"], &[]);
        for node in ["a", "b", "c", "worker-1", "worker-x-9"] {
            assert_eq!(says(&listed, node), "comes", "{node}");
        }
        for node in ["d", "worker", "a-worker-1", "cc"] {
            let why = says(&listed, node);
            assert!(why.contains("cluster.peers") && why.contains("cluster.allow"), "{node}: {why}");
        }
        assert!(says(&rules(&[], &[], &[]), "a").contains("not listed"));
        assert_eq!(says(&rules(&[], &["*"], &[]), "anybody"), "comes");
        assert_eq!(says(&Membership::open(), "anybody"), "comes");
        assert_eq!(says(&rules(&["a"], &[], &[]).and_any(), "anybody"), "comes");
    }

    #[test]
    fn a_denied_node_does_not_come_whoever_lists_it() {
        let denied = rules(&["a", "b"], &["*"], &["a", "old-*"]);
        assert!(says(&denied, "a").contains("cluster.deny") && says(&denied, "old-7").contains("old-*"));
        assert_eq!(says(&denied, "b"), "comes");
    }

    #[test]
    fn a_certificate_is_denied_by_its_number_or_its_digest() {
        let digest = "ab".repeat(32);
        let shown = CertificateId::new("000A:1b", &digest);
        let admit = |deny: &str| rules(&["a"], &[], &[deny]).admit(&name("a"), Some(&shown));
        assert_eq!(shown.serial(), "a1b");
        assert!(admit("serial:0A1B").is_err() && admit("serial:0a:1b").is_err() && admit("serial:a1c").is_ok());
        let colons: Vec<&str> = vec!["AB"; 32];
        assert!(admit(&format!("sha256:{}", colons.join(":"))).is_err());
        assert!(admit(&format!("sha256:{}", "cd".repeat(32))).is_ok());
        let unseen = rules(&["a"], &[], &["serial:a1b"]).admit(&name("a"), None);
        assert!(unseen.is_ok(), "what has not been shown yet is not denied by its number");
    }

    #[test]
    fn a_pattern_stands_for_whole_names() {
        let is = |pattern: &str, node: &str| NamePattern::parse(pattern).expect("a pattern").matches(&name(node));
        assert!(is("a", "a") && !is("a", "ab") && !is("a", "ba"));
        assert!(is("*", "x") && is("a*", "a") && is("*a", "ba") && is("a*c", "abc") && is("a*c", "ac"));
        assert!(!is("ab*b", "ab") && is("ab*b", "abb"), "no character counts twice");
        assert!(is("a*b*c", "a1b2c") && is("a*b*c", "abbc") && !is("a*b*c", "acb") && is("a**c", "axc"));
    }

    #[test]
    fn what_is_no_entry_is_said_with_what_would_be() {
        for bad in ["", "A", "a b", "-a", "a-", "a.b", "worker-?", &"x".repeat(64)] {
            let error = NamePattern::parse(bad).expect_err("no pattern").to_string();
            assert!(error.contains("worker-*") && error.len() < 400, "{bad}: {error}");
        }
        for bad in ["serial:", "serial:xyz", "sha256:", "sha256:abc", &format!("serial:1{}", "0".repeat(40))] {
            let error = Denial::parse(bad).expect_err("no entry").to_string();
            assert!(error.contains("hexadecimal"), "{bad}: {error}");
        }
        let long = NamePattern::parse(&"y".repeat(1_000_000)).expect_err("too long").to_string();
        assert!(long.len() < 400, "what is said of it is short");
    }
}
