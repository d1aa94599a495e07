//! A control group for one engine's processes, where the system lets us make one: a bound on host memory, and the word of who broke it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Distinguishes the groups of one process; a number is never used again.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A group of our own. Dropping it removes it, when its processes have ended.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The memory controller's own hierarchy.
    One,
    /// The unified hierarchy.
    Two,
}

impl Cgroup {
    /// Makes a group below ours that may hold so much memory.
    ///
    /// # Errors
    /// Why this system does not let us; the engine runs without a bound of its own then.
    pub(crate) fn with_memory(bytes_max: u64) -> std::io::Result<Self> {
        let (parent, version) = own().ok_or(std::io::ErrorKind::Unsupported)?;
        let name = format!("engine-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let group = Cgroup { folder: parent.join(name), version };
        fs::create_dir(&group.folder)?;
        let limit = match version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        fs::write(group.folder.join(limit), bytes_max.to_string())?; // Failing, the drop removes it.
        Ok(group)
    }

    /// Moves a process into it; what that starts from now on is inside too.
    pub(crate) fn add(&self, pid: u32) -> std::io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string())
    }

    /// Whether the system has killed a process of it for want of memory.
    pub(crate) fn ran_out(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.is_some_and(|kills| kills > 0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::debug!(folder = %self.folder.display(), %error, "a control group stays behind");
        }
    }
}

/// Where our own group lies, of the hierarchy that bounds memory.
fn own() -> Option<(PathBuf, Version)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    place(&groups, &mounts).filter(|(folder, version)| match version {
        Version::One => folder.is_dir(),
        // Only what our group hands on can be bounded in a group below it.
        Version::Two => fs::read_to_string(folder.join("cgroup.subtree_control")).is_ok_and(|text| has_memory(&text)),
    })
}

fn has_memory(controllers: &str) -> bool {
    controllers.split_whitespace().any(|name| name == "memory")
}

fn place(groups: &str, mounts: &str) -> Option<(PathBuf, Version)> {
    let mounted = |is_it: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, folder, kind, options, ..] = fields.as_slice() else { return None };
            is_it(kind, options).then(|| Path::new(folder).to_path_buf())
        })
    };
    let own = |is_it: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            is_it(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let one = |text: &str| text.split(',').any(|name| name == "memory");
    if let (Some(folder), Some(path)) =
        (mounted(&|kind, options| kind == "cgroup" && one(options)), own(&|controllers| one(controllers)))
    {
        return Some((folder.join(path), Version::One));
    }
    let (folder, path) = (mounted(&|kind, _| kind == "cgroup2")?, own(&str::is_empty)?);
    Some((folder.join(path), Version::Two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_group_is_found_in_either_hierarchy() {
        let old = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = place("4:memory:/a/b\n0::/\n", old);
        assert_eq!(found, Some(("/sys/fs/cgroup/memory/a/b".into(), Version::One)));
        let new = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(place("0::/user.slice/x\n", new), Some(("/sys/fs/cgroup/user.slice/x".into(), Version::Two)));
        assert_eq!((place("", new), place("0::/\n", "")), (None, None));
        assert!(has_memory("cpu memory pids\n") && !has_memory("cpu memory_x"));
    }
}
