//! API keys: what they look like, and the file that they are kept in.
//!
//! A key is `oc_<id>_<secret>`. The secret is 256 random bits and is shown once; the file has its SHA-256. So much
//! chance needs no slow hash: nobody guesses it, and whoever reads the file learns no key.
//!
//! Spec: ORCH-3035.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{ClientConfig, ConfigError};
use crate::core::fairness::hash::hex;
use crate::core::id::{ClientId, PoolId};
use crate::service::host::file_write::{Place, read_regular};

/// What a key begins with, so that scanners for leaked secrets know it.
const PREFIX: &str = "oc_";
/// Random bytes of an id, and of a secret.
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
/// The version of the file that this program writes and reads.
const VERSION: u32 = 1;

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Submit tasks; look at, stream and cancel one's own.
    Submit,
    /// See pools, devices, figures and how every task stands, but no prompt, no token and no word of an engine.
    Read,
    /// Everything.
    Admin,
}

impl Scope {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Submit => "submit",
            Scope::Read => "read",
            Scope::Admin => "admin",
        }
    }
}

/// A key as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its public part.
    pub id: String,
    /// Whose tasks it submits.
    pub client: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub sha256: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// The only pools that it may use; left out, all that its client may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Vec<String>>,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// When it ends, in seconds since 1970; left out, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// When it was revoked, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

impl Key {
    fn is_good(&self, now: u64) -> Result<(), Denied> {
        match self {
            Key { revoked_at: Some(_), .. } => Err(Denied::Revoked),
            Key { expires_at: Some(end), .. } if *end <= now => Err(Denied::Expired),
            _ => Ok(()),
        }
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// Its version.
    pub version: u32,
    /// The keys, in the order in which they were made.
    pub keys: Vec<Key>,
    /// What clients of keys may do; comes before `clients` of the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<String, ClientTerms>,
}

/// What the file says of a client; what is left out is as the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTerms {
    /// Its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Tasks that may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Tasks that may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u32>,
    /// Tasks a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<f64>,
}

impl ClientTerms {
    /// The client of the configuration with these terms.
    pub fn over(&self, mut client: ClientConfig) -> ClientConfig {
        client.weight = self.weight.unwrap_or(client.weight);
        client.quotas.running = self.running.or(client.quotas.running);
        client.quotas.queued = self.queued.or(client.quotas.queued);
        client.limits.requests_per_s = self.requests_per_s.or(client.limits.requests_per_s);
        client
    }

    /// What the service would refuse of them, each with the field that it is in.
    pub(crate) fn faults(&self) -> Vec<ConfigError> {
        let field = |fault: ConfigError| {
            let path = fault.path.rsplit('.').next().unwrap_or_default().to_owned();
            ConfigError { path, message: fault.message }
        };
        self.over(ClientConfig::default()).faults("").into_iter().map(field).collect()
    }
}

impl Default for KeyFile {
    fn default() -> Self {
        KeyFile { version: VERSION, keys: Vec::new(), clients: BTreeMap::new() }
    }
}

/// Why a key does not open anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is none of ours.
    Unknown,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl Denied {
    /// As it is written in labels and audit events. An answer does not tell them apart.
    pub const fn as_str(self) -> &'static str {
        match self {
            Denied::Unknown => "invalid",
            Denied::Expired => "expired",
            Denied::Revoked => "revoked",
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// The parts of a key that is well formed: id and secret.
fn parts(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_whole = id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES;
    (is_whole && is_hex(id) && is_hex(secret)).then_some((id, secret))
}

impl KeyFile {
    /// Adds a key for a client, and returns it whole: the only time that its secret is known.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn add(
        &mut self,
        client: &str,
        scopes: Vec<Scope>,
        now: u64,
        expires_at: Option<u64>,
    ) -> Result<String, String> {
        let (id, secret) = (hex(&random::<ID_BYTES>()?), hex(&random::<SECRET_BYTES>()?));
        let text = format!("{PREFIX}{id}_{secret}");
        let (client, sha256) = (client.to_owned(), hex(&digest(&secret)));
        self.keys.push(Key { id, client, sha256, scopes, pools: None, created_at: now, expires_at, revoked_at: None });
        Ok(text)
    }

    /// Reads a file that a service is to begin with; one that is not there has no keys.
    ///
    /// # Errors
    /// One line that says what is wrong with it, or with what it says of clients.
    pub fn load(path: &Path) -> Result<KeyFile, String> {
        let file = Self::read(path)?;
        file.check_terms().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(file)
    }

    /// Reads a file whose clients are looked at elsewhere; one that is not there has no keys.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub(crate) fn read(path: &Path) -> Result<KeyFile, String> {
        match read_regular(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(KeyFile::default()),
            other => {
                let text = other.map_err(|error| format!("{}: it cannot be read: {error}", path.display()))?;
                Self::parse(&text, path)
            }
        }
    }

    /// Reads a file that is to be changed; `None` when it is not there.
    ///
    /// # Errors
    /// As [`KeyFile::read`].
    pub(crate) fn read_at(place: &Place) -> Result<Option<KeyFile>, String> {
        place.text()?.map(|text| Self::parse(&text, place.path())).transpose()
    }

    fn parse(text: &str, path: &Path) -> Result<KeyFile, String> {
        let file: KeyFile = serde_json::from_str(text).map_err(|error| format!("{}: {error}", path.display()))?;
        file.check().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not known; this program knows {VERSION}", self.version));
        }
        for (position, key) in self.keys.iter().enumerate() {
            let named = |what: &str, error: String| format!("keys[{position}].{what}: {error}");
            ClientId::parse(&key.client).map_err(|error| named("client", error.to_string()))?;
            for pool in key.pools.iter().flatten() {
                PoolId::parse(pool).map_err(|error| named("pools", error.to_string()))?;
            }
            if key.sha256.len() != 64 || key.id.len() != 2 * ID_BYTES {
                return Err(named("id", "it is no key that this program has made".into()));
            }
        }
        Ok(())
    }

    /// Whether a service takes what it says of clients.
    fn check_terms(&self) -> Result<(), String> {
        let of_client = |(name, terms): (&String, &ClientTerms)| {
            let path = format!("clients.{name}");
            let wrong_name = ClientId::parse(name).err().map(|error| format!("{path}: {error}"));
            let faults = terms.faults().into_iter().map(|fault| format!("{path}.{fault}"));
            wrong_name.into_iter().chain(faults).collect::<Vec<_>>()
        };
        let faults: Vec<String> = self.clients.iter().flat_map(of_client).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    /// Writes the file; one that was not there before is for its owner alone. Nothing is written that a service would
    /// not take: it would go on with the keys that it has.
    ///
    /// # Errors
    /// One line that says why it could not be written; what was there is still there.
    pub(crate) fn write(&self, place: &Place) -> Result<(), String> {
        let refused = |error: String| {
            format!("{}: {error}; a service does not take such a file, so nothing was changed", place.path().display())
        };
        self.check_terms().map_err(refused)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        place.replace(format!("{text}\n").as_bytes())
    }

    /// Writes the file at this path, as the commands do.
    ///
    /// # Errors
    /// One line that says why it could not be written; what was there is still there.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        self.write(&Place::find(path)?)
    }
}

/// A key of the file, with what it says read.
#[derive(Debug, PartialEq)]
pub(crate) struct KnownKey {
    pub(crate) key: Key,
    pub(crate) client: ClientId,
    pub(crate) pools: Option<Arc<[PoolId]>>,
    digest: [u8; 32],
}

impl KnownKey {
    /// `None` for one that this program would not have let into the file.
    fn of(key: &Key) -> Option<Self> {
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(key.sha256.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let client = ClientId::parse(&key.client).ok()?;
        let parsed = |pools: &Vec<String>| pools.iter().map(|pool| PoolId::parse(pool).ok()).collect::<Option<_>>();
        let pools = match &key.pools {
            Some(pools) => Some(parsed(pools)?),
            None => None,
        };
        Some(KnownKey { key: key.clone(), client, pools, digest })
    }

    /// Whether it allows what another one does.
    pub(crate) fn allows_the_same(&self, other: &KnownKey) -> bool {
        let allowed = |known: &KnownKey| (known.client.clone(), known.pools.clone(), known.key.scopes.clone());
        std::ptr::eq(self, other) || allowed(self) == allowed(other)
    }
}

/// The keys of a file by their ids, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct KeyTable(BTreeMap<String, Arc<KnownKey>>);

impl KeyTable {
    /// The key of this id, if it still opens something.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn standing(&self, id: &str, now: u64) -> Result<&Arc<KnownKey>, Denied> {
        let known = self.0.get(id).ok_or(Denied::Unknown)?;
        known.key.is_good(now).map(|()| known)
    }

    /// The keys of a file.
    pub(crate) fn new(file: &KeyFile) -> Self {
        let known = file.keys.iter().filter_map(KnownKey::of);
        KeyTable(known.map(|known| (known.key.id.clone(), Arc::new(known))).collect())
    }

    /// The key that this text is.
    pub(crate) fn find(&self, text: &str, now: u64) -> Result<&Arc<KnownKey>, Denied> {
        let (id, secret) = parts(text).ok_or(Denied::Unknown)?;
        // The id is public; that an unknown one takes less time tells nothing.
        let known = self.0.get(id).ok_or(Denied::Unknown)?;
        if !bool::from(digest(secret).ct_eq(&known.digest)) {
            return Err(Denied::Unknown);
        }
        known.key.is_good(now).map(|()| known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_until_it_is_over_and_nothing_like_it_does() {
        let mut file = KeyFile::default();
        let text = file.add("alice", vec![Scope::Submit], 100, Some(200)).expect("random bytes");
        assert_eq!((text.len(), &text[..3]), (3 + 12 + 1 + 64, "oc_"));
        let table = KeyTable::new(&file);
        assert_eq!(table.find(&text, 199).map(|known| known.client.as_str()), Ok("alice"));
        assert_eq!(table.find(&text, 200), Err(Denied::Expired));
        let flipped = |at: usize| {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(bytes).expect("ascii")
        };
        for wrong in [
            &text[..text.len() - 1],
            &text[3..],
            "",
            "oc__",
            &text.to_uppercase(),
            &flipped(3),
            &flipped(16),
            &flipped(79),
        ] {
            assert_eq!(table.find(wrong, 150), Err(Denied::Unknown), "{wrong}");
        }
        file.keys[0].revoked_at = Some(150);
        assert_eq!(KeyTable::new(&file).find(&text, 150), Err(Denied::Revoked));
        assert!(
            !serde_json::to_string(&file).expect("json").contains(&text[16..]),
            "the secret is nowhere in the file"
        );
    }

    #[test]
    fn a_file_is_written_for_its_owner_alone_and_read_back() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("oc-keys-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("keys.json");
        let mut file = KeyFile::load(&path).expect("none yet");
        file.add("a", vec![Scope::Admin], 1, None).expect("random bytes");
        file.save(&path).expect("written");
        assert_eq!(KeyFile::load(&path).expect("read"), file);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "{\"version\":9,\"keys\":[]}").expect("written");
        assert!(KeyFile::load(&path).expect_err("another version").contains("version 9 is not known"));
        std::fs::remove_dir_all(&folder).expect("gone");
    }

    #[test]
    fn what_is_said_of_clients_is_what_a_configuration_may_say() {
        let faults = |terms: ClientTerms| {
            let fields = terms.faults().into_iter().map(|fault| fault.path).collect::<Vec<_>>().join(",");
            let file = KeyFile { clients: [("a.b".to_owned(), terms)].into(), ..KeyFile::default() };
            assert_eq!(file.check_terms().is_ok(), fields.is_empty(), "{fields}");
            fields
        };
        let good = ClientTerms { weight: Some(1), running: Some(1), queued: Some(0), requests_per_s: Some(0.5) };
        assert_eq!((faults(ClientTerms::default()), faults(good)), (String::new(), String::new()));
        assert_eq!(faults(ClientTerms { weight: Some(0), running: Some(0), ..good }), "weight,running");
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            assert_eq!(faults(ClientTerms { requests_per_s: Some(rate), ..good }), "requests_per_s", "{rate}");
        }
        let wrong = ClientTerms { weight: Some(0), ..good };
        let file =
            KeyFile { clients: [("a".to_owned(), wrong), ("b c".to_owned(), good)].into(), ..KeyFile::default() };
        let error = file.check_terms().expect_err("two faults");
        assert!(
            error.starts_with("clients.a.weight: it must be from 1 to ") && error.contains("; clients.b c: "),
            "{error}"
        );
    }
}
