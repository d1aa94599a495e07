//! Bodies of requests: read within bounds of size and time, and all that are under way within one bound for all
//! clients, of which each has a part (ORCH-3035).
//!
//! What a body says of its length is set aside before anything of it is read; what says nothing takes room as it comes.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Body;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::core::admission::share::Share;
use crate::core::id::ClientId;

/// Bodies that need no room, in bytes.
const SMALL: usize = 4 * 1024;
/// What a body that does not say its length takes at a time, in bytes.
const STEP: usize = 64 * 1024;

/// All bodies under way.
pub(crate) struct Bodies {
    /// A short lock, taken for each body a few times.
    share: Mutex<Share>,
}

impl Bodies {
    /// Nothing is under way; together they may take so many bytes.
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Bodies { share: Mutex::new(Share::new(bytes_max)) })
    }

    /// Bytes that are set aside.
    pub(crate) fn used(&self) -> u64 {
        self.share.lock().used()
    }

    /// Reads a body of this client's, no longer than `bytes_max` and within `limit`. What it takes is held as long as
    /// what is returned.
    ///
    /// # Cancel safety
    /// Dropping the future gives everything back.
    pub(crate) async fn read<B>(
        self: &Arc<Self>,
        client: ClientId,
        body: B,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Received, BodyFault>
    where
        B: Body + Unpin,
        B::Data: bytes::Buf,
        B::Error: std::fmt::Display,
    {
        let told = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if told > bytes_max {
            return Err(BodyFault::TooLarge);
        }
        let mut held = Held { bodies: self.clone(), client, bytes: 0 };
        held.grow_to(told)?;
        let reading = collect(body, (told, bytes_max), &mut held);
        let bytes = timeout(limit, reading).await.map_err(|_| BodyFault::Late)??;
        Ok(Received { bytes, _held: held })
    }
}

async fn collect<B>(mut body: B, (told, bytes_max): (usize, usize), held: &mut Held) -> Result<Vec<u8>, BodyFault>
where
    B: Body + Unpin,
    B::Data: bytes::Buf,
    B::Error: std::fmt::Display,
{
    use bytes::Buf;
    let mut bytes = Vec::with_capacity(told); // What is not written to takes no memory.
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| BodyFault::Broken(error.to_string()))?;
        let Ok(mut data) = frame.into_data() else { continue };
        let length = bytes.len() + data.remaining();
        if length > bytes_max {
            return Err(BodyFault::TooLarge);
        }
        if length > bytes.capacity() {
            // It grows by half, so that it is not copied for each piece; all of that counts.
            let capacity = (length + length / 2).next_multiple_of(STEP).min(bytes_max);
            held.grow_to(capacity)?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        while data.has_remaining() {
            let piece = data.chunk();
            bytes.extend_from_slice(piece);
            let taken = piece.len();
            data.advance(taken);
        }
    }
    Ok(bytes)
}

/// A body, whole.
pub(crate) struct Received {
    bytes: Vec<u8>,
    _held: Held,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Room that a body has. Dropped, it is given back.
struct Held {
    bodies: Arc<Bodies>,
    client: ClientId,
    bytes: usize,
}

impl Held {
    fn grow_to(&mut self, bytes: usize) -> Result<(), BodyFault> {
        if bytes <= SMALL {
            return Ok(()); // There are as many as connections.
        }
        let more = (bytes - self.bytes) as u64;
        if !self.bodies.share.lock().try_take(&self.client, more, self.bytes as u64) {
            return Err(BodyFault::OverLimit);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bodies.share.lock().give(&self.client, self.bytes as u64);
    }
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    TooLarge,
    Late,
    Broken(String),
    /// There is no room for it beside what is under way.
    OverLimit,
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use hyper::body::{Frame, SizeHint};

    use super::*;

    /// A body that gives pieces, and then nothing more, or its end.
    struct Pieces {
        left: Vec<Bytes>,
        ends: bool,
        told: u64,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match (self.left.pop(), self.ends) {
                (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                (None, true) => Poll::Ready(None),
                (None, false) => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::default();
            hint.set_lower(self.told);
            hint
        }
    }

    fn client(name: &str) -> ClientId {
        ClientId::parse(name).expect("valid")
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn bodies_that_never_end_hold_a_part_and_others_are_read_beside_them() {
        let bodies = Bodies::new(1_000_000);
        let mut stuck = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let bodies = bodies.clone();
            let body = Pieces { left: Vec::new(), ends: false, told: 100_000 };
            stuck.spawn(async move { bodies.read(client("hog"), body, 100_000, LONG).await.map(|_| ()) });
        }
        for _ in 0..95 {
            assert_eq!(
                stuck.join_next().await.unwrap().unwrap(),
                Err(BodyFault::OverLimit),
                "refused before it is read"
            );
        }
        assert_eq!(bodies.used(), 500_000, "half for one that is alone");
        let piece = Bytes::from(vec![b'x'; 100_000]);
        let body = Pieces { left: vec![piece.clone(), piece], ends: true, told: 0 };
        let received = bodies.read(client("polite"), body, 200_000, LONG).await.unwrap();
        assert_eq!((received.len(), bodies.used()), (200_000, 700_000));
        drop(received);
        stuck.abort_all();
        while stuck.join_next().await.is_some() {}
        assert_eq!(bodies.used(), 0, "everything is given back");
    }

    #[tokio::test(start_paused = true)]
    async fn length_and_time_are_bounded_whatever_it_says() {
        let bodies = Bodies::new(1_000_000);
        let long = || Bytes::from(vec![b'x'; 11]);
        let read = async |body: Pieces| bodies.read(client("a"), body, 10, LONG).await.map(|received| received.len());
        assert_eq!(read(Pieces { left: vec![], ends: true, told: 11 }).await, Err(BodyFault::TooLarge));
        assert_eq!(read(Pieces { left: vec![long()], ends: true, told: 0 }).await, Err(BodyFault::TooLarge));
        assert_eq!(read(Pieces { left: vec![], ends: false, told: 0 }).await, Err(BodyFault::Late));
        assert_eq!(read(Pieces { left: vec![long().slice(1..)], ends: true, told: 10 }).await, Ok(10));
        assert_eq!(bodies.used(), 0);
    }
}
