//! Changes a file so that it stays the file that it was: behind its symbolic link, with its owner, group and mode.
//!
//! Where it can, the new text takes the place of the old in one step, so that a reader finds one of them whole. A
//! file that has other names too, or that is mounted by itself, would be torn from them by that: it is written in
//! place.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Most symbolic links that are followed one behind the other, as for the system itself.
const LINKS_MAX: usize = 40;
/// Mode of a file that was not there before: for its owner alone.
const MODE_NEW: u32 = 0o600;

/// The file that a path leads to, behind all symbolic links; it need not be there.
pub(crate) fn target(path: &Path) -> PathBuf {
    let mut target = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let Ok(next) = std::fs::read_link(&target) else { break };
        target = target.parent().unwrap_or(Path::new("")).join(next); // As it is, if it begins at the root.
    }
    target
}

/// The folder that a file is in.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a file this text.
///
/// # Errors
/// One line that says why not. What was there is still there, unless the file had to be written in place and the
/// system failed twice.
pub(crate) fn replace(path: &Path, text: &[u8]) -> Result<(), String> {
    let target = target(path);
    let before = match std::fs::metadata(&target) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        about => Some(about.map_err(|error| fault(path, &error))?),
    };
    let Some(about) = before else {
        return in_one_step(&target, text, None).map_err(|error| fault(path, &error));
    };
    let written = match about.nlink() {
        0 | 1 => in_one_step(&target, text, Some(&about)),
        _ => Err(ErrorKind::CrossesDevices.into()),
    };
    let written = written.or_else(|error| if is_of_the_place(&error) { in_place(&target, text) } else { Err(error) });
    written.map_err(|error| {
        let is_anothers = about.uid() != rustix::process::geteuid().as_raw();
        if error.kind() == ErrorKind::PermissionDenied && is_anothers {
            return format!(
                "{}: it is another user's, who could not read it any more; run this as that user",
                path.display()
            );
        }
        fault(path, &error)
    })
}

fn fault(path: &Path, error: &io::Error) -> String {
    format!("{}: it cannot be written: {error}", path.display())
}

/// Whether it is for the file's place, and not for the text, that another file cannot take it. Then the file itself
/// may still be written to.
fn is_of_the_place(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

/// Writes another file and gives it the name.
fn in_one_step(path: &Path, text: &[u8], before: Option<&Metadata>) -> io::Result<()> {
    let beside = beside(path)?;
    let written = write_new(&beside, text, before).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside); // Nobody reads it.
    }
    written?;
    if let Ok(folder) = File::open(folder(path)) {
        let _ = folder.sync_all(); // Where the system cannot, the old file may come back after a power cut.
    }
    Ok(())
}

/// The name of a file that is on its way to `path`.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut name = OsString::from(path.file_name().ok_or(ErrorKind::InvalidInput)?);
    name.push(".new");
    Ok(path.with_file_name(name))
}

fn write_new(path: &Path, text: &[u8], before: Option<&Metadata>) -> io::Result<()> {
    let _ = std::fs::remove_file(path); // Left behind by one that was killed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE_NEW).open(path)?;
    if let Some(before) = before {
        let about = file.metadata()?;
        if (about.uid(), about.gid()) != (before.uid(), before.gid()) {
            fchown(&file, Some(before.uid()), Some(before.gid()))?; // Whoever reads it does under its own name.
        }
        file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o7777))?;
    }
    file.write_all(text)?;
    file.sync_all()
}

/// Writes into the file itself, and when that fails what was there before.
fn in_place(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut before = Vec::new();
    file.read_to_end(&mut before)?;
    overwrite(&mut file, text).inspect_err(|_| {
        let _ = overwrite(&mut file, &before); // Failing too, there is nothing left to try.
    })
}

fn overwrite(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("oc-write-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode() {
        let folder = Folder::new("mode");
        let path = folder.file("keys.json");
        replace(&path, b"one").unwrap();
        assert_eq!((text(&path).as_str(), mode(&path)), ("one", 0o600));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::write(folder.file("keys.json.new"), "left behind").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!((text(&path).as_str(), mode(&path)), ("two", 0o640));
        assert_eq!(folder.names(), ["keys.json"]);
    }

    #[test]
    fn behind_symbolic_links_the_target_is_changed_and_the_links_stay() {
        let folder = Folder::new("links");
        let [first, second, last] = ["first", "second", "last"].map(|name| folder.file(name));
        std::os::unix::fs::symlink("second", &first).unwrap();
        std::os::unix::fs::symlink(&last, &second).unwrap();
        replace(&first, b"not there before").unwrap();
        replace(&first, b"changed").unwrap();
        assert_eq!((text(&last).as_str(), target(&first)), ("changed", last.clone()));
        assert!([&first, &second].iter().all(|link| link.is_symlink()) && !last.is_symlink());
        let round = folder.file("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert!(replace(&round, b"x").unwrap_err().contains("round: it cannot be written"));
    }

    #[test]
    fn every_name_of_a_file_sees_the_change() {
        let folder = Folder::new("names");
        let [one, other] = ["one", "other"].map(|name| folder.file(name));
        std::fs::write(&one, "a text that is longer than the next").unwrap();
        std::fs::hard_link(&one, &other).unwrap();
        let before = std::fs::metadata(&one).unwrap().ino();
        replace(&one, b"short").unwrap();
        assert_eq!((text(&one).as_str(), text(&other).as_str()), ("short", "short"));
        assert_eq!(std::fs::metadata(&one).unwrap().ino(), before);
    }

    #[test]
    fn what_cannot_be_written_says_so_and_stays() {
        let folder = Folder::new("fault");
        let error = replace(&folder.file("no/such/folder"), b"x").unwrap_err();
        assert!(error.contains("no/such/folder: it cannot be written"), "{error}");
        std::fs::create_dir(folder.file("folder")).unwrap();
        assert!(replace(&folder.file("folder"), b"x").is_err());
        assert_eq!(folder.names(), ["folder"]);
    }
}
