//! A directory that a command changes files in: found once, held open, and reached by its descriptor from then on.
//!
//! Whoever may write to a directory may put a symbolic link in the place of any file there, and with it lead a command
//! that may do more than they. So links are followed only where root or the caller has made them, files are opened as
//! themselves or not at all, and the directory must be root's or the caller's with nobody else who may write to it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, readlinkat, renameat, unlinkat};

/// Most symbolic links on the way to a file, as for the system itself.
const LINKS_MAX: usize = 40;
/// To look at what a name is, a symbolic link too.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// To go into a directory; what is mounted on demand is mounted.
const ENTER: OFlags = LOOK.union(OFlags::DIRECTORY);
/// Besides what a file is opened for: no link is followed, and no pipe is waited for.
const AS_ITSELF: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Bits of a mode that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// A directory that is held open.
#[derive(Debug)]
pub(crate) struct Folder {
    held: File,
    /// For messages.
    path: PathBuf,
}

impl Folder {
    /// The directory that a file is in behind all symbolic links, and the file's name there. The file need not be
    /// there.
    ///
    /// # Errors
    /// One line that says what is wrong on the way, such as a link of somebody else.
    pub(crate) fn of(file: &Path) -> Result<(Folder, OsString), String> {
        let (mut ahead, mut links) = (steps(file), 0);
        let mut at = Folder::start().map_err(|error| format!("{}: {error}", file.display()))?;
        while let Some(step) = ahead.pop() {
            let fault = |why: &str| format!("{}: {}: {why}", file.display(), at.path.join(&step).display());
            let is_file = ahead.is_empty() && !matches!(step.as_encoded_bytes(), b"/" | b"." | b"..");
            let found = match openat(&at.held, &step, LOOK, Mode::empty()).map_err(io::Error::from) {
                Err(error) if is_file && error.kind() == ErrorKind::NotFound => return Ok((at, step)),
                found => File::from(found.map_err(|error| fault(&error.to_string()))?),
            };
            let about = found.metadata().map_err(|error| fault(&error.to_string()))?;
            if about.is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    return Err(fault("there are too many symbolic links on the way"));
                }
                ahead.extend(steps(&followed(&found, about.uid(), caller()).map_err(|why| fault(&why))?));
            } else if is_file {
                return Ok((at, step));
            } else {
                let entered =
                    openat(&at.held, &step, ENTER, Mode::empty()).map_err(|error| fault(&error.to_string()))?;
                at = Folder { held: entered.into(), path: at.path.join(&step) };
            }
        }
        Err(format!("{}: it names a directory, and a file is wanted", file.display()))
    }

    /// Where a path that does not begin at the root begins.
    fn start() -> io::Result<Folder> {
        Ok(Folder { held: openat(CWD, ".", ENTER, Mode::empty())?.into(), path: PathBuf::new() })
    }

    /// The directory, when nobody but root and the caller may put files there.
    ///
    /// # Errors
    /// One line that says who else may, and what would be right.
    pub(crate) fn guarded(self) -> Result<Folder, String> {
        let shown = self.path(OsStr::new("")).display().to_string();
        let about = self.held.metadata().map_err(|error| format!("{shown}: {error}"))?;
        match objection((about.mode(), about.uid()), caller(), &shown) {
            None => Ok(self),
            Some(why) => Err(format!("{shown}: {why}")),
        }
    }

    /// Makes a directory that only its owner may write to, and holds it.
    ///
    /// # Errors
    /// One line that says why not; that it is there already is such a reason.
    #[cfg(feature = "cluster")]
    pub(crate) fn make(path: &Path) -> Result<Folder, String> {
        let (parent, name) = Folder::of(path)?;
        let made = rustix::fs::mkdirat(&parent.held, &name, Mode::from_raw_mode(0o755))
            .and_then(|()| openat(&parent.held, &name, ENTER, Mode::empty()));
        let held = File::from(made.map_err(|error| format!("{}: {error}", path.display()))?);
        let moved = || format!("{}: it was put elsewhere while it was made", path.display());
        let path = path.canonicalize().map_err(|_| moved())?;
        let place = |about: Metadata| (about.dev(), about.ino());
        match (path.symlink_metadata().map(place), held.metadata().map(place)) {
            (Ok(named), Ok(held)) if named == held => {}
            _ => return Err(moved()),
        }
        Folder { held, path }.guarded()
    }

    /// The path of a file in it, for messages; of the directory itself when the name is empty.
    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        match (self.path.as_os_str().is_empty(), name.is_empty()) {
            (true, true) => PathBuf::from("."),
            (_, true) => self.path.clone(),
            (_, false) => self.path.join(name),
        }
    }

    /// What stands under a name, a symbolic link as itself; `None` is nothing.
    pub(crate) fn about(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        match openat(&self.held, name, LOOK, Mode::empty()).map_err(io::Error::from) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            found => File::from(found?).metadata().map(Some),
        }
    }

    /// Opens what is there. What turns out to be a symbolic link is an error.
    pub(crate) fn open(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        Ok(openat(&self.held, name, flags.union(AS_ITSELF), Mode::empty())?.into())
    }

    /// Makes a file that was not there, to be written, with this mode at most.
    pub(crate) fn create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(AS_ITSELF);
        Ok(openat(&self.held, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    /// Gives a file another name, which it takes from the one that has it.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.held, from, &self.held, to)?)
    }

    /// Takes a name away.
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.held, name, AtFlags::empty())?)
    }

    /// The directory opened to be read, which a lock and `fsync` want.
    pub(crate) fn readable(&self) -> io::Result<File> {
        self.open(OsStr::new("."), OFlags::RDONLY.union(OFlags::DIRECTORY))
    }
}

/// The parts of a path, the first at the end.
fn steps(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| step.as_os_str().to_os_string()).collect()
}

/// Who runs this.
fn caller() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether what this user has made may lead the caller: root's may, and one's own.
fn is_trusted(owner: u32, caller: u32) -> bool {
    owner == 0 || owner == caller
}

/// Where a symbolic link that is held open leads to.
fn followed(link: &File, owner: u32, caller: u32) -> Result<PathBuf, String> {
    if !is_trusted(owner, caller) {
        return Err(format!(
            "this is a symbolic link of uid {owner}, and only links of root and of who runs this are followed; name the file behind it"
        ));
    }
    let target = readlinkat(link, "", Vec::<u8>::new()).map_err(|error| error.to_string())?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

/// Why no file is written in a directory with this mode and owner, if there is a reason.
fn objection((mode, owner): (u32, u32), caller: u32, shown: &str) -> Option<String> {
    if !is_trusted(owner, caller) {
        let right = if caller == 0 { "root's" } else { "your own" };
        return Some(format!(
            "the directory belongs to uid {owner}, who may put other files in their place there; run this as that user, or keep the file \
             in a directory of {right}"
        ));
    }
    (mode & OTHERS_WRITE != 0).then(|| {
        let mode = mode & 0o7777;
        format!("others may write to the directory (its mode is {mode:04o}) and put other files in their place; say: chmod go-w {shown}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_caller_may_have_made_what_leads_a_command() {
        for (owner, caller, is_good) in
            [(0, 0, true), (0, 1500, true), (1500, 1500, true), (1500, 0, false), (1500, 1600, false)]
        {
            assert_eq!(is_trusted(owner, caller), is_good, "{owner} leads {caller}");
            assert_eq!(
                objection((0o40755, owner), caller, "x").is_none(),
                is_good,
                "directory of {owner} for {caller}"
            );
        }
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_whatever_else_its_mode_says() {
        for mode in [0o775_u32, 0o757, 0o777, 0o1777, 0o2775] {
            let why = objection((0o40000 | mode, 0), 0, "/keys").expect("it is refused");
            assert!(why.contains(&format!("{mode:04o}")) && why.ends_with("chmod go-w /keys"), "{why}");
        }
        assert!(
            [0o700, 0o755, 0o2755, 0o1755]
                .into_iter()
                .all(|mode: u32| objection((0o40000 | mode, 0), 0, "x").is_none())
        );
    }

    #[test]
    fn a_path_is_walked_step_by_step() {
        let (folder, name) = Folder::of(Path::new("/proc/../no-such-file")).expect("the directory is there");
        assert_eq!((folder.path(&name), name), (PathBuf::from("/proc/../no-such-file"), "no-such-file".into()));
        let (folder, name) = Folder::of(Path::new("keys.json")).expect("a name alone");
        assert_eq!((folder.path(OsStr::new("")), name), (PathBuf::from("."), "keys.json".into()));
        for (wrong, why) in [
            ("/", "a file is wanted"),
            ("..", "a file is wanted"),
            ("/proc/nobody-here/keys.json", "/proc/nobody-here: No such file"),
            ("/proc/version/keys.json", "/proc/version: Not a directory"),
        ] {
            let error = Folder::of(Path::new(wrong)).expect_err(wrong);
            assert!(error.contains(why), "{error}");
        }
    }
}
