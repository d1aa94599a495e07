//! An engine's process: started in its own group with its device mask, its output in our log, killed with its owner, even if that is
//! killed itself.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::core::id::{DeviceMask, ReplicaId};
use crate::gpu::engine::{EngineError, Exit};

/// Longest line of output that is kept, in bytes; the rest of it is dropped.
const LINE_BYTES_MAX: usize = 2048;
/// Lines that are kept to explain an exit.
const LAST_LINES: usize = 8;

/// What becomes the engine: a shell that leaves a watcher behind in the engine's group and then turns into the engine, so that its
/// process, exit code and signals are the engine's own. The watcher reads from a pipe whose other end only we hold; when we are gone,
/// however that came about, it reads the end and kills the group, itself included. The system's own means (`PR_SET_PDEATHSIG`) would
/// need `unsafe`, goes by threads and not by processes, and would leave behind what the engine has started. Core files of tens of
/// gigabytes are nobody's wish.
const LAUNCH: &str =
    "ulimit -c 0; exec 3<&0; { read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 & exec \"$@\" </dev/null 3<&-";

/// How long the last lines of a process that has ended are waited for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

/// A running process and all that it started. Dropping it kills the whole group.
pub(crate) struct EngineProcess {
    group: Option<Pid>,
    child: Child,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// The pipe whose end kills the group. Closed with us, and never written to.
    _leash: Option<ChildStdin>,
    /// Readers of its output; aborted with it.
    readers: JoinSet<()>,
}

impl EngineProcess {
    /// Starts `command` for this worker.
    ///
    /// # Errors
    /// What the system says when it cannot be started.
    pub(crate) fn start(command: &[String], replica: &ReplicaId, mask: &DeviceMask) -> std::io::Result<Self> {
        let program = command.first().ok_or(std::io::ErrorKind::InvalidInput)?;
        can_be_run(program)?;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", LAUNCH, "engine"]).args(command);
        let mut command = shell;
        command.env("CUDA_VISIBLE_DEVICES", mask.to_string()).env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true); // Its own group, so that what it starts dies with it.
        let mut child = command.spawn()?;
        let leash = child.stdin.take();
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = JoinSet::new();
        if let Some(output) = child.stdout.take() {
            readers.spawn(capture(output, replica.clone(), last_lines.clone()));
        }
        if let Some(output) = child.stderr.take() {
            readers.spawn(capture(output, replica.clone(), last_lines.clone()));
        }
        Ok(EngineProcess { group, child, last_lines, readers, _leash: leash })
    }

    /// The process's id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end: [`EngineError::Exited`], with exit code and signal told apart and its last words.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless; the next one waits for the last words again.
    pub(crate) async fn ended(&mut self) -> EngineError {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await;
        self.kill_group(); // What it had started must not outlive it.
        // What it said last may still lie in the pipes; whoever keeps them open from outside the group is not waited for.
        let _ = timeout(LAST_WORDS_TIMEOUT, async { while self.readers.join_next().await.is_some() {} }).await;
        let how = status.map_or(Exit::Unknown, |status| match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        });
        let said: Vec<String> = self.last_lines.lock().iter().cloned().collect();
        EngineError::Exited { how, said: said.join(" | ") }
    }
}

impl EngineProcess {
    /// Ends the whole group, once: later its number may be somebody else's.
    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            let _ = kill_process_group(group, Signal::KILL); // Gone already: nothing is left to kill.
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// Whether there is such a program: the shell would only say so in its output.
fn can_be_run(program: &str) -> std::io::Result<()> {
    let is_there = |path: &Path| path.is_file();
    let found = match program.contains('/') {
        true => is_there(Path::new(program)),
        false => std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| is_there(&folder.join(program)))),
    };
    if found { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
}

/// Copies output into our log line by line, bounded and printable.
async fn capture(mut output: impl AsyncRead + Unpin, replica: ReplicaId, last: Arc<Mutex<VecDeque<String>>>) {
    let (mut line, mut chunk) = (Vec::new(), vec![0; 4096]);
    while let Ok(read @ 1..) = output.read(&mut chunk).await {
        for byte in &chunk[..read] {
            match byte {
                b'\n' => keep(&mut line, &replica, &last),
                _ if line.len() < LINE_BYTES_MAX => line.push(*byte),
                _ => {}
            }
        }
    }
    keep(&mut line, &replica, &last);
}

fn keep(line: &mut Vec<u8>, replica: &ReplicaId, last: &Mutex<VecDeque<String>>) {
    let text = String::from_utf8_lossy(line);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    line.clear();
    if text.is_empty() {
        return;
    }
    tracing::debug!(target: "engine", replica_id = %replica, "{text}");
    let mut last = last.lock();
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(text);
}
