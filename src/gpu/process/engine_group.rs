//! A control group for one engine's processes, where the system lets us make one: a bound on host memory, and the
//! word of who broke it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gpu::process::cgroup::{self, Version};

/// Distinguishes the groups of one process; a number is never used again.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A group of our own. Dropping it removes it, when its processes have ended.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
}

impl Cgroup {
    /// Makes a group below ours that may hold so much memory.
    ///
    /// # Errors
    /// Why this system does not let us; the engine runs without a bound of its own then.
    pub(crate) fn with_memory(bytes_max: u64) -> std::io::Result<Self> {
        let (parent, version) = parent().ok_or(std::io::ErrorKind::Unsupported)?;
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
        cgroup::kills_in(&self.folder, self.version).is_some_and(|kills| kills > 0)
    }

    /// Whether the groups around it count its kills too.
    pub(crate) fn is_counted_above(&self) -> bool {
        self.version == Version::Two
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::debug!(folder = %self.folder.display(), %error, "a control group stays behind");
        }
    }
}

/// Our own group, if groups with bounds of their own can be made below it.
fn parent() -> Option<(PathBuf, Version)> {
    let place = cgroup::own()?;
    let folder = place.folder();
    let can_bound = match place.version {
        Version::One => folder.is_dir(),
        // Only what our group hands on can be bounded in a group below it.
        Version::Two => fs::read_to_string(folder.join("cgroup.subtree_control")).is_ok_and(|text| has_memory(&text)),
    };
    can_bound.then_some((folder, place.version))
}

fn has_memory(controllers: &str) -> bool {
    controllers.split_whitespace().any(|name| name == "memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_found_by_its_whole_name() {
        assert!(has_memory("cpu memory pids\n") && !has_memory("cpu memory_x") && !has_memory(""));
    }
}
