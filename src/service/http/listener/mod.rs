//! Connections: accepted, encrypted where that is configured, bounded in number, in size and in time, and closed when
//! the service ends.
//!
//! `hyper` speaks HTTP/1.1; what stands in front of it here are the limits. A connection is idle while no request of it
//! is under way; when there are too many connections, the one that has been idle longest makes room. So neither silent
//! nor slow clients keep others out.
//!
//! Spec: ORCH-3035.

pub(in crate::service) mod connections;
pub(in crate::service) mod shortage;
pub(in crate::service) mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tower_service::Service;

use crate::config::HttpConfig;
use crate::service::access::Peer;
use crate::service::http::listener::connections::{Entered, Links, UnderWay};
use crate::service::http::listener::shortage::Shortage;
use crate::service::http::listener::tls::Tls;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest handshake of a TLS connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that what was sent may stay unread, in milliseconds.
const STALL_MS: u32 = 60_000;
/// Wait when the system has no more files for us; meanwhile an idle connection is closed.
const NO_FILES_WAIT: Duration = Duration::from_millis(20);
/// Time between two looks whether answers must end.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long clients may take to close their connections when everything has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    /// The service's own address of the connection.
    pub(crate) address: IpAddr,
    /// The address that its listener is bound to.
    pub(crate) bound: IpAddr,
}

/// Both ends of a connection.
type Ends = (Peer, Local);

/// The body of an answer; its connection is busy as long as it is there.
struct Answer {
    body: axum::body::Body,
    _under_way: UnderWay,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves a listener until [`Links::stop`], then waits for its connections to end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    http: HttpConfig,
    links: Arc<Links>,
) {
    let bound = listener.local_addr().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
    let (mut connections, mut shortage) = (JoinSet::new(), Shortage::new());
    let mut looks = tokio::time::interval(LOOK_PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let accepted = tokio::select! {
            biased;
            () = links.stopped() => break,
            _ = looks.tick() => {
                links.end_stalled();
                continue;
            }
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_one_connections(&error) => continue,
            Err(error) => {
                shortage.note(&error, links.env.now());
                let is_room_made = links.evict_idle();
                match !is_room_made && shortage.turn_away(&listener).await {
                    true => links.closed.count("files"),
                    false => tokio::time::sleep(NO_FILES_WAIT).await,
                }
                continue;
            }
        };
        let Some(entered) = links.enter() else {
            links.closed.count("full");
            continue; // Every connection has a request under way.
        };
        let (router, tls, head) = (router.clone(), tls.clone(), Duration::from_millis(http.head_ms));
        // All that concerns it alone is done by itself: who comes behind it waits for no more than its place.
        connections.spawn(async move {
            let address = stream.local_addr().map_or(bound, |address| address.ip());
            let ends = (Peer(peer.ip()), Local { address, bound });
            prepare(&stream);
            if !received_bytes(&stream, head, &entered).await {
                return;
            }
            // Behind a pointer, so that a connection which says nothing takes little.
            match tls {
                None => Box::pin(serve_connection(TokioIo::new(stream), router, head, ends, entered)).await,
                Some(tls) => Box::pin(encrypted(stream, &tls, router, head, ends, entered)).await,
            }
        });
    }
    drop(listener);
    let closed = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        tracing::warn!("some clients did not close their connections in time");
    }
}

/// What each connection is to be like.
fn prepare(stream: &TcpStream) {
    // Tokens are small: without this they wait for the other side's acknowledgement of the last one.
    let _ = stream.set_nodelay(true); // It is gone already: found at the first read.
    // Whoever takes nothing for so long, or is not there any more, does not hold its place for ever.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, STALL_MS); // A bound less, where the system has none.
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
}

/// Waits for the first byte of a connection. Before it, nothing is set up for it; whoever says nothing for too long is
/// closed.
async fn received_bytes(stream: &TcpStream, limit: Duration, entered: &Entered) -> bool {
    let mut first = [0; 1];
    let spoken = tokio::select! {
        biased;
        spoken = timeout(limit, stream.peek(&mut first)) => spoken,
        () = entered.link.close.notified() => return false,
        () = entered.links.stopped() => return false,
    };
    if spoken.is_err() {
        entered.links.closed.count("idle");
    }
    matches!(spoken, Ok(Ok(1..)))
}

/// A connection that begins with a handshake.
async fn encrypted(stream: TcpStream, tls: &Tls, router: Router, head: Duration, ends: Ends, entered: Entered) {
    let handshake = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream));
    let handshake = tokio::select! {
        biased;
        handshake = handshake => handshake,
        () = entered.link.close.notified() => return,
    };
    match handshake {
        Ok(Ok(stream)) => serve_connection(TokioIo::new(stream), router, head, ends, entered).await,
        _ => entered.links.closed.count("handshake"),
    }
}

/// Whether an accept failed for a reason of that connection alone.
fn is_one_connections(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection from its first request to its end.
async fn serve_connection<S>(io: TokioIo<S>, router: Router, head: Duration, ends: Ends, entered: Entered)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let entered = Arc::new(entered);
    let served = entered.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let under_way = UnderWay::begin(&served);
        let mut router = router.clone();
        async move {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(ends.0);
            request.extensions_mut().insert(ends.1);
            request.extensions_mut().insert(under_way.seat());
            let response: Response = match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok::<_, Infallible>(response.map(|body| Answer { body, _under_way: under_way }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head).max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        () = entered.link.close.notified() => None,
        () = entered.links.stopped() => {
            connection.as_mut().graceful_shutdown();
            Some(connection.await)
        }
    };
    if let Some(Err(error)) = ended
        && error.is_timeout()
    {
        entered.links.closed.count(if entered.link.has_asked.load(Relaxed) { "idle" } else { "head" });
    }
}
