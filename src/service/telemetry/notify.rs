//! What the service manager is told (`sd_notify`): that the service is ready, lives, reloads and stops. Without one,
//! nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
pub(crate) struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// By the environment that systemd gives a service of `Type=notify`.
    pub(crate) fn from_env() -> Self {
        let address = std::env::var("NOTIFY_SOCKET").ok().and_then(|path| match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(path).ok(),
        });
        Notifier(address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address))))
    }

    /// Sends one message, such as `READY=1`. That nobody takes it is no reason to end.
    pub(crate) fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!(%error, message, "the service manager could not be told");
        }
    }

    /// How often the manager wants to hear that the service lives: half of what it waits for at most.
    pub(crate) fn watchdog_period(&self) -> Option<Duration> {
        let _ = self.0.as_ref()?;
        let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        let ours = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
        (ours && micros > 0).then(|| Duration::from_micros(micros / 2))
    }
}
