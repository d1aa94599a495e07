//! The processes that this one is the parent of: those that it started, which somebody waits for, and orphans.
//!
//! Process 1 of a container, or a child subreaper, is handed the processes whose own parents have ended. Nobody else
//! can take their exit status, so without somebody who does they stay in the table of processes for ever. Children of
//! our own are left to whoever started them: their exit status says why an engine ended.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use parking_lot::Mutex;
use tokio::process::{Child, Command};

/// The children that we started, by their ids. Whoever looks for orphans holds the lock, and whoever starts a
/// process: no child is seen before it is here.
static OWN: Mutex<Own> = Mutex::new(Own { started: 0, by_id: BTreeMap::new() });

struct Own {
    /// How many were started so far.
    started: u64,
    /// Which start an id belongs to: ids come again.
    by_id: BTreeMap<u32, u64>,
}

/// A child that we started; it is never taken for an orphan while this is there.
pub(crate) struct OwnChild {
    child: Child, // Dropped before the entry: it may still have to be killed.
    _entry: Entry,
}

impl Deref for OwnChild {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for OwnChild {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

struct Entry {
    id: Option<u32>,
    start: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut own = OWN.lock();
        if let Some(id) = self.id
            && own.by_id.get(&id) == Some(&self.start)
        {
            own.by_id.remove(&id);
        }
    }
}

/// Starts a process.
///
/// # Errors
/// What the system says when it cannot be started.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<OwnChild> {
    let mut own = OWN.lock();
    let child = command.spawn()?;
    own.started += 1;
    let entry = Entry { id: child.id(), start: own.started };
    if let Some(id) = entry.id {
        own.by_id.insert(id, entry.start);
    }
    drop(own);
    Ok(OwnChild { child, _entry: entry })
}

/// Whether the system hands orphans to this process.
#[cfg(feature = "service")]
pub(crate) fn adopts_orphans() -> bool {
    std::process::id() == 1 || rustix::process::child_subreaper().is_ok_and(|setting| setting.is_some())
}

/// Takes the exit status of every orphan of ours that has ended, and so removes it; returns how many there were.
#[cfg(feature = "service")]
pub(crate) fn reap_orphans() -> usize {
    use rustix::process::{Pid, WaitOptions, waitpid};
    let own = OWN.lock();
    let stats = candidates().into_iter().filter_map(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok());
    let ended = orphans(stats, std::process::id(), &own.by_id);
    let reap = |id: &&u32| {
        let id = i32::try_from(**id).ok().and_then(Pid::from_raw);
        id.is_some_and(|id| waitpid(Some(id), WaitOptions::NOHANG).is_ok_and(|status| status.is_some()))
    };
    ended.iter().filter(reap).count()
}

/// Processes that may be children of this one: those that the system lists as such, or every process where it lists
/// none.
#[cfg(feature = "service")]
fn candidates() -> Vec<u32> {
    let lists = std::fs::read_dir("/proc/self/task").ok().and_then(|threads| {
        let list = |thread: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(thread.ok()?.path().join("children")).ok()
        };
        threads.map(list).collect::<Option<Vec<String>>>()
    });
    if let Some(lists) = lists {
        return lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|id| id.parse().ok()).collect();
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten();
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Which of these processes (their `/proc/PID/stat`) are children of `parent` that have ended and that nobody here
/// waits for.
#[cfg(any(test, feature = "service"))]
fn orphans(stats: impl Iterator<Item = String>, parent: u32, own: &BTreeMap<u32, u64>) -> Vec<u32> {
    stats.filter_map(|stat| ended_child(&stat, parent)).filter(|id| !own.contains_key(id)).collect()
}

/// The id of a process that has ended, if its parent is this one.
#[cfg(any(test, feature = "service"))]
fn ended_child(stat: &str, parent: u32) -> Option<u32> {
    let id = stat.split(' ').next()?.parse().ok()?;
    // Behind the name, which may have anything in it: state, parent.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let has_ended = fields.next()? == "Z";
    (fields.next()?.parse::<u32>() == Ok(parent) && has_ended).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_ended_children_that_nobody_waits_for() {
        let own = BTreeMap::from([(12, 1)]);
        let stats = [
            "10 (sh) Z 1 10 10 0 -1",       // Ours, ended, unknown.
            "11 (a) b) (c) Z 1 10 10 0 -1", // The same, with a strange name.
            "12 (engine) Z 1 12 12 0 -1",   // Somebody waits for it.
            "13 (sleep) S 1 10 10 0 -1",    // It runs.
            "14 (sleep) Z 13 10 10 0 -1",   // Another's.
            "15 (Z 1 2) R 3 10 10 0 -1",    // A name that looks like a state.
            "x (sh) Z 1 10",                // No process.
            "16 (sh)",                      // Cut short.
            "",
        ];
        let found = orphans(stats.iter().map(ToString::to_string), 1, &own);
        assert_eq!(found, [10, 11]);
    }

    #[tokio::test]
    async fn a_child_is_known_from_its_start_until_it_is_dropped() {
        let mut child = spawn(Command::new("true").kill_on_drop(true)).expect("it starts");
        let id = child.id().expect("nobody has waited for it");
        assert!(OWN.lock().by_id.contains_key(&id));
        assert!(child.wait().await.expect("it ends").success());
        assert!(OWN.lock().by_id.contains_key(&id));
        let start = OWN.lock().by_id[&id];
        drop(child);
        assert_ne!(OWN.lock().by_id.get(&id), Some(&start));
    }
}
