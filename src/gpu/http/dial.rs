//! A connection to a host by its name: all its addresses are tried, side by side, and an error says what became of each
//! (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

/// Time between the starts of two tries, while none has failed (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Connects to the first address of `host` that answers, within `limit`.
///
/// # Errors
/// One line: the name is not known, or what became of each address: what it said, or that it was silent.
///
/// # Cancel safety
/// Dropping it closes what was begun.
pub(crate) async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let end = deadline(limit);
    let found = timeout_at(end, lookup_host((host, port))).await;
    let found = found.map_err(|_| format!("the name {host} was not resolved within {limit:?}"))?;
    let found = found.map_err(|error| format!("the name {host} cannot be resolved: {error}"))?;
    let mut waiting = interleaved(found.take(ADDRESSES_MAX).collect()).into_iter().peekable();
    if waiting.peek().is_none() {
        return Err(format!("the name {host} has no address"));
    }
    let (mut tries, mut silent, mut said) = (FuturesUnordered::new(), Vec::new(), Vec::new());
    loop {
        if let Some(address) = waiting.next() {
            silent.push(address);
            tries.push(async move { (address, TcpStream::connect(address).await) });
        }
        let until = if waiting.peek().is_some() { end.min(deadline(STAGGER)) } else { end };
        match timeout_at(until, tries.next()).await {
            Ok(Some((_, Ok(stream)))) => return Ok(stream),
            Ok(Some((address, Err(error)))) => {
                silent.retain(|other| *other != address);
                said.push(format!("{address}: {error}"));
                if tries.is_empty() && waiting.peek().is_none() {
                    return Err(said.join("; "));
                }
            }
            Ok(None) | Err(_) if until < end => {} // The next one beside those that are under way.
            Ok(None) | Err(_) => {
                said.extend(silent.iter().map(|address| format!("{address}: no answer within {limit:?}")));
                return Err(said.join("; "));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bound on a wait, which decides nothing else")]
fn deadline(limit: Duration) -> Instant {
    Instant::now() + limit
}

/// The families in turn, the first address's family first: one that leads nowhere costs one step.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut both = Vec::new();
    loop {
        let (a, b) = (one.next(), other.next());
        if a.is_none() && b.is_none() {
            return both;
        }
        both.extend(a.into_iter().chain(b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = interleaved(parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]));
        assert_eq!(found, parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(interleaved(Vec::new()), []);
    }

    #[tokio::test]
    async fn what_became_of_each_address_is_said() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = dial("127.0.0.1", free, Duration::from_secs(5)).await.unwrap_err();
        assert!(error.contains(&format!("127.0.0.1:{free}")) && error.contains("refused"), "{error}");
        let error = dial("engine.invalid", 80, Duration::from_secs(5)).await.unwrap_err();
        assert!(error.contains("the name engine.invalid"), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_nothing_beside_one_that_answers() {
        // `localhost` has one address or two, of which one at most is listened on.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(dial("localhost", port, Duration::from_secs(5)).await.is_ok());
    }
}
