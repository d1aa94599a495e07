//! Connections to an engine's server, each driven by whoever waits for its answer.
//!
//! `hyper` speaks HTTP; its usual client gives each connection a task of its own, and every piece of an answer then
//! costs a change of tasks there and back. An engine's tokens come as small pieces, often several at once: here whoever
//! reads the body moves the bytes too, so that all that has arrived is read in one go.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::gpu::http::dial::dial;

/// Most idle connections that are kept.
const IDLE_MAX: usize = 256;

type Driver = Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// One connection.
pub(crate) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// Where another server may have come in the place of the one that was spoken to: a connection is new, or one was found
/// closed.
#[derive(Default)]
pub(crate) struct Gaps {
    seen: AtomicU64,
    cleared: AtomicU64,
}

impl Gaps {
    /// Notes that there was one.
    pub(crate) fn note(&self) {
        self.seen.fetch_add(1, SeqCst);
    }

    /// The number of the last gap, if nobody has made sure behind it that the server is the one that it was.
    pub(crate) fn open(&self) -> Option<u64> {
        let seen = self.seen.load(SeqCst);
        (self.cleared.load(SeqCst) < seen).then_some(seen)
    }

    /// Behind that gap it is the one that it was.
    pub(crate) fn clear(&self, gap: u64) {
        self.cleared.fetch_max(gap, SeqCst);
    }
}

impl Link {
    /// Makes a connection.
    ///
    /// # Errors
    /// One line that says what became of each address.
    pub(crate) async fn open(host: &str, port: u16, limit: Duration, gaps: &Gaps) -> Result<Link, String> {
        gaps.note();
        let stream = dial(host, port, limit).await?;
        let _ = stream.set_nodelay(true); // Else small writes wait for the other side's acknowledgement.
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        Ok(Link { sender, driver })
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn request(
        self,
        request: Request<Full<Bytes>>,
        idle: &Idle,
    ) -> Result<Response<Answer>, hyper::Error> {
        let Link { mut sender, driver } = self;
        let mut driver = Some(driver);
        let head = {
            let mut answer = std::pin::pin!(sender.send_request(request));
            std::future::poll_fn(|context| {
                if let Poll::Ready(head) = answer.as_mut().poll(context) {
                    return Poll::Ready(head);
                }
                // One that is over is dropped: only that tells a request which it has not taken up that nobody will.
                if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(context).is_ready()) {
                    driver = None;
                }
                answer.as_mut().poll(context)
            })
            .await?
        };
        let (link, idle) = (driver.map(|driver| Link { sender, driver }), idle.clone());
        Ok(head.map(|body| Answer { body, link, idle }))
    }

    /// Whether it could take a request now. What has arrived meanwhile, such as its end, is looked at.
    fn is_usable(&mut self) -> bool {
        let polled = Pin::new(&mut self.driver).poll(&mut Context::from_waker(Waker::noop()));
        polled.is_pending() && self.sender.is_ready()
    }
}

/// Connections without a request, the one used last taken first.
#[derive(Clone, Default)]
pub(crate) struct Idle(Arc<Mutex<Vec<Link>>>, pub(crate) Arc<Gaps>);

impl Idle {
    /// One that can take a request, if there is one.
    pub(crate) fn take(&self) -> Option<Link> {
        loop {
            let mut link = self.0.lock().pop()?; // Outside the lock: looking at one may close it.
            if link.is_usable() {
                return Some(link);
            }
            self.1.note();
        }
    }

    pub(crate) fn keep(&self, link: Link) {
        let mut idle = self.0.lock();
        if idle.len() < IDLE_MAX {
            idle.push(link);
        }
    }
}

/// The body of an answer. Read to its end, it gives its connection back; dropped before that is at hand, it closes it.
pub(crate) struct Answer {
    body: Incoming,
    link: Option<Link>,
    idle: Idle,
}

impl Answer {
    fn keep_link(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        if link.is_usable() {
            self.idle.keep(link);
        }
    }
}

/// Pieces behind the last one that anybody wanted, which are looked at for the end of the body.
const TRAILING_MAX: usize = 4;

impl Drop for Answer {
    /// A stream's last event says that it is over, and the end of the body lies behind it: when that is at hand, the
    /// connection is kept.
    fn drop(&mut self) {
        for _ in 0..TRAILING_MAX {
            if self.link.is_none() {
                return;
            }
            let polled = Pin::new(&mut *self).poll_frame(&mut Context::from_waker(Waker::noop()));
            if !matches!(polled, Poll::Ready(Some(Ok(_)))) {
                return; // Kept by now, or broken, or not over: closed with the link.
            }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some(link) = &mut self.link
        {
            let is_over = Pin::new(&mut link.driver).poll(context).is_ready(); // Why, the body says.
            polled = Pin::new(&mut self.body).poll_frame(context);
            if is_over {
                self.link = None;
            }
        }
        if matches!(polled, Poll::Ready(None)) {
            self.keep_link();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
