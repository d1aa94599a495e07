//! An engine's process: started in its own group with its device mask near to its devices and an environment of its
//! own, its output in our log, ended with its owner, even if that is killed itself.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, prlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::core::id::ReplicaId;
use crate::gpu::engine::{EngineContext, EngineError, Exit, Teardown};
use crate::gpu::process::account::{self, Account};
use crate::gpu::process::children::{OwnChild, spawn};
use crate::gpu::process::engine_group::Cgroup;
use crate::gpu::process::environment;
use crate::gpu::process::host;
use crate::gpu::process::memory_kills::MemoryKills;

/// Longest line of output that is kept, in bytes; the rest of it is dropped.
const LINE_BYTES_MAX: usize = 2048;
/// Lines that are kept to explain an exit.
const LAST_LINES: usize = 8;

/// The watcher of an engine's group: it reads from a pipe whose other end only we hold. When we are gone, however that
/// came about, it reads the end and kills the group, itself included. The system's own means (`PR_SET_PDEATHSIG`) would
/// need `unsafe`, goes by threads and not by processes, and would leave behind what the engine has started.
const WATCH: &str = "trap '' TERM HUP INT QUIT USR1 USR2 ALRM; read -r _; kill -KILL 0";

/// How long what an engine had started may take to be gone behind its SIGKILL, and the time between two looks.
const GROUP_END_TIMEOUT: Duration = Duration::from_secs(5);
const GROUP_END_PERIOD: Duration = Duration::from_millis(5);

/// How long the last lines of a process that has ended are waited for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

/// A running process and all that it started. Dropping it ends the whole group: SIGTERM, and SIGKILL when its time is
/// over.
pub(crate) struct EngineProcess {
    group: Option<Pid>,
    /// The group's number, for looking whether any of it is left.
    number: u32,
    /// The engine and its watcher; `None` once they have been left to the site.
    children: Option<(OwnChild, OwnChild)>,
    site: Teardown,
    /// How long it has to end behind SIGTERM.
    term: Duration,
    cgroup: Option<Cgroup>,
    /// How often the system had killed for want of memory where it runs, before it was started.
    kills: MemoryKills,
    /// What was found out about its end, once it is known that the system killed it for want of memory.
    killed_for: Option<&'static str>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// Readers of its output; aborted with it.
    readers: JoinSet<()>,
}

impl EngineProcess {
    /// Starts `command` for this worker.
    ///
    /// Its watcher follows it by microseconds: killed in between, we would leave an engine behind. Of the files that we
    /// have opened it is left none: they are closed when a program begins.
    ///
    /// # Errors
    /// What the system says when it cannot be started, or why it cannot run as the user that its pool names.
    pub(crate) fn start(command: &[String], context: &EngineContext) -> std::io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let process = &context.pool.process;
        let account = process.user.as_deref().map(permitted).transpose().map_err(std::io::Error::other)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.envs(environment::of(process, account.as_ref(), std::env::vars_os()));
        command.env("CUDA_VISIBLE_DEVICES", context.mask.to_string()).env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        run_as(&mut command, account.as_ref());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true); // Its own group, so that what it starts dies with it.
        let kills = MemoryKills::until_now();
        let mut child = spawn(&mut command)?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        let group = Pid::from_raw(id);
        let watcher = watch(id, account.as_ref()).inspect_err(|_| {
            let _ = group.map(|group| kill_process_group(group, Signal::KILL)); // Not without one.
        })?;
        leave_no_core(group);
        stay_near(group, &context.cpus);
        let cgroup = bound_memory(context, child.id());
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = JoinSet::new();
        if let Some(output) = child.stdout.take() {
            readers.spawn(capture(output, context.replica.clone(), last_lines.clone()));
        }
        if let Some(output) = child.stderr.take() {
            readers.spawn(capture(output, context.replica.clone(), last_lines.clone()));
        }
        let children = Some((child, watcher));
        let term = Duration::from_millis(context.pool.timeouts.term_ms);
        Ok(EngineProcess {
            group,
            number: id.unsigned_abs(),
            children,
            site: context.site.clone(),
            term,
            cgroup,
            kills,
            killed_for: None,
            last_lines,
            readers,
        })
    }

    /// The process's id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.children.as_ref().and_then(|(child, _)| child.id())
    }

    /// Waits for its end: [`EngineError::Exited`], with exit code and signal told apart and its last words.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless; the next one waits for the last words again.
    pub(crate) async fn ended(&mut self) -> EngineError {
        use std::os::unix::process::ExitStatusExt;
        let status = match &mut self.children {
            Some((child, _)) => child.wait().await,
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        self.kill_group(); // What it had started must not outlive it.
        // What it said last may still lie in the pipes; whoever keeps them open from outside the group is not waited
        // for.
        let _ = timeout(LAST_WORDS_TIMEOUT, async { while self.readers.join_next().await.is_some() {} }).await;
        let how = status.map_or(Exit::Unknown, |status| match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        });
        self.killed_for = self.killed_for.or_else(|| self.killed_for_memory(how)); // A kill explains an end once.
        if let Some(why) = self.killed_for {
            return EngineError::OutOfMemory(format!("{why} ({how})").into());
        }
        let said: Vec<String> = self.last_lines.lock().iter().cloned().collect();
        EngineError::Exited { how, said: said.join(" | ").into() }
    }

    /// Whether the system has killed it for want of memory, and whose memory that was.
    fn killed_for_memory(&self, how: Exit) -> Option<&'static str> {
        match &self.cgroup {
            Some(group) if group.ran_out() => {
                if group.is_counted_above() {
                    self.kills.explain_one(); // It explains nobody else's end.
                }
                Some("it took more host memory than process.memory_bytes_max, and was killed for it")
            }
            None if is_kill(how) && self.kills.explain_one() => Some(
                "the system killed it since the memory of this host, or of this service's control group, was used up",
            ),
            _ => None,
        }
    }
}

/// The user that a pool names, if engines may be started as it.
fn permitted(user: &str) -> Result<Account, String> {
    let account = Account::named(user)?;
    account::may_change_user().map(|()| account)
}

/// Makes a command run as this user, with its group alone.
fn run_as(command: &mut Command, account: Option<&Account>) {
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid); // Root's other groups go with it; any other service must have none.
    }
}

/// Starts the watcher of this group. It must be able to kill the group; where root can, the group cannot kill the
/// watcher.
fn watch(group: i32, account: Option<&Account>) -> std::io::Result<OwnChild> {
    let mut watcher = Command::new("/bin/sh");
    watcher.args(["-c", WATCH, "engine-watcher"]).env_clear().process_group(group).kill_on_drop(true);
    watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    run_as(&mut watcher, account.filter(|_| !rustix::process::getuid().is_root()));
    spawn(&mut watcher)
}

/// Whether a process was ended by SIGKILL: itself, or what a shell ran for us, which tells it as an exit code.
fn is_kill(how: Exit) -> bool {
    matches!(how, Exit::Signal(9) | Exit::Code(137))
}

impl EngineProcess {
    /// Ends the whole group, once: later its number may be somebody else's.
    fn kill_group(&mut self) {
        kill(self.group.take());
    }
}

fn kill(group: Option<Pid>) {
    let _ = group.map(|group| kill_process_group(group, Signal::KILL)); // Gone already: nothing is left to kill.
}

/// What is left of an engine that nobody wants any more.
struct Ending {
    child: OwnChild,
    watcher: OwnChild,
    group: Option<Pid>,
    number: u32,
    term: Duration,
    /// Whoever says goodbye must not be ended by a pipe that nobody reads.
    readers: JoinSet<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Whatever becomes of whoever waits. Behind the end of both it has no number any more.
        kill(self.group);
    }
}

/// Asks an engine to end, waits as long as it may take, and ends all that is left of its group.
async fn gone(mut left: Ending, cgroup: Option<Cgroup>) {
    if let Some(group) = left.group {
        let _ = kill_process_group(group, Signal::TERM); // Gone already: it is found to be.
        let _ = timeout(left.term, left.child.wait()).await;
    }
    kill(left.group); // What it has started too, and its watcher.
    let _ = (left.child.wait().await, left.watcher.wait().await); // However they ended, they have.
    left.group = None;
    // Not its own children: those of a large engine take a moment to give their memory back.
    let is_left = || host::members(left.number).is_some_and(|members| !members.is_empty());
    let _ = timeout(GROUP_END_TIMEOUT, async {
        while is_left() {
            sleep(GROUP_END_PERIOD).await;
        }
    })
    .await;
    left.readers.abort_all();
    drop(cgroup);
}

/// Keeps it on the CPUs that its devices are near to.
fn stay_near(process: Option<Pid>, cpus: &[u32]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| (**cpu as usize) < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu as usize));
    if let Err(error) = sched_setaffinity(process, &set) {
        tracing::debug!(%error, "an engine runs on any CPU");
    }
}

/// Puts it into a group of its own with the memory that its pool allows.
fn bound_memory(context: &EngineContext, pid: Option<u32>) -> Option<Cgroup> {
    let (most, pid) = (context.pool.process.memory_bytes_max?, pid?);
    let bounded = Cgroup::with_memory(most).and_then(|group| group.add(pid).map(|()| group));
    let replica_id = &context.replica;
    bounded.inspect_err(|error| tracing::warn!(%replica_id, %error, "memory_bytes_max is not enforced here")).ok()
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let Some((child, watcher)) = self.children.take() else { return };
        let tokio = tokio::runtime::Handle::try_current();
        let (group, cgroup) = (self.group.take(), self.cgroup.take());
        if tokio.is_err() || self.term.is_zero() {
            kill(group); // Nobody would be there to wait.
        }
        let readers = std::mem::take(&mut self.readers);
        let gone = gone(Ending { child, watcher, group, number: self.number, term: self.term, readers }, cgroup);
        match tokio {
            // At once, so that none is left as a zombie; whoever comes next waits for it.
            Ok(tokio) => {
                let reaper = tokio.spawn(gone);
                self.site.leave(async move { drop(reaper.await) });
            }
            Err(_) => self.site.leave(gone),
        }
    }
}

/// A core file of tens of gigabytes is nobody's wish. Only the limit that it may raise again by itself is lowered.
fn leave_no_core(process: Option<Pid>) {
    let maximum = getrlimit(Resource::Core).maximum;
    let lowered = prlimit(process, Resource::Core, Rlimit { current: Some(0), maximum });
    if let Err(error) = lowered {
        tracing::debug!(%error, "an engine may leave core files");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolConfig;
    use crate::core::id::{DeviceMask, PoolId};
    use crate::env::Env;

    fn context() -> EngineContext {
        let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 };
        let pool = Arc::new(PoolConfig::new("p", "sh", "m"));
        EngineContext {
            replica,
            mask: DeviceMask::default(),
            pool,
            env: Env::real(),
            site: Teardown::default(),
            cpus: Arc::default(),
            slots: 1,
        }
    }

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn is_there(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn one_that_is_dropped_is_gone_before_the_site_is_clear() {
        let context = context();
        let mut process = EngineProcess::start(&shell("exec sleep 1000"), &context).expect("starts");
        let (engine, watcher) = process.children.as_mut().expect("they run");
        let pids = [engine.id(), watcher.id()].map(|pid| pid.expect("it runs"));
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", pids[0])).expect("it is there");
        let core = limits.lines().find(|line| line.contains("core file")).expect("it has one");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "no core file: {core}");
        drop(process);
        assert!(pids.into_iter().all(is_there), "killed, and nobody has looked yet");
        context.site.until_clear(Duration::from_secs(10)).await;
        assert!(!pids.into_iter().any(is_there), "nothing of them is left, not even a zombie");
        context.site.leave(std::future::pending());
        context.site.until_clear(Duration::from_millis(1)).await; // Whatever never ends is not waited for for ever.
    }

    #[tokio::test]
    async fn its_end_is_told_exactly_and_with_its_last_words() {
        let cases = [
            ("echo one; echo two >&2; exit 42", Exit::Code(42)),
            ("echo one; echo two; kill -SEGV $$", Exit::Signal(11)),
        ];
        for (script, want) in cases {
            let mut process = EngineProcess::start(&shell(script), &context()).expect("starts");
            let EngineError::Exited { how, said } = process.ended().await else { panic!("it has ended") };
            assert_eq!(how, want, "{script}");
            assert!(said.contains("one") && said.contains("two"), "{script}: {said:?}");
        }
        assert!(EngineProcess::start(&["/nowhere/engine".to_owned()], &context()).is_err());
    }

    #[tokio::test]
    async fn one_has_the_environment_that_its_pool_says_and_three_open_files() {
        let mut context = context();
        let mut pool = (*context.pool).clone();
        pool.process.env = [("ITS_OWN".to_owned(), "value".to_owned())].into();
        context.pool = Arc::new(pool);
        let script = "env | cut -d= -f1 | sort | tr '\\n' ' '; echo; ls /proc/$$/fd; exit 1";
        let mut process = EngineProcess::start(&shell(script), &context).expect("starts");
        let EngineError::Exited { said, .. } = process.ended().await else { panic!("it has ended") };
        let words: Vec<&str> = said.split_whitespace().collect();
        for name in ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "ITS_OWN", "PATH"] {
            assert!(words.contains(&name), "{name} is not among {said}");
        }
        assert!(!words.iter().any(|word| word.starts_with("CARGO_MANIFEST")), "what cargo tells us is ours: {said}");
        let open = words.iter().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
        let ours = std::fs::read_dir("/proc/self/fdinfo").expect("our open files");
        let left =
            ours.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|number| is_left_open(number));
        let mut wanted: Vec<String> = ["0", "1", "2"].map(str::to_owned).into_iter().chain(left).collect();
        wanted.sort();
        wanted.dedup();
        let mut open: Vec<String> = open.map(ToString::to_string).collect();
        open.sort();
        assert_eq!(open, wanted, "{said}");
    }

    /// Whether whoever started this process left it this file for all that it starts.
    fn is_left_open(number: &str) -> bool {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = about.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        flags.is_some_and(|flags| flags & 0o2_000_000 == 0) // Not to be closed when a program begins.
    }

    #[tokio::test]
    async fn one_cannot_run_as_a_user_that_is_not_there() {
        let mut context = context();
        let mut pool = (*context.pool).clone();
        pool.process.user = Some("no-such-user-here".into());
        context.pool = Arc::new(pool);
        let error = EngineProcess::start(&shell("exit 0"), &context).err().expect("it is not started");
        assert!(error.to_string().contains("no-such-user-here"), "{error}");
    }

    /// The pid that a script writes to standard output, once it has.
    async fn told_pid(process: &EngineProcess) -> u32 {
        loop {
            let told = process.last_lines.lock().iter().find_map(|line| line.parse().ok());
            match told {
                Some(pid) => return pid,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    #[tokio::test]
    async fn one_that_ignores_sigterm_is_killed_when_its_time_is_over_and_what_it_forked_with_it() {
        let mut context = context();
        let mut pool = (*context.pool).clone();
        pool.timeouts.term_ms = 300;
        context.pool = Arc::new(pool);
        // Its child is one of a child that has ended: nobody's but the group's.
        let script = "trap '' TERM; (sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.05; done' &) ; while :; do sleep 0.05; done";
        let process = EngineProcess::start(&shell(script), &context).expect("starts");
        let (engine, orphan) = (process.id().expect("it runs"), told_pid(&process).await);
        let begin = context.env.now();
        drop(process);
        context.site.until_clear(Duration::from_secs(10)).await;
        let took = context.env.now().since(begin);
        assert!(took >= Duration::from_millis(300), "it has its time: {took:?}");
        assert!(!is_there(engine) && !is_alive(orphan), "neither is left");
    }

    #[tokio::test]
    async fn one_that_takes_sigterm_ends_by_itself_and_at_once() {
        let context = context();
        let script = "trap 'exit 0' TERM; echo $$; while :; do sleep 0.01; done";
        let process = EngineProcess::start(&shell(script), &context).expect("starts");
        told_pid(&process).await;
        let begin = context.env.now();
        drop(process);
        context.site.until_clear(Duration::from_secs(10)).await;
        assert!(context.env.now().since(begin) < Duration::from_secs(2), "it did not have to be killed");
    }

    /// An orphan may be a zombie until somebody else reaps it.
    fn is_alive(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    #[tokio::test]
    async fn one_that_takes_more_memory_than_it_may_ends_and_that_is_said() {
        if Cgroup::with_memory(64 << 20).is_err() {
            return; // This system does not let us make control groups, and nothing is shown.
        }
        let mut context = context();
        let mut pool = (*context.pool).clone();
        pool.process.memory_bytes_max = Some(32 << 20);
        context.pool = Arc::new(pool);
        let script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
        let mut process = EngineProcess::start(&shell(script), &context).expect("starts");
        let end = timeout(Duration::from_secs(20), process.ended()).await.expect("it ends");
        assert!(matches!(&end, EngineError::OutOfMemory(text) if text.contains("memory_bytes_max")), "{end:?}");
    }

    #[tokio::test]
    async fn one_runs_on_the_cpus_that_it_is_told() {
        let mut context = context();
        context.cpus = [0].into();
        let process = EngineProcess::start(&shell("exec sleep 1000"), &context).expect("starts");
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id().expect("it runs"))).unwrap();
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(cpus.trim(), "0");
    }
}
