//! The control groups that this process is in: where they lie, what memory they leave, and how often the system has
//! killed in them. Both versions, and both at once; in a container too, where the path of a group may be that of the
//! host.

use std::fs;
use std::path::{Path, PathBuf};

/// From here on a limit of the old hierarchy is none: it says the largest number of whole pages.
const NO_LIMIT_FROM: u64 = 1 << 60;

/// The hierarchy that bounds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The memory controller's own hierarchy.
    One,
    /// The unified hierarchy.
    Two,
}

/// Where a group lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) version: Version,
    /// The folder of the topmost group that can be seen.
    mount: PathBuf,
    /// The way from there to the group; empty for the topmost.
    path: PathBuf,
}

impl Place {
    /// The group's folder.
    #[cfg(feature = "engines-http")]
    pub(crate) fn folder(&self) -> PathBuf {
        self.mount.join(&self.path)
    }
}

/// What a group allows, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The group as it is seen from here, such as `/system.slice/x`.
    pub(crate) group: String,
    /// Most memory of it with all groups inside.
    pub(crate) limit: u64,
    /// What it may still take, with what the system can get back at once.
    pub(crate) free: u64,
}

/// Our own group, of the hierarchy that bounds memory; `None` without one.
pub(crate) fn own() -> Option<Place> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut place = place(&groups, &mounts)?;
    if !place.mount.join(&place.path).is_dir() {
        place.path = PathBuf::new(); // Of another view of the hierarchy: what can be seen is ours.
    }
    Some(place)
}

/// The bounds of our own group and of those around it, inside first; empty where nothing is bounded.
pub(crate) fn bounds() -> Vec<Bound> {
    let Some(Place { version, mount, path }) = own() else { return Vec::new() };
    let [limit, usage, stat] = match version {
        Version::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"],
        Version::Two => ["memory.max", "memory.current", "memory.stat"],
    };
    let of_group = |group: &Path| {
        let read = |file| fs::read_to_string(mount.join(group).join(file)).unwrap_or_default();
        let (limit, free) = bound(version, &read(limit), &read(usage), &read(stat))?;
        Some(Bound { group: format!("/{}", group.display()), limit, free })
    };
    path.ancestors().filter_map(of_group).collect()
}

/// How often the system has killed a process of our own group for want of memory, in the unified hierarchy also of
/// those inside; that of the whole host where our group does not count. `None` where nobody does.
#[cfg(feature = "engines-http")]
pub(crate) fn kills() -> Option<u64> {
    let own = own().and_then(|place| kills_in(&place.folder(), place.version));
    own.or_else(|| fs::read_to_string("/proc/vmstat").ok().as_deref().and_then(kills_of))
}

/// How often the system has killed in the group of this folder.
#[cfg(feature = "engines-http")]
pub(crate) fn kills_in(folder: &Path, version: Version) -> Option<u64> {
    let file = match version {
        Version::One => "memory.oom_control",
        Version::Two => "memory.events",
    };
    kills_of(&fs::read_to_string(folder.join(file)).ok()?)
}

#[cfg(any(test, feature = "engines-http"))]
fn kills_of(text: &str) -> Option<u64> {
    field(text, "oom_kill")
}

/// A number in lines of a name and a number each.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Limit and rest of a group, by its files; `None` without a limit.
fn bound(version: Version, limit: &str, usage: &str, stat: &str) -> Option<(u64, u64)> {
    let limit = limit.trim().parse::<u64>().ok().filter(|limit| *limit < NO_LIMIT_FROM)?;
    let usage: u64 = usage.trim().parse().unwrap_or(0);
    let reclaimable = match version {
        Version::One => field(stat, "total_inactive_file").or_else(|| field(stat, "inactive_file")).unwrap_or(0),
        Version::Two => {
            let pages = [field(stat, "inactive_file"), field(stat, "slab_reclaimable")];
            pages.into_iter().flatten().fold(0, u64::saturating_add)
        }
    };
    Some((limit, limit.saturating_sub(usage.saturating_sub(reclaimable))))
}

/// A mount of a hierarchy.
struct Mount<'a> {
    /// The group that is seen at its top, by the path that groups have.
    root: &'a str,
    folder: &'a str,
}

/// Where the group lies that `/proc/self/cgroup` names, by `/proc/self/mountinfo`.
fn place(groups: &str, mounts: &str) -> Option<Place> {
    let has_memory = |text: &str| text.split(',').any(|name| name == "memory");
    let of = |version, is_mount: &dyn Fn(&str, &str) -> bool, is_group: &dyn Fn(&str) -> bool| {
        let path = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            is_group(controllers).then_some(path)
        })?;
        let mut found = mounts.lines().filter_map(|line| mount(line, is_mount)).peekable();
        let first = found.peek().map(|mount| mount.folder)?;
        let seen = found.find_map(|mount| Some((mount.folder, below(path, mount.root)?)));
        let (folder, path) = seen.unwrap_or((first, ""));
        Some(Place { version, mount: folder.into(), path: path.trim_start_matches('/').into() })
    };
    of(Version::One, &|kind, options| kind == "cgroup" && has_memory(options), &has_memory)
        .or_else(|| of(Version::Two, &|kind, _| kind == "cgroup2", &str::is_empty))
}

/// A line of `/proc/self/mountinfo`, if it is a mount that is wanted, by its kind and the options of its file system.
fn mount<'a>(line: &'a str, is_wanted: &dyn Fn(&str, &str) -> bool) -> Option<Mount<'a>> {
    let (place, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    let mut place = place.split(' ').skip(3);
    let (root, folder) = (place.next()?, place.next()?);
    is_wanted(kind, options).then_some(Mount { root, folder })
}

/// The way from `root` to `path`; `None` when it does not lie below.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    let is_inside = rest.is_empty() || rest.starts_with('/');
    (is_inside && !path.split('/').any(|part| part == "..")).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
        31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const NEW: &str =
        "24 1 0:22 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";

    fn check(groups: &str, mounts: &str, wanted: Option<(Version, &str, &str)>) {
        let wanted = wanted.map(|(version, mount, path)| Place { version, mount: mount.into(), path: path.into() });
        assert_eq!(place(groups, mounts), wanted, "{groups} in {mounts}");
    }

    #[test]
    fn our_own_group_is_found_in_either_hierarchy_and_in_both() {
        check("0::/user.slice/x\n", NEW, Some((Version::Two, "/sys/fs/cgroup", "user.slice/x")));
        check("0::/\n", NEW, Some((Version::Two, "/sys/fs/cgroup", "")));
        check("4:memory:/a/b\n2:cpu,cpuacct:/c\n", OLD, Some((Version::One, "/sys/fs/cgroup/memory", "a/b")));
        let both = "4:memory:/a/b\n0::/init.scope\n";
        check(both, OLD, Some((Version::One, "/sys/fs/cgroup/memory", "a/b")));
        // Memory is not bounded by the old hierarchy here.
        check("2:cpu,cpuacct:/c\n0::/x\n", OLD, Some((Version::Two, "/sys/fs/cgroup/unified", "x")));
        check("", NEW, None);
        check("0::/\n", "", None);
        check("1:name=systemd:/x\n", OLD, None);
        check("4:memory_x:/a\n", OLD, None);
    }

    #[test]
    fn a_container_sees_its_own_part_of_the_hierarchy() {
        let docker = "9 8 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        check("4:memory:/docker/abc\n", docker, Some((Version::One, "/sys/fs/cgroup/memory", "")));
        check("4:memory:/docker/abc/inner\n", docker, Some((Version::One, "/sys/fs/cgroup/memory", "inner")));
        // A path of the host's view, which is not seen from here; and one whose name only begins alike.
        check("4:memory:/docker/xyz\n", docker, Some((Version::One, "/sys/fs/cgroup/memory", "")));
        check("4:memory:/docker/abcd\n", docker, Some((Version::One, "/sys/fs/cgroup/memory", "")));
        check("0::/../other\n", NEW, Some((Version::Two, "/sys/fs/cgroup", "")));
        let two = format!("{docker}10 8 0:30 / /host/memory ro - cgroup cgroup rw,memory\n");
        check("4:memory:/docker/xyz\n", &two, Some((Version::One, "/host/memory", "docker/xyz")));
    }

    #[test]
    fn what_a_group_leaves_counts_what_the_system_gets_back() {
        let stat = "anon 10\nfile 90\ninactive_file 300\ntotal_inactive_file 400\nslab_reclaimable 50\n";
        assert_eq!(bound(Version::Two, "1000\n", "900\n", stat), Some((1000, 450)));
        assert_eq!(bound(Version::One, "1000\n", "900\n", stat), Some((1000, 500)));
        assert_eq!(bound(Version::One, "1000", "900", "inactive_file 100\n"), Some((1000, 200)));
        assert_eq!(bound(Version::Two, "1000", "2000", ""), Some((1000, 0)), "more than it may have");
        assert_eq!(bound(Version::Two, "1000", "", "inactive_file 7\n"), Some((1000, 1000)));
    }

    #[test]
    fn no_limit_is_none_however_it_is_written() {
        for limit in ["max\n", "9223372036854771712\n", "9223372036854710272\n", "18446744073709551615", "", "-1"] {
            assert_eq!(bound(Version::One, limit, "1", ""), None, "{limit}");
        }
        let largest = NO_LIMIT_FROM - 1;
        assert_eq!(bound(Version::One, &largest.to_string(), "0", ""), Some((largest, largest)));
    }

    #[test]
    fn kills_are_counted_by_either_version_and_by_the_host() {
        assert_eq!(kills_of("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills_of("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(kills_of("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_bounds_of_this_system_are_possible() {
        assert!(bounds().iter().all(|bound| bound.free <= bound.limit && bound.group.starts_with('/')));
    }
}
