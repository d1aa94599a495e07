//! Removes the orphans that the system hands to this process when it is process 1 of a container or a child subreaper:
//! helpers of engines that outlive them, and what came before us in a script that ended in `exec`.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::gpu::process::children;

/// Longest time between two looks: a list of children that changes while it is read may lack one.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// Shortest time between two looks, so that many ends at once take one of them.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Looks whenever a child has ended, until it is dropped. Returns at once where no orphans come here.
pub(crate) async fn run() {
    if !children::adopts_orphans() {
        return;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => return tracing::warn!(%error, "orphans of engines will not be reaped"),
    };
    loop {
        let reaped = children::reap_orphans();
        if reaped > 0 {
            tracing::debug!(reaped, "orphans have ended");
        }
        let _ = timeout(LOOK_PERIOD, ended.recv()).await; // In time or not: the next look finds out.
        sleep(LOOK_PAUSE).await;
    }
}
