//! The one place where threads are started: for calls that block and know no deadline, into a driver and into files.
//!
//! A thread cannot be stopped from outside. One that is stuck in a driver stays there; whoever started it goes on without it. Nothing that
//! is simulated comes here, so no simulation sees a thread.

use tokio::runtime::Handle;
#[cfg(feature = "engines-http")]
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Runs blocking work on a thread of its own; `None` when no thread is to be had, or the work panicked.
///
/// # Cancel safety
/// Dropping it leaves the thread to its end; nobody hears what came of it.
#[cfg(feature = "engines-http")]
pub(crate) async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let started = start(name, move || drop(sender.send(work()))); // Unsent: nobody wants to know any more.
    match started {
        true => receiver.await.ok(),
        false => None,
    }
}

/// Runs work of a host program that may block on one of the runtime's threads for that. The runtime waits for it at its own end, and a paused
/// clock stands still meanwhile.
pub(crate) fn blocking<T: Send + 'static>(
    runtime: &Handle,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    runtime.spawn_blocking(work)
}

/// Starts a thread; returns whether it could be.
#[cfg(any(feature = "engines-http", feature = "nvml"))]
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.inspect_err(|error| tracing::error!(name, %error, "a thread could not be started")).is_ok()
}
