//! One command at a time changes the file of keys: it holds a lock beside the file. To revoke a key is urgent, so
//! nobody waits long for another, and whoever has waited in vain is told for whom.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;
use rustix::thread::{Timespec, nanosleep};

use crate::service::host::file_write::Place;

/// Longest wait for a lock, in seconds. Whoever changes the file has it for milliseconds.
const WAIT_S: i64 = 5;
/// Time between two tries, in milliseconds.
const PAUSE_MS: i64 = 50;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: PAUSE_MS * 1_000_000 };
/// Mode of a lock: any who could open it could hold it.
const MODE: u32 = 0o600;

/// Keeps others from changing the file, until it is dropped.
///
/// # Errors
/// One line: it cannot be had, or somebody else has it all the time, and who.
pub(crate) fn hold(place: &Place) -> Result<File, String> {
    let name = name(place.name());
    let fault = |why: &str| format!("{}: {why}", place.folder().path(&name).display());
    let lock = open(place, &name).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            fault("it is a symbolic link, which is not followed; remove it")
        }
        _ => fault(&error.to_string()),
    })?;
    for _ in 0..WAIT_S * 1000 / PAUSE_MS {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(error) if error == Errno::WOULDBLOCK || error == Errno::INTR => {}
            Err(error) => return Err(fault(&error.to_string())),
        }
        let _ = nanosleep(&PAUSE); // Woken early, it tries early.
    }
    Err(fault(&format!("{} has held this lock for {WAIT_S} s; nothing was changed", owner(&lock))))
}

/// The lock's name beside the file.
fn name(file: &OsStr) -> OsString {
    let mut name = file.to_owned();
    name.push(".lock");
    name
}

fn open(place: &Place, name: &OsStr) -> io::Result<File> {
    use ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    match place.folder().open(name, OFlags::RDWR) {
        Err(error) if error.kind() == NotFound => make(place, name),
        // Another user's, who may write to the file as well.
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
            place.folder().open(name, OFlags::RDONLY)
        }
        opened => opened,
    }
}

fn make(place: &Place, name: &OsStr) -> io::Result<File> {
    let about = place.about()?;
    match place.folder().create(name, MODE) {
        Ok(lock) => {
            if let Some(about) = &about {
                permit(&lock, about);
            }
            Ok(lock)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => place.folder().open(name, OFlags::RDWR),
        // The file may be written to where nothing can be put beside it.
        Err(_) if about.is_some() => place.folder().readable(),
        Err(error) => Err(error),
    }
}

/// Lets those lock who may write to the file. Where the system does not, the lock is for whoever made it alone.
fn permit(lock: &File, file: &Metadata) {
    let writers = file.mode() & 0o222;
    if fchown(lock, Some(file.uid()), Some(file.gid())).is_ok() {
        let _ = lock.set_permissions(Permissions::from_mode(MODE | writers | (writers << 1)));
    }
}

/// Who holds the lock, in words.
fn owner(lock: &File) -> String {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let device = |about: &Metadata| (major(about.dev()), minor(about.dev()));
    let about = lock.metadata().ok();
    let Some(pid) = about.and_then(|about| holder(&locks, device(&about), about.ino())) else {
        return "a process that the system does not name".to_owned();
    };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({:?})", name.trim_end())
}

/// The process that holds a lock on a file by what `/proc/locks` says, a line for each lock, as in
/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`. Some file systems have another device's number there than files
/// tell.
fn holder(locks: &str, device: (u32, u32), inode: u64) -> Option<u32> {
    let of_the_file = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?; // "->" is somebody who waits.
        let pid: u32 = words.nth(2).filter(|_| kind != "->")?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let mut number = || u32::from_str_radix(place.next()?, 16).ok();
        let on = (number()?, number()?);
        (place.next()?.parse::<u64>() == Ok(inode)).then_some((on == device, pid))
    };
    let found: Vec<(bool, u32)> = locks.lines().filter_map(of_the_file).collect();
    found.iter().find(|(is_on_device, _)| *is_on_device).or(found.first()).map(|(_, pid)| *pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_read_from_the_systems_list() {
        let locks = "1: POSIX  ADVISORY  READ  11 08:01:77 128 128\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:2f:5678 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 08:1a:5678 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 08:1a:5678 0 EOF\n\
                     4: OFDLCK ADVISORY  WRITE -1 08:01:79 0 EOF\n5: x\n\n";
        assert_eq!(holder(locks, (8, 26), 5678), Some(13));
        assert_eq!(holder(locks, (0, 47), 5678), Some(12));
        assert_eq!(holder(locks, (1, 1), 5678), Some(12), "of another device, and the best that there is");
        assert_eq!(holder(locks, (8, 1), 77), Some(11));
        for (device, inode) in [((8, 1), 78), ((8, 1), 79)] {
            assert_eq!(holder(locks, device, inode), None, "{inode}");
        }
        assert_eq!(holder("", (8, 1), 77), None);
    }

    #[test]
    fn the_lock_has_the_files_name() {
        assert_eq!(name(OsStr::new("keys.json")), "keys.json.lock");
    }
}
