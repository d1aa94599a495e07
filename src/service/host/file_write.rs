//! Changes a file so that it stays the file that it was: behind its symbolic link, with its owner, group and mode.
//!
//! Where it can, the new text takes the place of the old in one step, so that a reader finds one of them whole. A
//! file that has other names too, or that is mounted by itself, would be torn from them by that: it is written in
//! place. Nothing that lies beside the file is used or followed, and only what was made here is given an owner.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::core::fairness::hash::hex;
use crate::service::host::folder::Folder;

/// Mode of a file that was not there before: for its owner alone.
const MODE_NEW: u32 = 0o600;
/// What a file keeps of its mode.
const MODE_KEPT: u32 = 0o777;
/// Longest text that is read, in bytes.
const TEXT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Random bytes in the name of a file that is on its way; one such name is never there twice by chance.
const CHANCE_BYTES: usize = 8;
/// How often a name is looked for. More in a row are no chance.
const NAMES_MAX: u32 = 4;

/// A file that is to be changed: the directory that it is in, held open, and its name there.
#[derive(Debug)]
pub(crate) struct Place {
    /// As it was given, for messages.
    path: PathBuf,
    folder: Folder,
    name: OsString,
}

impl Place {
    /// The file that a path leads to, behind all symbolic links; it need not be there.
    ///
    /// # Errors
    /// One line: what is wrong on the way, or who else may put files there.
    pub(crate) fn find(path: &Path) -> Result<Self, String> {
        let (folder, name) = Folder::of(path)?;
        let folder = folder.guarded().map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Place { path: path.to_path_buf(), folder, name })
    }

    /// As it was given, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it is in.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its name there.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// What it is, if it is there.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn about(&self) -> io::Result<Option<Metadata>> {
        self.folder.about(&self.name)
    }

    /// Its text, if it is there.
    ///
    /// # Errors
    /// One line that says why it cannot be read.
    pub(crate) fn text(&self) -> Result<Option<String>, String> {
        match self.folder.open(&self.name, OFlags::RDONLY).and_then(text_of) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(|error| format!("{}: it cannot be read: {error}", self.path.display())),
        }
    }

    /// Takes the file away.
    ///
    /// # Errors
    /// One line that says why not.
    pub(crate) fn remove(&self) -> Result<(), String> {
        self.folder
            .remove(&self.name)
            .map_err(|error| format!("{}: it cannot be removed: {error}", self.path.display()))
    }

    /// Gives the file this text.
    ///
    /// # Errors
    /// One line that says why not. What was there is still there, unless the file had to be written in place and the
    /// system failed twice.
    pub(crate) fn replace(&self, text: &[u8]) -> Result<(), String> {
        let Some(about) = self.about().map_err(|error| self.fault(&error))? else {
            return self.in_one_step(text, None).map_err(|error| self.fault(&error));
        };
        let written = match about.nlink() {
            _ if !about.is_file() => Err(no_file()),
            0 | 1 => self.in_one_step(text, Some(&about)),
            _ => Err(ErrorKind::CrossesDevices.into()),
        };
        let written = written.or_else(|error| if is_of_the_place(&error) { self.in_place(text) } else { Err(error) });
        written.map_err(|error| {
            let is_anothers = about.uid() != rustix::process::geteuid().as_raw();
            if error.kind() == ErrorKind::PermissionDenied && is_anothers {
                return format!(
                    "{}: it is another user's, who could not read it any more; run this as that user",
                    self.path.display()
                );
            }
            self.fault(&error)
        })
    }

    fn fault(&self, error: &io::Error) -> String {
        format!("{}: it cannot be written: {error}", self.path.display())
    }

    /// Writes another file and gives it the name.
    fn in_one_step(&self, text: &[u8], before: Option<&Metadata>) -> io::Result<()> {
        let (name, file) = self.beside()?;
        let written = fill(file, text, before).and_then(|()| self.folder.rename(&name, &self.name));
        if written.is_err() {
            let _ = self.folder.remove(&name); // Nobody reads it.
        }
        written?;
        if let Ok(folder) = self.folder.readable() {
            let _ = folder.sync_all(); // Where the system cannot, the old file may come back after a power cut.
        }
        Ok(())
    }

    /// A new file that is on its way to this place, and its name, which nobody could have known before.
    fn beside(&self) -> io::Result<(OsString, File)> {
        let mut tries = 0;
        loop {
            let mut chance = [0; CHANCE_BYTES];
            getrandom::fill(&mut chance).map_err(|error| io::Error::other(error.to_string()))?;
            let name = OsString::from(format!(".orchestratord-{}.new", hex(&chance)));
            tries += 1;
            match self.folder.create(&name, MODE_NEW) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < NAMES_MAX => {}
                made => return made.map(|file| (name, file)),
            }
        }
    }

    /// Writes into the file itself, and when that fails what was there before.
    fn in_place(&self, text: &[u8]) -> io::Result<()> {
        let mut file = regular(self.folder.open(&self.name, OFlags::RDWR)?)?;
        let mut before = Vec::new();
        file.read_to_end(&mut before)?;
        overwrite(&mut file, text).inspect_err(|_| {
            let _ = overwrite(&mut file, &before); // Failing too, there is nothing left to try.
        })
    }
}

/// Whether it is for the file's place, and not for the text, that another file cannot take it. Then the file itself
/// may still be written to.
fn is_of_the_place(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

fn no_file() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "it is there, and no regular file")
}

/// The file, when it is no directory, no pipe, no device.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

/// Makes a new file what the old one was, and only then gives it the text.
fn fill(mut file: File, text: &[u8], before: Option<&Metadata>) -> io::Result<()> {
    let mut mode = MODE_NEW;
    if let Some(before) = before {
        let about = file.metadata()?;
        if (about.uid(), about.gid()) != (before.uid(), before.gid()) {
            fchown(&file, Some(before.uid()), Some(before.gid()))?; // Whoever reads it does under its own name.
        }
        mode = before.mode() & MODE_KEPT;
    }
    file.set_permissions(Permissions::from_mode(mode))?; // Whatever the umask is.
    file.write_all(text)?;
    file.sync_all()
}

fn overwrite(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// The text of the regular file at this path. Others (a pipe, a device) are not waited for.
///
/// # Errors
/// What the system says, or that it is no such file.
pub(crate) fn read_regular(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    text_of(File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?))
}

fn text_of(file: File) -> io::Result<String> {
    let mut text = String::new();
    regular(file)?.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// A new file with this mode, whatever the umask is, in a directory that nobody else may write to.
///
/// # Errors
/// One line that says what is wrong, such as that there is one already.
#[cfg(feature = "cluster")]
pub(crate) fn make(path: &Path, text: &[u8], mode: u32) -> Result<(), String> {
    let (folder, name) = Folder::of(path)?;
    let written = folder.guarded()?.create(&name, mode).and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text)
    });
    written.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test's own, which goes with it.
    struct Own(PathBuf);

    impl Own {
        fn new(name: &str) -> Self {
            let own = std::env::temp_dir().join(format!("oc-write-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&own).unwrap();
            std::fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
            Own(own)
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

    impl Drop for Own {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn replace(path: &Path, text: &[u8]) -> Result<(), String> {
        Place::find(path)?.replace(text)
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode() {
        let own = Own::new("mode");
        let path = own.file("keys.json");
        assert_eq!(Place::find(&path).unwrap().text(), Ok(None));
        replace(&path, b"one").unwrap();
        assert_eq!((text(&path).as_str(), mode(&path)), ("one", 0o600));
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!((text(&path).as_str(), mode(&path)), ("two", 0o640));
        assert_eq!(own.names(), ["keys.json"]);
        Place::find(&path).unwrap().remove().unwrap();
        assert!(own.names().is_empty());
    }

    #[test]
    fn what_lies_beside_a_file_is_not_used() {
        let own = Own::new("beside");
        let (path, precious) = (own.file("keys.json"), own.file("precious"));
        std::fs::write(&precious, "as it was").unwrap();
        std::os::unix::fs::symlink("precious", own.file("keys.json.new")).unwrap();
        std::fs::write(own.file("keys.new"), "anybody's").unwrap();
        std::fs::set_permissions(own.file("keys.new"), Permissions::from_mode(0o666)).unwrap();
        let names = [".orchestratord-1.new", ".orchestratord-2.new"];
        let place = Place::find(&path).unwrap();
        assert!(names.iter().all(|name| place.folder().create(OsStr::new(name), 0o666).is_ok()));
        assert!(place.folder().create(OsStr::new(names[0]), 0o600).is_err(), "what is there is never made");
        assert!(place.folder().open(OsStr::new("keys.json.new"), OFlags::RDONLY).is_err(), "a link is not followed");
        place.replace(b"new").unwrap();
        assert_eq!((text(&path).as_str(), mode(&path), text(&precious).as_str()), ("new", 0o600, "as it was"));
        assert!(own.file("keys.json.new").is_symlink());
        assert_eq!(own.names().len(), 6);
    }

    #[test]
    fn behind_symbolic_links_the_target_is_changed_and_the_links_stay() {
        let own = Own::new("links");
        let [first, second, last] = ["first", "second", "last"].map(|name| own.file(name));
        std::os::unix::fs::symlink("second", &first).unwrap();
        std::os::unix::fs::symlink(&last, &second).unwrap();
        replace(&first, b"not there before").unwrap();
        replace(&first, b"changed").unwrap();
        assert_eq!((text(&last).as_str(), Place::find(&first).unwrap().name()), ("changed", OsStr::new("last")));
        assert!([&first, &second].iter().all(|link| link.is_symlink()) && !last.is_symlink());
        let round = own.file("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert!(replace(&round, b"x").unwrap_err().contains("too many symbolic links"));
    }

    #[test]
    fn every_name_of_a_file_sees_the_change() {
        let own = Own::new("names");
        let [one, other] = ["one", "other"].map(|name| own.file(name));
        std::fs::write(&one, "a text that is longer than the next").unwrap();
        std::fs::hard_link(&one, &other).unwrap();
        let before = std::fs::metadata(&one).unwrap().ino();
        replace(&one, b"short").unwrap();
        assert_eq!((text(&one).as_str(), text(&other).as_str()), ("short", "short"));
        assert_eq!(std::fs::metadata(&one).unwrap().ino(), before);
    }

    #[test]
    fn what_cannot_be_written_says_so_and_stays() {
        let own = Own::new("fault");
        let error = replace(&own.file("no/such/folder"), b"x").unwrap_err();
        assert!(error.contains("no/such/folder: ") && error.contains("/no: No such file"), "{error}");
        std::fs::create_dir(own.file("folder")).unwrap();
        let error = replace(&own.file("folder"), b"x").unwrap_err();
        assert!(error.contains("no regular file"), "{error}");
        assert!(Place::find(&own.file("folder")).unwrap().text().is_err());
        assert_eq!(own.names(), ["folder"]);
    }
}
