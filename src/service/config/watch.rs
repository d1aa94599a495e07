//! Files that are read again when they have changed: keys, certificates, and the configuration where that was asked
//! for.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::service::access::keys::KeyFile;
use crate::service::http::app::App;
use crate::service::http::listener::tls::Tls;

/// Time between two looks: a revoked key opens nothing more within a second.
const PERIOD: Duration = Duration::from_millis(400);

/// What tells one state of a file from another: its number, its size, when it was written. `None` is no file.
type Mark = Option<(u64, u64, i64, i64)>;

fn mark(path: &str) -> Mark {
    let about = std::fs::metadata(path).ok()?; // A handful of system calls; nothing is read.
    Some((about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
}

/// The files and how they were when they were last read.
#[derive(Default)]
pub(crate) struct FileFingerprints(BTreeMap<String, Mark>);

impl FileFingerprints {
    /// Notes how a file is before it is read: what changes behind the reading is another file then.
    pub(crate) fn note(&mut self, path: &str) {
        self.0.insert(path.to_owned(), mark(path));
    }

    /// Whether a file is another than at the last call, or when it was noted.
    fn has_changed(&mut self, path: &str) -> bool {
        let now = mark(path);
        self.0.insert(path.to_owned(), now).is_some_and(|before| before != now)
    }
}

/// Looks at the files until it is dropped.
pub(crate) async fn watch(app: App, tls: Option<Arc<Tls>>, watch_config: bool, mut marks: FileFingerprints) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if let Some(path) = app.access.file().map(|path| path.display().to_string())
            && marks.has_changed(&path)
        {
            take_keys(&app);
        }
        if let Some(tls) = &tls {
            let changed: Vec<bool> = tls.files().iter().map(|path| marks.has_changed(path)).collect();
            if changed.contains(&true) {
                match tls.reload() {
                    Ok(()) => {
                        tracing::info!(target: "audit", event = "certificates_read", "new certificates are in use")
                    }
                    Err(error) => tracing::error!(%error, "new certificates are wrong; the old ones stay in use"),
                }
            }
        }
        app.nodes.follow(&app.orchestrator.config(), |path| marks.has_changed(path));
        let config = app.store.file().filter(|_| watch_config).map(|path| path.display().to_string());
        if config.is_some_and(|path| marks.has_changed(&path)) {
            let _ = app.store.reload_file(); // What was wrong has been logged.
        }
    }
}

/// Takes the keys as the file has them now, together with what it says of clients. A file that is wrong or gone closes
/// nothing and opens nothing.
fn take_keys(app: &App) {
    let Some(path) = app.access.file() else { return };
    if !path.exists() {
        return tracing::error!(path = %path.display(), "the file of keys is gone; the keys that were read stay in force");
    }
    let file = match KeyFile::read(path) {
        Ok(file) => file,
        Err(error) => {
            return tracing::error!(%error, "the file of keys is wrong; the keys that were read stay in force");
        }
    };
    // First what may fail: a new key never has what its client had before.
    if let Err(faults) = app.store.set_clients(file.clients.clone()) {
        let path = path.display();
        return tracing::error!(%path, ?faults, "what the file of keys says of clients is wrong; the keys that were read stay in force");
    }
    app.access.set(&file);
    tracing::info!(target: "audit", event = "keys_read", keys = file.keys.len(), "the keys have changed");
}
