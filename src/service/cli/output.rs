//! What commands write for people and programs, and whether it got there.
//!
//! A command whose output is lost has failed: [`finish`] says so at its end. A reader that has had enough and closes
//! the pipe is no failure. A service that runs writes its greeting without waiting for a reader, and is not
//! concerned.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use parking_lot::Mutex;

use crate::gpu::threads;
use crate::service::cli::plain_text::for_terminal;
use crate::service::telemetry::log_writer;

/// What became of the output: the first fault of standard output, if there was one. Behind it nothing more is written.
static FAULT: Mutex<Option<io::Error>> = Mutex::new(None);

/// A line for a person, on standard output.
pub(crate) fn say(text: &str) {
    print(&format!("{}\n", if io::stdout().is_terminal() { for_terminal(text) } else { text.into() }));
}

/// Text as it is, on standard output and at once.
pub(crate) fn print(text: &str) {
    if !is_lost()
        && let Err(error) = try_print(text)
    {
        *FAULT.lock() = Some(error);
    }
}

/// The same, for what must not be lost.
///
/// # Errors
/// What the system says when it does not take it.
pub(crate) fn try_print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Whether output was lost: nobody sees what is written from here on.
pub(crate) fn is_lost() -> bool {
    FAULT.lock().is_some()
}

/// Whether standard output is `/dev/null`. What is closed when the process begins becomes that too.
pub(crate) fn leads_nowhere() -> bool {
    let about = io::stdout().as_fd().try_clone_to_owned().and_then(|output| File::from(output).metadata());
    let null = std::fs::metadata("/dev/null");
    about.is_ok_and(|about| about.file_type().is_char_device() && null.is_ok_and(|null| null.rdev() == about.rdev()))
}

/// The end of a command.
///
/// # Errors
/// One line: output was lost, and not because its reader closed the pipe.
pub(crate) fn finish() -> Result<(), String> {
    match &*FAULT.lock() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("standard output cannot be written to: {error}"))
        }
        _ => Ok(()),
    }
}

/// A line for a person, on standard error; a service that logs puts it there, and so waits for nobody.
pub(crate) fn tell(text: &str) {
    let text = for_terminal(text);
    if !log_writer::line(&text) {
        let _ = writeln!(io::stderr().lock(), "{text}"); // Nobody is left to be told.
    }
}

/// Shows a text without waiting for its reader. Whether somebody reads it makes no difference to what follows.
pub(crate) fn greet(text: String) {
    let Ok(output) = io::stdout().as_fd().try_clone_to_owned() else { return };
    threads::start("greeting", move || drop(File::from(output).write_all(text.as_bytes())));
}
