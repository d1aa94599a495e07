//! What two nodes say to each other first, over an encrypted connection: who they are, a proof that they know the
//! cookie, and whether each takes the other. Both sides say the same three things, at the same time.
//!
//! The proof is bound to the connection (by key material that TLS exports), to the role, and to both greetings, so that
//! none can be recorded, reflected or passed on. These three messages never change their form: a newer node must still
//! be able to say that it is newer.
//!
//! Spec: ORCH-3044.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cluster::transport::identity::Cookie;
use crate::core::cluster::node::{Hello, PeerRefusal, Taken};
use crate::core::cluster::wire;

/// Longest message of an introduction, in bytes. Nothing longer is read from a peer that is not known yet.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest refusal that is passed on, in characters.
const REFUSAL_CHARS_MAX: usize = 300;

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It made the connection.
    Dialler,
    /// It was dialled.
    Acceptor,
}

/// Bytes of chance for one introduction.
#[derive(Clone, Copy)]
pub struct Nonces {
    /// Makes this introduction unlike all others.
    pub nonce: [u8; 16],
    /// What the peer has to show with everything that it says on this link.
    pub token: [u8; 16],
}

/// All that one side needs.
pub struct Side<'a> {
    /// What this node says of itself.
    pub hello: &'a Hello,
    /// The cluster's cookie.
    pub cookie: &'a Cookie,
    /// Which side it is.
    pub role: Role,
    /// Key material of the connection, which both sides have and nobody else.
    pub binding: [u8; 32],
    /// Nonces.
    pub chance: Nonces,
}

/// A peer that took us, and that we took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who it is.
    pub hello: Hello,
    /// What was decided.
    pub taken: Taken,
    /// What we have to show it with everything that we say.
    pub token: [u8; 16],
}

/// Why an introduction came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke, or ended early.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// What came is no introduction.
    #[error("what came is no introduction: {0}")]
    Garbled(String),
    /// We do not take it.
    #[error("{0}")]
    Refused(#[from] PeerRefusal),
    /// It does not take us.
    #[error("the peer says: {0}")]
    RefusedByPeer(String),
}

#[derive(Serialize, Deserialize)]
struct Greeting {
    hello: Hello,
    nonce: [u8; 16],
}

#[derive(Serialize, Deserialize)]
enum Verdict {
    Taken { token: [u8; 16] },
    Refused { why: String },
}

/// Introduces this node, and hears who the other is. `judge` is told what the other says and whether it knows the
/// cookie.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use any more. A peer that is refused has been told why.
///
/// # Cancel safety
/// The connection is of no use any more when it is dropped. The caller sets a time limit.
pub async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    side: Side<'_>,
    judge: impl FnOnce(&Hello, bool) -> Result<Taken, PeerRefusal>,
) -> Result<Authenticated, HandshakeError> {
    let greeting = Greeting { hello: side.hello.clone(), nonce: side.chance.nonce };
    let ours = encode(&greeting)?;
    write(stream, &ours).await?;
    let theirs = read(stream).await?;
    let peer: Greeting = decode(&theirs)?;
    write(stream, &proof(&side, side.role, &ours, &theirs)).await?;
    let shown = read(stream).await?;
    let other = if side.role == Role::Dialler { Role::Acceptor } else { Role::Dialler };
    let knows_cookie: bool = proof(&side, other, &theirs, &ours).as_slice().ct_eq(shown.as_slice()).into();
    let judged = judge(&peer.hello, knows_cookie);
    let verdict = match &judged {
        Ok(_) => Verdict::Taken { token: side.chance.token },
        Err(refusal) => Verdict::Refused { why: refusal.to_string() },
    };
    write(stream, &encode(&verdict)?).await?;
    let taken = judged?;
    match decode(&read(stream).await?)? {
        Verdict::Taken { token } => Ok(Authenticated { hello: peer.hello, taken, token }),
        Verdict::Refused { why } => Err(HandshakeError::RefusedByPeer(printable(&why))),
    }
}

/// What shows that whoever says `said` in this role, and has heard `heard`, knows the cookie. Everything behind the
/// cookie is of fixed length, so that nothing can be appended, and its own length comes first: no two inputs are
/// written alike.
fn proof(side: &Side<'_>, role: Role, said: &[u8], heard: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"orchestrator-core node 1");
    hash.update((side.cookie.bytes().len() as u64).to_be_bytes());
    hash.update(side.cookie.bytes());
    hash.update([role as u8]);
    hash.update(side.binding);
    hash.update(Sha256::digest(said));
    hash.update(Sha256::digest(heard));
    hash.finalize().into()
}

/// A peer's words, fit for a log: one line, without control characters, not too long.
fn printable(text: &str) -> String {
    text.chars().take(REFUSAL_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, HandshakeError> {
    wire::encode(message).map_err(|error| HandshakeError::Garbled(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, HandshakeError> {
    wire::decode_within::<T, MESSAGE_BYTES_MAX>(bytes).map_err(|error| HandshakeError::Garbled(error.to_string()))
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), HandshakeError> {
    stream.write_u16(bytes.len() as u16).await?;
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, HandshakeError> {
    let length = usize::from(stream.read_u16().await?);
    if length > MESSAGE_BYTES_MAX {
        return Err(HandshakeError::Garbled(format!(
            "a message of {length} bytes, at most {MESSAGE_BYTES_MAX} are read"
        )));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
