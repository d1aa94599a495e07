//! The way of log lines to standard error: a bounded queue and a thread of its own, so that whoever logs never waits.
//!
//! A line for which there is no room, or which the system does not take, is dropped and counted; when lines get
//! through again, one says how many were dropped. So neither a reader that is gone nor one that reads slowly stops
//! the service. The thread writes to a descriptor of its own: while it waits for a reader it holds no lock that
//! anybody else needs.
//!
//! A crate for this would bring a library for dates, and at its end would print to standard output, which may be
//! stuck as well.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::json;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::gpu::threads;
use crate::service::cli::plain_text::one_line;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Most lines that wait to be written, and most bytes of them together.
const LINES_MAX: usize = 8_192;
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the end of the process waits for lines that have not been written yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const LOST: &str = "lines of the log were lost: they came faster than they were read, or could not be written";

/// The log of this process; a second runtime in it keeps the first one's.
static LOG: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Lines that wait.
#[derive(Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    /// Of all lines that have not been written, the one that is being written included.
    bytes: usize,
    is_writing: bool,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.lines.is_empty() && !self.is_writing
    }
}

/// Takes lines without waiting. Each `write` is one whole line.
#[derive(Default)]
pub(crate) struct LogWriter {
    queue: Mutex<Queue>,
    /// A line has come.
    filled: Condvar,
    /// No line waits any more, and none is being written.
    idle: Condvar,
    lost: AtomicU64,
    /// Lines have colours, which are for a terminal.
    has_colours: AtomicBool,
    /// Somebody has waited for the lines in vain; nobody does again.
    has_given_up: AtomicBool,
}

impl LogWriter {
    fn push(&self, line: &[u8]) {
        let line: Box<[u8]> = line.into();
        let mut queue = self.queue.lock();
        if queue.lines.len() >= LINES_MAX || queue.bytes + line.len() > BYTES_MAX {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.filled.notify_one();
    }

    /// The next line; waits for it.
    fn next(&self) -> Box<[u8]> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.is_writing = true;
                return line;
            }
            self.filled.wait(&mut queue);
        }
    }

    /// What [`LogWriter::next`] returned has been written, or cannot be.
    fn finish(&self, line: &[u8]) {
        let mut queue = self.queue.lock();
        queue.bytes -= line.len();
        queue.is_writing = false;
        if queue.is_idle() {
            self.idle.notify_all();
        }
    }

    /// Writes one line, and before it how many were lost since `told`, the number that has been told.
    fn write_next(&self, sink: &mut Sink, told: &mut u64) {
        let line = self.next();
        let lost = self.lost.load(Relaxed);
        if lost > *told && sink.put(&notice(sink.format, LOST, ("lost", lost - *told))) {
            *told = lost;
        }
        if !sink.put(&line) {
            self.lost.fetch_add(1, Relaxed);
        }
        self.finish(&line);
    }

    /// Waits until every line has been written, but not longer than `limit`.
    fn until_written(&self, limit: Duration) {
        if self.has_given_up.load(Relaxed) {
            return;
        }
        let mut queue = self.queue.lock();
        let waited = self.idle.wait_while_for(&mut queue, |queue| !queue.is_idle(), limit);
        self.has_given_up.store(waited.timed_out(), Relaxed);
    }
}

impl Write for &LogWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        // Lines of JSON are whole anyway; in those for people, words from outside could end one and begin another.
        let has_colours = self.has_colours.load(Relaxed);
        self.push(one_line(&String::from_utf8_lossy(event), has_colours).as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where lines go.
struct Sink {
    output: Box<dyn Write + Send>,
    format: LogFormat,
    /// The last line was written in part only.
    is_torn: bool,
}

impl Sink {
    /// Writes a line whole; returns whether it could be.
    fn put(&mut self, line: &[u8]) -> bool {
        (!self.is_torn || self.write(b"\n")) && self.write(line)
    }

    fn write(&mut self, mut rest: &[u8]) -> bool {
        while !rest.is_empty() {
            match self.output.write(rest) {
                Ok(count @ 1..) => {
                    rest = &rest[count..];
                    self.is_torn = !rest.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }
}

/// A line of the log itself, which says how many others there are not.
pub(crate) fn notice(format: LogFormat, message: &str, (field, count): (&str, u64)) -> Vec<u8> {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time)); // A line without its time is better than none.
    let line = match format {
        LogFormat::Human => format!("{time}  WARN log: {message} {field}={count}"),
        LogFormat::Json => {
            json!({ "timestamp": time, "level": "WARN", "target": "log", "message": message, (field): count })
                .to_string()
        }
    };
    (line + "\n").into_bytes()
}

/// Begins to write; what is logged from now on goes through it.
///
/// # Errors
/// Standard error cannot be had a second time, or no thread is to be had.
pub(crate) fn start(format: LogFormat) -> io::Result<Arc<LogWriter>> {
    if let Some(log) = LOG.get() {
        return Ok(log.clone());
    }
    let output = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let log = Arc::new(LogWriter::default());
    let (writer, mut told) = (log.clone(), 0);
    let mut sink = Sink { output: Box::new(output), format, is_torn: false };
    let is_started = threads::start("log", move || {
        loop {
            writer.write_next(&mut sink, &mut told);
        }
    });
    if !is_started {
        return Err(io::Error::other("no thread is to be had for the log"));
    }
    Ok(LOG.get_or_init(|| log).clone())
}

impl LogWriter {
    /// Lines have colours from now on, or none.
    pub(crate) fn set_colours(&self, are_there: bool) {
        self.has_colours.store(are_there, Relaxed);
    }
}

/// Adds a line as it is; returns whether there is a log.
pub(crate) fn line(text: &str) -> bool {
    LOG.get().inspect(|log| log.push(format!("{text}\n").as_bytes())).is_some()
}

/// Lines that were lost since the process began.
pub(crate) fn lost() -> u64 {
    LOG.get().map_or(0, |log| log.lost.load(Relaxed))
}

/// Waits for the log at its end, but not for long: nobody may read it any more.
pub(crate) struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            log.until_written(FLUSH_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is given, and fails when it is told to: behind so many bytes.
    #[derive(Clone, Default)]
    struct Output {
        kept: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<Option<usize>>>,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock();
            let count = room.map_or(bytes.len(), |room| room.min(bytes.len()));
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            if let Some(room) = room.as_mut() {
                *room -= count;
            }
            self.kept.lock().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sink(output: &Output, format: LogFormat) -> Sink {
        Sink { output: Box::new(output.clone()), format, is_torn: false }
    }

    #[test]
    fn lines_come_through_in_their_order_and_whole() {
        let (log, output, mut told) = (LogWriter::default(), Output::default(), 0);
        let mut sink = sink(&output, LogFormat::Human);
        for line in ["one\n", "two\n"] {
            assert_eq!((&log).write(line.as_bytes()).unwrap(), line.len());
        }
        log.write_next(&mut sink, &mut told);
        log.write_next(&mut sink, &mut told);
        assert_eq!(*output.kept.lock(), b"one\ntwo\n");
        log.until_written(Duration::ZERO);
        assert!(!log.has_given_up.load(Relaxed), "nothing waits");
    }

    #[test]
    fn a_queue_that_is_full_drops_and_counts_and_says_so_later() {
        let (log, output, mut told) = (LogWriter::default(), Output::default(), 0);
        let mut sink = sink(&output, LogFormat::Json);
        for _ in 0..LINES_MAX + 5 {
            log.push(b"x\n");
        }
        assert_eq!(log.lost.load(Relaxed), 5);
        log.write_next(&mut sink, &mut told);
        log.push(&vec![b'y'; BYTES_MAX]); // Too many bytes, though there is room for a line.
        log.write_next(&mut sink, &mut told);
        let text = String::from_utf8(output.kept.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[1], lines[3]), (4, "x", "x"), "{text}");
        assert!(lines[0].contains("\"lost\":5") && lines[2].contains("\"lost\":1"), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(lines[0]).unwrap()["timestamp"].is_string());
    }

    #[test]
    fn an_output_that_fails_loses_lines_and_never_glues_two_together() {
        let (log, output, mut told) = (LogWriter::default(), Output::default(), 0);
        let mut sink = sink(&output, LogFormat::Human);
        *output.room.lock() = Some(3);
        for _ in 0..3 {
            log.push(b"hello\n");
            log.write_next(&mut sink, &mut told);
        }
        assert_eq!((log.lost.load(Relaxed), told), (3, 0));
        *output.room.lock() = None;
        log.push(b"again\n");
        log.write_next(&mut sink, &mut told);
        let text = String::from_utf8(output.kept.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2], told), (3, "hel", "again", 3), "{text}");
        assert!(lines[1].contains("lost=3"), "{text}");
    }

    #[test]
    fn the_end_waits_once_for_a_log_that_nobody_reads() {
        let log = LogWriter::default();
        log.push(b"x\n");
        log.until_written(Duration::from_millis(1));
        assert!(log.has_given_up.load(Relaxed));
        log.until_written(Duration::from_secs(3_600)); // At once.
    }
}
