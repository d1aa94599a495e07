//! What a listener does when the process or the system has no more files: it takes the connection that waits and
//! closes it, instead of looking at it again and again.

use std::fs::File;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::core::units::Timestamp;

/// How long a connection that is to be closed is waited for.
const TAKE_TIMEOUT: Duration = Duration::from_millis(20);
/// Time between two lines of the log.
const SAID_PERIOD: Duration = Duration::from_secs(60);

/// A file that is given up for the moment when a connection is turned away, and how often there was none.
pub(crate) struct Shortage {
    spare: Option<File>,
    said_at: Option<Timestamp>,
    /// Failures since the last line.
    failures: u64,
}

impl Shortage {
    pub(crate) fn new() -> Self {
        Shortage { spare: spare(), said_at: None, failures: 0 }
    }

    /// Counts an accept that failed, and says so once a minute.
    pub(crate) fn note(&mut self, error: &std::io::Error, now: Timestamp) {
        if let Some(failures) = self.due(now) {
            tracing::warn!(%error, failures, "connections could not be accepted");
        }
    }

    /// Counts a failure; how many there were since the last line, when another is due.
    fn due(&mut self, now: Timestamp) -> Option<u64> {
        self.failures += 1;
        let is_due = self.said_at.is_none_or(|said_at| now.since(said_at) >= SAID_PERIOD);
        is_due.then(|| {
            self.said_at = Some(now);
            std::mem::take(&mut self.failures)
        })
    }

    /// Takes a connection that waits and closes it. Returns whether it could; else there is nothing to do but wait.
    pub(crate) async fn turn_away(&mut self, listener: &TcpListener) -> bool {
        let is_spared = self.spare.take().is_some(); // Closed here, so that the connection can have its place.
        let taken = is_spared && matches!(timeout(TAKE_TIMEOUT, listener.accept()).await, Ok(Ok(_)));
        self.spare = spare();
        taken
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok() // Without one there is one means less.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_one_line_with_the_number_of_failures() {
        let mut shortage = Shortage::new();
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(shortage.due(at(1)), Some(1));
        assert_eq!([2, 30, 60].map(|second| shortage.due(at(second))), [None; 3]);
        assert_eq!((shortage.due(at(61)), shortage.due(at(62))), (Some(4), None));
    }

    #[tokio::test]
    async fn a_connection_that_waits_is_closed_and_the_next_one_too() {
        use tokio::io::AsyncReadExt;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut shortage = Shortage::new();
        for _ in 0..2 {
            let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
            assert!(shortage.turn_away(&listener).await);
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");
        }
        assert!(!shortage.turn_away(&listener).await, "nobody waits");
    }
}
