//! The one place where threads are started: for calls that block and know no deadline, into a driver and into files.
//!
//! A thread cannot be stopped from outside. One that is stuck in a driver stays there; whoever started it goes on
//! without it. Nothing that is simulated comes here, so no simulation sees a thread.

use std::sync::mpsc;
use std::thread::JoinHandle as Thread;
use std::time::Duration;

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

/// Runs work of a host program that may block on one of the runtime's threads for that. The runtime waits for it at
/// its own end, and a paused clock stands still meanwhile.
pub(crate) fn blocking<T: Send + 'static>(
    runtime: &Handle,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    runtime.spawn_blocking(work)
}

/// A thread that does one piece of blocking work after another. Its work may keep what belongs to a thread, such as a
/// device's context.
pub(crate) struct Worker {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<Thread<()>>,
    /// Closed when the thread ends.
    life: mpsc::Receiver<()>,
}

/// What a worker does.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Longest wait for a worker's end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

impl Worker {
    /// A thread of this name, with nothing to do yet.
    ///
    /// # Errors
    /// The system has none.
    pub(crate) fn start(name: String) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Work>();
        let (alive, life) = mpsc::channel();
        let run = move || {
            let _alive = alive;
            receiver.into_iter().for_each(|work| work());
        };
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        Ok(Worker { work: Some(sender), thread: Some(thread), life })
    }

    /// Lets it do this behind what it does now; returns whether it can.
    pub(crate) fn give(&self, work: Work) -> bool {
        self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok())
    }
}

impl Drop for Worker {
    /// Waits for the end of what it does, some seconds at most: one that does not come back is left behind.
    fn drop(&mut self) {
        self.work = None;
        let Some(thread) = self.thread.take() else { return };
        match self.life.recv_timeout(END_TIMEOUT) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::error!(name = thread.thread().name(), "a thread does not come back, and is left behind");
            }
            _ => drop(thread.join()), // Its work catches its panics.
        }
    }
}

/// Starts a thread; returns whether it could be.
#[cfg(any(feature = "engines-http", feature = "nvml"))]
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.inspect_err(|error| tracing::error!(name, %error, "a thread could not be started")).is_ok()
}
