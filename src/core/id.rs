//! Names of things, each a type of its own. Strings are checked once, at the edge, and are ids from there on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest id that is accepted from outside, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Why a string is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// The string has no characters.
    #[error("an id must not be empty")]
    Empty,
    /// The string is longer than [`ID_BYTES_MAX`].
    #[error("an id has at most {ID_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The string has a character that no id may have.
    #[error("an id has only letters, digits, '-', '_', '.' and ':', not {0:?}")]
    Character(char),
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(InvalidId::TooLong(text.len()));
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    text.chars().find(|c| !allowed(c)).map_or(Ok(()), |c| Err(InvalidId::Character(c)))
}

/// What every id can be made of, and looked at as.
macro_rules! id_traits {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidId;

            fn try_from(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it an id.
            ///
            /// # Errors
            /// [`InvalidId`] when it is empty, too long or has a character that no id may have.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        id_traits!($name);
    };
}

text_id!(
    /// The tenant who pays for a task.
    ClientId
);
text_id!(
    /// A short conversation of a client.
    SessionId
);
text_id!(
    /// One engine, one model, one configuration, with a queue.
    PoolId
);
text_id!(
    /// One GPU: its UUID, or the index that the configuration names it by.
    DeviceId
);

impl ClientId {
    /// The client of a request that names none.
    pub fn anonymous() -> Self {
        ClientId("anonymous".into())
    }
}

/// The unique name of a task (ORCH-3024).
///
/// Ids that the runtime makes are version-7 UUIDs kept as numbers, since one is made for each task; a caller may bring
/// any valid id of its own. The two forms of one UUID are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskId {
    /// A UUID in its canonical form.
    Uuid(Uuid),
    /// Any other id that a caller chose.
    Named(Arc<str>),
}

impl TaskId {
    /// Makes a version-7 UUID from a wall clock in milliseconds and ten random bytes.
    pub fn generate(unix_ms: u64, random: [u8; 10]) -> Self {
        TaskId::Uuid(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
    }

    /// Checks `text` and makes it a task id.
    ///
    /// # Errors
    /// [`InvalidId`] as for every id.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        check(text)?;
        match Uuid::try_parse(text) {
            // Only the canonical spelling: an id must print as it was given.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text => Ok(TaskId::Uuid(uuid)),
            _ => Ok(TaskId::Named(text.into())),
        }
    }

    /// A number that depends on the id alone, the same on every machine.
    pub fn stable_hash(&self) -> u64 {
        match self {
            TaskId::Uuid(uuid) => xxhash_rust::xxh3::xxh3_64(uuid.as_bytes()),
            TaskId::Named(text) => xxhash_rust::xxh3::xxh3_64(text.as_bytes()),
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskId::Uuid(uuid) => uuid.hyphenated().fmt(f),
            TaskId::Named(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for TaskId {
    /// As it is written everywhere else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl Serialize for TaskId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        TaskId::parse(&text).map_err(serde::de::Error::custom)
    }
}

id_traits!(TaskId);

/// A task's number in the order of submission to this runtime. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskSeq(pub u64);

/// How often a task has been handed towards a worker. What comes from an older epoch is refused (fencing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// One worker's place in a pool: written `pool/index`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The pool that the worker serves.
    pub pool: PoolId,
    /// Its position in the pool's configuration, from 0.
    pub index: u16,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.index)
    }
}

impl Serialize for ReplicaId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The set of GPUs that a worker may use (ORCH-3001). Sorted, without doubles; empty means "no GPU at all".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct DeviceMask(Vec<DeviceId>);

impl DeviceMask {
    /// The mask of these devices, in any order.
    pub fn new(mut devices: Vec<DeviceId>) -> Self {
        devices.sort();
        devices.dedup();
        DeviceMask(devices)
    }

    /// The devices in ascending order.
    pub fn devices(&self) -> &[DeviceId] {
        &self.0
    }

    /// Whether every device of this mask is also in `law`: work placed here stays inside `law` (ORCH-3011).
    pub fn is_within(&self, law: &DeviceMask) -> bool {
        self.0.iter().all(|device| law.0.binary_search(device).is_ok())
    }

    /// A device that both masks name, if there is one.
    pub fn overlap<'a>(&'a self, other: &DeviceMask) -> Option<&'a DeviceId> {
        self.0.iter().find(|device| other.0.binary_search(device).is_ok())
    }
}

impl fmt::Display for DeviceMask {
    /// The form that `CUDA_VISIBLE_DEVICES` takes: names joined by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, device) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            device.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_prints_as_it_was_given() {
        for text in ["a", "job-7", "018f3c1e-0000-7000-8000-000000000001", "018F3C1E-0000-7000-8000-000000000001"] {
            assert_eq!(TaskId::parse(text).expect("valid").to_string(), text);
        }
    }

    #[test]
    fn an_id_is_made_of_text_in_each_of_the_usual_ways() {
        let id = ClientId::parse("alice").expect("valid");
        assert_eq!(
            ("alice".parse(), ClientId::try_from("alice"), id.as_ref()),
            (Ok(id.clone()), Ok(id.clone()), "alice")
        );
        let uuid = "018f3c1e-0000-7000-8000-000000000001";
        let id: TaskId = serde_json::from_str(&format!("\"{uuid}\"")).expect("valid");
        assert_eq!((id.to_string(), format!("{id:?}")), (uuid.to_owned(), format!("TaskId({uuid})")));
        assert!(serde_json::from_str::<TaskId>("\"a b\"").is_err());
    }

    #[test]
    fn refuses_what_could_forge_a_log_line_or_a_path() {
        for text in ["", "a b", "a/b", "a\nb", "ä", "\u{1b}[2J"] {
            assert!(TaskId::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(ClientId::parse(&"x".repeat(129)), Err(InvalidId::TooLong(129)));
        assert!(ClientId::parse(&"x".repeat(128)).is_ok());
        let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 3 };
        assert_eq!(replica.to_string(), "p/3");
    }

    #[test]
    fn a_mask_is_a_set() {
        let device = |text: &str| DeviceId::parse(text).expect("valid");
        let both = DeviceMask::new(vec![device("1"), device("0"), device("1")]);
        let one = DeviceMask::new(vec![device("1")]);
        assert_eq!((both.to_string().as_str(), both.devices().len()), ("0,1", 2));
        assert!(one.is_within(&both) && !both.is_within(&one));
        assert_eq!(one.overlap(&both), Some(&device("1")));
    }
}
