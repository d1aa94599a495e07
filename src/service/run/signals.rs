//! The signals that end a running service or make it read its configuration again.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::core::units::Timestamp;
use crate::env::Env;

/// Signals that come so soon behind the first are the same request: a supervisor signals the process and its group,
/// and a terminal the whole group.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignalAction {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP. The last two stay ignored if they were when the process began, as `nohup` and a shell's
/// background jobs have them.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Begins to wait for them.
    ///
    /// # Errors
    /// The system does not let us.
    pub(crate) fn new() -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default(); // Without it none was ignored.
        let unless_ignored = |kind: SignalKind| {
            let is_ignored = is_ignored(&status, kind.as_raw_value());
            (!is_ignored).then(|| signal(kind)).transpose()
        };
        let interrupt = unless_ignored(SignalKind::interrupt())?;
        let hangup = unless_ignored(SignalKind::hangup())?;
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt, hangup })
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// Dropping the future loses no signal.
    pub(crate) async fn next(&mut self) -> SignalAction {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => SignalAction::End,
            () = received(&mut self.interrupt) => SignalAction::End,
            () = received(&mut self.hangup) => SignalAction::Reload,
        }
    }

    /// Waits until an end is asked for again, where `first` is when it was first.
    pub(crate) async fn until_another_end(&mut self, env: &Env, first: Timestamp) {
        loop {
            if self.next().await == SignalAction::End && is_another(first, env.now()) {
                return;
            }
        }
    }
}

/// Waits for a signal; for ever for one that is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            let _ = signal.recv().await; // It has no end.
        }
        None => std::future::pending().await,
    }
}

/// Whether a signal at `now` is another request than that of `first`.
fn is_another(first: Timestamp, now: Timestamp) -> bool {
    now.since(first) >= SAME_REQUEST
}

/// Whether a process ignores a signal, by its `/proc/PID/status`: a bit of `SigIgn` for each, from signal 1 on.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_within_a_second_of_the_first_is_the_same_request() {
        let first = Timestamp::from_micros(5_000_000);
        let at = |micros: u64| is_another(first, Timestamp::from_micros(5_000_000 + micros));
        assert_eq!([0, 1_000, 999_999, 1_000_000, 60_000_000].map(at), [false, false, false, true, true]);
        assert!(!is_another(first, Timestamp::from_micros(0)), "a clock that stands never ends it early");
    }

    #[test]
    fn signals_that_were_ignored_are_read_from_the_mask() {
        let status = "SigBlk:\t0000000000000003\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!([1, 2, 13, 14].map(|signal| is_ignored(status, signal)), [true, false, true, false]);
        let none = "SigIgn:\tx\n";
        assert!(!is_ignored(none, 1) && !is_ignored("", 2) && !is_ignored(status, 0) && !is_ignored(status, 65));
        assert!(is_ignored("SigIgn:\t8000000000000000\n", 64));
    }
}
