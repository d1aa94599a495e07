//! What an engine needs of the host before it is started: the right files, and memory. And which processes belong to
//! it.

use std::path::Path;

use crate::config::ModelFile;
use crate::core::id::ReplicaId;
use crate::gpu::engine::EngineError;
use crate::gpu::process::cgroup::{self, Bound};

/// Processes of this process's group, itself included. On a system without `/proc`, itself alone.
pub(crate) fn group_of(pid: u32) -> Vec<u32> {
    members(pid).filter(|members| !members.is_empty()).unwrap_or_else(|| vec![pid])
}

/// Processes of this group that have not ended; `None` on a system without `/proc`.
pub(crate) fn members(group: u32) -> Option<Vec<u32>> {
    let processes = std::fs::read_dir("/proc").ok()?;
    let processes = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Some(processes.filter(|process| living_in(*process) == Some(group)).collect())
}

/// The group of a process that has not ended.
fn living_in(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may have anything in it: state, parent, group.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let is_over = fields.next()?.starts_with(['Z', 'X']);
    fields.nth(1)?.parse().ok().filter(|_| !is_over)
}

/// Resident memory of a process and all that it has started, in bytes; 0 where the system does not say.
pub(crate) fn memory_of(pid: u32) -> u64 {
    let mut found = vec![pid];
    let mut sum = 0_u64;
    // Children come behind their parents; an engine has a handful.
    let mut next = 0;
    while let Some(process) = found.get(next).copied().filter(|_| next < PROCESSES_MAX) {
        next += 1;
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        sum = sum.saturating_add(kib.saturating_mul(1024));
        let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    sum
}

/// Processes of one engine whose memory is added up.
const PROCESSES_MAX: usize = 64;

/// Whether there is this much memory for us: the host must have it to give, and each control group around us must
/// allow it.
///
/// # Errors
/// [`EngineError::OutOfMemory`] when there is less, with who gives least. A host that does not say has enough.
pub(crate) fn check_memory(wanted: u64) -> Result<(), EngineError> {
    match short(figure("MemAvailable:"), &cgroup::bounds(), wanted) {
        Some(text) => Err(EngineError::OutOfMemory(text.into())),
        None => Ok(()),
    }
}

/// Who gives least, when that is less than `wanted`: the host with so much available, or one of the groups.
fn short(host: Option<u64>, groups: &[Bound], wanted: u64) -> Option<String> {
    let group = groups.iter().filter(|bound| bound.free < wanted).min_by_key(|bound| bound.free);
    let host = host.filter(|free| *free < wanted);
    match (group, host) {
        (Some(Bound { group, limit, free }), host) if host.is_none_or(|host| *free <= host) => Some(format!(
            "the control group {group} of this process has {free} bytes free of {limit}, and the load needs {wanted}"
        )),
        (_, Some(free)) => Some(format!("the host has {free} bytes free, and the load needs {wanted}")),
        _ => None,
    }
}

/// Why this much memory can never be had here, whatever else ends; `None` when it can.
#[cfg(feature = "service")]
pub(crate) fn never_fits(wanted: u64) -> Option<String> {
    never(figure("MemTotal:"), &cgroup::bounds(), wanted)
}

#[cfg(any(test, feature = "service"))]
fn never(host: Option<u64>, groups: &[Bound], wanted: u64) -> Option<String> {
    let group = groups.iter().min_by_key(|bound| bound.limit).filter(|bound| bound.limit < wanted);
    let group = group.map(|Bound { group, limit, .. }| {
        format!("the control group {group} of this process may have {limit} bytes in all, and not {wanted}")
    });
    group.or_else(|| {
        let total = host.filter(|total| *total < wanted)?;
        Some(format!("the host has {total} bytes in all, and not {wanted}"))
    })
}

/// A figure of `/proc/meminfo` in bytes.
fn figure(name: &str) -> Option<u64> {
    figure_of(&std::fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn figure_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Size of all files together; `None` without any, or when one cannot be looked at.
pub(crate) fn size(files: &[ModelFile]) -> Option<u64> {
    let size = |file: &ModelFile| std::fs::metadata(Path::new(&file.path)).ok().map(|about| about.len());
    let sizes: Option<Vec<u64>> = files.iter().map(size).collect();
    sizes.filter(|sizes| !sizes.is_empty()).map(|sizes| sizes.iter().sum())
}

/// Checks a model's files against their digests (ORCH-3037), and returns the digest of all; `None` when no file is
/// named.
///
/// # Errors
/// [`EngineError::Preload`] with the file, what it should be and what it is.
#[cfg(feature = "engines-http")]
pub(crate) async fn digest(files: &[ModelFile], replica: &ReplicaId) -> Result<Option<String>, EngineError> {
    crate::gpu::process::digest::check(files, replica).await
}

/// A build without engines that have files has nothing to check them with.
#[cfg(not(feature = "engines-http"))]
pub(crate) async fn digest(files: &[ModelFile], replica: &ReplicaId) -> Result<Option<String>, EngineError> {
    match files.first() {
        None => Ok(None),
        Some(file) => {
            let text =
                format!("{replica}: {} cannot be checked by a build without the feature engines-http", file.path);
            Err(EngineError::Preload(text.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_available_is_read_and_a_strange_file_says_nothing() {
        let available = |text| figure_of(text, "MemAvailable:");
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!((available("MemAvailable: x kB"), available("")), (None, None));
        assert!(check_memory(1).is_ok());
        assert!(matches!(check_memory(u64::MAX), Err(EngineError::OutOfMemory(_))));
    }

    #[test]
    fn who_gives_least_is_named() {
        let bound = |group: &str, limit, free| Bound { group: group.to_owned(), limit, free };
        let groups = [bound("/a/b", 100, 60), bound("/a", 200, 50)];
        assert_eq!(short(Some(500), &groups, 50), None);
        let text = short(Some(500), &groups, 55).expect("the outer group has less");
        assert_eq!(text, "the control group /a of this process has 50 bytes free of 200, and the load needs 55");
        assert_eq!(short(Some(40), &groups, 55).as_deref(), Some("the host has 40 bytes free, and the load needs 55"));
        assert!(short(None, &groups, 70).is_some_and(|text| text.contains("control group /a ")));
        assert_eq!(short(None, &[], u64::MAX), None);
    }

    #[test]
    fn what_no_limit_allows_never_fits() {
        let groups = [Bound { group: "/a".to_owned(), limit: 100, free: 0 }];
        assert_eq!(never(Some(500), &groups, 100), None, "only used up now");
        assert!(never(Some(500), &groups, 101).is_some_and(|text| text.contains("control group /a")));
        assert!(never(Some(500), &[], 501).is_some_and(|text| text.contains("the host has 500 bytes in all")));
        assert_eq!(never(None, &[], u64::MAX), None);
    }

    #[test]
    fn a_group_has_its_leader() {
        let own = living_in(std::process::id()).expect("we have one");
        assert!(group_of(own).contains(&std::process::id()) || own == 0);
    }
}
