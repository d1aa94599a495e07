//! The border between the service and the engines that it starts, which run code that comes with models, most often as
//! its own user.
//!
//! The system draws it by users. Within one user a process can do this much: keep others of the user from its memory,
//! its environment and its open files, and say which of its files they may write.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, getegid, geteuid, getgroups, getuid, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, capabilities, clear_ambient_capability_set, set_thread_groups};

use crate::config::{Config, PoolConfig};

/// Closes the process to others of its user, and keeps its rights from the programs that it starts. Must be called
/// before there is a second thread: what a thread may do is its own.
///
/// Returns what could not be done.
pub(crate) fn draw(is_dumpable: bool) -> Option<String> {
    // Older systems say it in a file that is root's afterwards, and what asks for it then panics.
    let _ = rustix::param::clock_ticks_per_second();
    let _ = clear_ambient_capability_set(); // Where there is none, nothing is kept; `process.user` looks again.
    leave_groups();
    if is_dumpable {
        return Some("--dumpable: this process may be debugged and dumped, by its engines too".to_owned());
    }
    let closed = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    closed.err().map(|error| format!("engines of this user may read the memory of this process: {error}"))
}

/// Leaves the supplementary groups where they are only the process's own: an engine that runs as another user would
/// keep them.
fn leave_groups() {
    let may_leave = !getuid().is_root()
        && capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETGID))
        && getgroups().is_ok_and(|groups| groups.iter().all(|group| *group == getegid()));
    if may_leave {
        let _ = set_thread_groups(&[]); // They are looked at before an engine runs as another user.
    }
}

/// What engines may write of that which lets clients in, vouches for the service and says what is run.
pub(crate) struct Exposed {
    /// The files.
    pub(crate) files: Vec<String>,
    /// The pools whose engines may write them.
    pub(crate) pools: Vec<String>,
}

/// The files of keys and certificates of this configuration, and `file` that it was read from where there are such,
/// that engines may write; `None` when there are none.
pub(crate) fn exposed(config: &Config, file: Option<&Path>) -> Option<Exposed> {
    let shares_user = |pool: &&PoolConfig| pool.command.is_some() && pool.process.user.is_none();
    let pools: Vec<String> = config.pools.iter().filter(shares_user).map(|pool| pool.id.clone()).collect();
    if pools.is_empty() {
        return None;
    }
    let cookie = config.cluster.iter().map(|cluster| &cluster.cookie_file);
    let mut paths: Vec<&Path> = config.files().chain(cookie.map(String::as_str)).map(Path::new).collect();
    if !paths.is_empty() {
        paths.extend(file); // It says which files these are.
    }
    let writable = paths.into_iter().filter(|path| may_write(path));
    let files: Vec<String> = writable.map(|path| path.display().to_string()).collect();
    (!files.is_empty()).then_some(Exposed { files, pools })
}

/// Logs what of the border is not there.
pub(crate) fn tell(not_done: Option<&str>, exposed: Option<&Exposed>) {
    if let Some(text) = not_done {
        tracing::warn!("{text}");
    }
    if let Some(Exposed { files, pools }) = exposed {
        tracing::warn!(
            files = files.join(", "),
            pools = pools.join(", "),
            "engines run as the user of this process and may write its files; give these to root, or set process.user"
        );
    }
}

/// Whether this process's user may write a file, or put another in its place.
fn may_write(path: &Path) -> bool {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let target = std::fs::canonicalize(path).ok();
    let targets_folder = target.as_deref().map(folder);
    may(path) || may(&folder(path)) || targets_folder.is_some_and(|folder| may(&folder))
}

/// Whether it may write there, or allow itself to.
fn may(path: &Path) -> bool {
    match rustix::fs::access(path, Access::WRITE_OK) {
        Ok(()) => true,
        Err(Errno::ACCESS) => std::fs::metadata(path).is_ok_and(|about| about.uid() == geteuid().as_raw()),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_exposed_to_engines_that_run_as_their_user() {
        let folder = std::env::temp_dir().join(format!("oc-borders-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let keys = folder.join("keys.json");
        std::fs::write(&keys, "").expect("a file");
        let mut config = Config { pools: vec![PoolConfig::new("a", "llamacpp", "m")], ..Config::default() };
        config.access.keys_file = Some(keys.display().to_string());
        assert!(exposed(&config, None).is_none(), "no engine is started");
        config.pools[0].command = Some(vec!["engine".into()]);
        let guarded = config.access.keys_file.take();
        assert!(exposed(&config, Some(&keys)).is_none(), "nothing is guarded");
        config.access.keys_file = guarded;
        let found = exposed(&config, Some(Path::new("/no/such/folder/x"))).expect("the engine may write it");
        assert_eq!((found.files, found.pools), (vec![keys.display().to_string()], vec!["a".to_owned()]));
        config.pools[0].process.user = Some("llm".into());
        assert!(exposed(&config, None).is_none(), "its user is another");
        std::fs::remove_dir_all(&folder).expect("it goes");
    }

    #[test]
    fn whoever_owns_a_file_or_may_write_its_folder_may_write_it() {
        let file = std::env::temp_dir().join("no-such-file-here");
        assert!(may_write(&file), "it can be made");
        assert!(!may_write(Path::new("/no/such/folder/file")));
    }
}
