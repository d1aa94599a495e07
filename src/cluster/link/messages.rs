//! What a link actor is told.

use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{ActorRef, Message};
use ractor_cluster::node::NodeSessionMessage;

/// What the actor is told.
pub(crate) enum LinkMsg {
    /// From the peer, as bytes. All that can come from outside this process.
    Envelope(Vec<u8>),
    // ---- from this node
    /// Something is to be said.
    Flush,
    /// The peer has been authenticated once more, and its actors are known.
    Ready(ActorRef<NodeSessionMessage>),
    /// The connection is gone, or another takes its place.
    Close(&'static str),
    // ---- from itself
    /// Time has passed.
    Tick,
}

/// The one name that an envelope has on the wire.
pub(in crate::cluster) const ENVELOPE: &str = "envelope";

impl Message for LinkMsg {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        match self {
            LinkMsg::Envelope(args) => Ok(SerializedMessage::Cast { variant: ENVELOPE.into(), args, metadata: None }),
            _ => Err(BoxedDowncastErr),
        }
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { variant, args, .. } if variant == ENVELOPE => Ok(LinkMsg::Envelope(args)),
            _ => Err(BoxedDowncastErr),
        }
    }
}
