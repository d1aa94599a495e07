//! Bytes: the one module that knows the codec (`bincode` 2).
//!
//! Every message begins with a version byte. Decoding has a size limit, since a length field from outside would else be
//! an allocation of the sender's choice; what is left over behind a message is an error. Types on the wire are never
//! recursive. A newer version than ours is refused by name, not guessed at (ORCH-3044).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this build writes, and the newest that it reads.
pub const VERSION: u8 = 1;

/// Largest message, in bytes, that is written or read.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is not even a version.
    #[error("the message is empty")]
    Empty,
    /// Somebody newer wrote it, or nobody of ours.
    #[error("the message has version {found}, this build reads version {VERSION}")]
    Version {
        /// The version that it has.
        found: u8,
    },
    /// It is larger than [`MESSAGE_BYTES_MAX`].
    #[error("the message has {0} bytes, at most {MESSAGE_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Bytes follow behind its end.
    #[error("{0} bytes follow behind the message")]
    TrailingBytes(usize),
    /// The codec could not write it.
    #[error("the message cannot be written: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The codec could not read it.
    #[error("the message cannot be read: {0}")]
    Decode(#[from] bincode::error::DecodeError),
}

fn codec<const MAX: usize>() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX>()
}

/// Writes a message.
///
/// # Errors
/// [`WireError::Encode`] when the type is not one the codec can write, [`WireError::TooLarge`] when it does not fit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(message, &mut bytes, codec::<MESSAGE_BYTES_MAX>())?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// Reads a message that fills `bytes` exactly.
///
/// # Errors
/// [`WireError`] for anything else than one whole message of this version. Never panics, and never allocates more than
/// [`MESSAGE_BYTES_MAX`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode_within::<T, MESSAGE_BYTES_MAX>(bytes)
}

/// The same for a message of whom nobody knows yet: never allocates more than `MAX` bytes, whatever it says of its
/// lengths.
///
/// # Errors
/// As [`decode`].
pub fn decode_within<T: DeserializeOwned, const MAX: usize>(bytes: &[u8]) -> Result<T, WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != VERSION {
        return Err(WireError::Version { found: *version });
    }
    if bytes.len() > MAX {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let (message, read) = bincode::serde::decode_from_slice(body, codec::<MAX>())?;
    match body.len() - read {
        0 => Ok(message),
        left => Err(WireError::TrailingBytes(left)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::id::{Epoch, TaskSeq};
    use crate::core::task::trace::{TraceEvent, TraceKind};
    use crate::core::units::Timestamp;

    fn event() -> TraceEvent {
        TraceEvent { at: Timestamp::from_micros(300), kind: TraceKind::Assigned { seq: TaskSeq(7), epoch: Epoch(2) } }
    }

    #[test]
    fn the_bytes_of_a_message_do_not_change() {
        // version, 300 as a two-byte varint, variant 2, seq 7, epoch 2
        assert_eq!(encode(&event()).expect("encodes"), [1, 251, 44, 1, 2, 7, 2]);
        assert_eq!(decode::<TraceEvent>(&[1, 251, 44, 1, 2, 7, 2]).expect("decodes"), event());
    }

    #[test]
    fn what_is_not_one_whole_message_of_this_version_is_refused() {
        let bytes = encode(&event()).expect("encodes");
        assert!(matches!(decode::<TraceEvent>(&[]), Err(WireError::Empty)));
        assert!(matches!(decode::<TraceEvent>(&[2, 0]), Err(WireError::Version { found: 2 })));
        assert!(matches!(decode::<TraceEvent>(&bytes[..bytes.len() - 1]), Err(WireError::Decode(_))));
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<TraceEvent>(&longer), Err(WireError::TrailingBytes(1))));
    }

    #[test]
    fn a_length_field_from_outside_is_no_allocation_of_the_senders_choice() {
        // A vector of 2^40 bytes, declared in nine bytes.
        let bomb = [VERSION, 253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(matches!(decode::<Vec<u8>>(&bomb), Err(WireError::Decode(_))));
        // And one of 2,000, to somebody who takes 1,000.
        let small = [VERSION, 251, 0xd0, 7, 0];
        assert!(matches!(decode_within::<Vec<u8>, 1000>(&small), Err(WireError::Decode(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode::<Vec<TraceEvent>>(&bytes);
        }
    }
}
