//! The process as a guest of its host: a log that nobody reads, output that is lost, signals that come twice.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{file, orchestratord, write};
use crate::support::{exchange, kill};

/// Longest wait for what another process does.
const WAIT: Duration = Duration::from_secs(60);

/// A service that a shell has started, with a standard error of the test's choice.
pub struct Guest {
    pub child: Child,
    pub port: u16,
}

impl Guest {
    /// Runs `script`, in which `"$@"` is the service's command line.
    pub fn start(script: &str, stderr: Stdio, arguments: &[&str]) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", crate::support::orchestratord(), "serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let listening = lines.find(|line| line.starts_with("listening")).expect("the service greets");
        while lines.next().is_some_and(|line| !line.contains("curl")) {}
        let port = listening.rsplit(':').next().unwrap().parse().unwrap();
        Guest { child, port }
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = exchange(self.port, "GET", path, &[], b"");
        (status, body)
    }

    /// Runs a task to its end; returns whether it had all its tokens.
    pub fn task(&self, model: &str, tokens: usize) -> bool {
        let body = format!("{{\"prompt\":\"x\",\"model_ref\":\"{model}\",\"max_tokens\":{tokens}}}");
        let accept = [("accept", "text/event-stream")];
        let (status, _, events) = exchange(self.port, "POST", "/v1/tasks", &accept, body.as_bytes());
        status == 200 && is_whole(&events, tokens)
    }

    /// Begins a task and returns its stream behind the first token.
    fn begin(&self, model: &str, tokens: usize) -> (TcpStream, String) {
        let body = format!("{{\"prompt\":\"x\",\"model_ref\":\"{model}\",\"max_tokens\":{tokens}}}");
        let head = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: text/event-stream\r\n";
        let head = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all((head + &body).as_bytes()).unwrap();
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        while !seen.contains("event: token") {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "{seen}");
            seen += &String::from_utf8_lossy(&piece[..count]);
        }
        (stream, seen)
    }

    pub fn terminate(&self) {
        kill(self.child.id(), "-TERM");
    }

    /// Waits for its end, and fails when it takes too long; returns the exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < WAIT, "it does not end");
        }
    }

    /// How often the first worker of a pool has died of this cause.
    pub fn deaths(&self, pool: &str, cause: &str) -> u64 {
        let pools: serde_json::Value = serde_json::from_str(&self.get("/v1/pools").1).unwrap();
        let pool = pools.as_array().unwrap().iter().find(|one| one["pool_id"] == pool).unwrap();
        pool["replicas"][0]["deaths"][cause].as_u64().unwrap_or(0)
    }

    /// A counter without labels, as `/metrics` has it.
    fn counter(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("{} "));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_whole(events: &str, tokens: usize) -> bool {
    events.matches("event: token").count() == tokens && events.matches("event: end").count() == 1
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < WAIT, "not in time: {what}");
    }
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A slow pool, a quick one, and with `failing` one whose engine fails again and again.
pub fn pools(name: &str, failing: bool) -> String {
    let mut text = "pools:
  - {id: slow, engine: sim, model: slow, ctx: 4096, slots: 2, sim: {first_token_us: 0, token_us: 20000, preload_us: 0}}
  - {id: quick, engine: sim, model: quick, ctx: 4096, slots: 2, replicas: [{devices: [1]}],
     sim: {first_token_us: 0, token_us: 0, preload_us: 0}}
"
    .to_owned();
    if failing {
        text += "  - {id: broken, engine: llamacpp, model: broken, replicas: [{devices: [2]}],
     restart: {intensity: 1000, backoff_ms: 20, backoff_max_ms: 20},
     command: [sh, -c, 'echo no luck >&2; exit 3', engine, --port, '{port}']}
";
    }
    write(name, &text)
}

#[test]
fn a_full_standard_error_stops_nothing_and_is_counted() {
    let config = pools("guest-full.yaml", true);
    let mut guest = Guest::start("exec \"$@\"", full(), &["--config", &config]);
    until("lines are lost", || guest.counter("log_lines_lost_total") >= 10);
    until("the engine fails again and again", || guest.deaths("broken", "exit_code") >= 3);
    assert_eq!(guest.get("/healthz").0, 200);
    until("the quick pool runs tasks", || guest.task("quick", 3));
    let (mut stream, mut seen) = guest.begin("slow", 30);
    guest.terminate();
    stream.read_to_string(&mut seen).unwrap();
    assert!(is_whole(&seen, 30), "what runs is drained: {seen}");
    assert_eq!(guest.ended(), Some(0));
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let config = pools("guest-gone.yaml", false);
    let mut guest = Guest::start("exec \"$@\"", Stdio::piped(), &["--config", &config]);
    drop(guest.child.stderr.take());
    until("the quick pool runs tasks", || guest.task("quick", 3));
    for _ in 0..20 {
        assert!(guest.task("quick", 3));
    }
    until("lines are lost", || guest.counter("log_lines_lost_total") >= 20);
    assert_eq!(guest.get("/healthz").0, 200);
    guest.terminate();
    assert_eq!(guest.ended(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_tasks_nor_the_end() {
    let config = pools("guest-unread.yaml", false);
    let script = "export RUST_LOG=info,orchestrator_core::task=debug; exec \"$@\"";
    let mut guest = Guest::start(script, Stdio::piped(), &["--config", &config]);
    until("the quick pool runs tasks", || guest.task("quick", 1));
    // Three lines each; a pipe takes 64 KiB.
    for _ in 0..400 {
        assert!(guest.task("quick", 1));
    }
    assert_eq!(guest.get("/healthz").0, 200);
    let begin = Instant::now();
    guest.terminate();
    assert_eq!(guest.ended(), Some(0));
    let took = begin.elapsed();
    println!("it ended {took:?} behind SIGTERM with a log that nobody reads");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn lines_that_wait_for_their_reader_are_all_there_at_last() {
    let config = pools("guest-late.yaml", false);
    let script = "export RUST_LOG=info,orchestrator_core::task=debug; exec \"$@\"";
    let mut guest = Guest::start(script, Stdio::piped(), &["--config", &config]);
    until("the quick pool runs tasks", || guest.task("quick", 1));
    for _ in 0..400 {
        assert!(guest.task("quick", 1));
    }
    let lost = guest.counter("log_lines_lost_total");
    let log = BufReader::new(guest.child.stderr.take().unwrap());
    guest.terminate();
    let lines: Vec<String> = log.lines().map(Result::unwrap).collect();
    assert_eq!(guest.ended(), Some(0));
    let ended = lines.iter().filter(|line| line.contains("task ended")).count();
    println!("{} lines, {ended} ends of tasks, {lost} lost", lines.len());
    assert!(lost == 0 && ended >= 401 && lines.len() >= 1_000);
    assert!(lines.iter().any(|line| line.contains("drained and stopped")));
}

#[test]
fn a_greeting_that_cannot_be_shown_is_no_reason_to_end() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let child = Command::new(crate::support::orchestratord())
        .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
        .stdout(full())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut guest = Guest { child, port };
    until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(guest.get("/healthz").0, 200);
    guest.terminate();
    assert_eq!(guest.ended(), Some(0));
}

/// Runs `script`, in which `"$@"` is `orchestratord` with these arguments; returns exit code, output and standard
/// error.
pub fn shell(script: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", crate::support::orchestratord()]).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn output_that_is_lost_is_an_error_and_a_reader_that_has_enough_is_none() {
    let valid = write("guest-valid.yaml", "pools: [{id: a, engine: sim, model: m}]\nhttp: {listen: '127.0.0.1:0'}\n");
    let commands: [&[&str]; 8] = [
        &["schema"],
        &["man"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
        &["check", &valid],
        &["doctor", "--config", &valid],
        &["key", "list", "--file", "/nowhere/keys.json"],
    ];
    for command in commands {
        let (code, _, err) = shell("\"$@\" > /dev/full", command);
        assert_eq!(code, Some(1), "{command:?}: {err}");
        assert!(
            err.contains("standard output cannot be written to") && !err.contains("panicked"),
            "{command:?}: {err}"
        );
        let (code, out, err) = shell("\"$@\" | head -c 1 | wc -c", command);
        assert_eq!((code, out.trim()), (Some(0), "1"), "{command:?}: {err}");
        assert!(!err.contains("panicked"), "{command:?}: {err}");
    }
}

#[test]
fn a_key_that_nobody_has_seen_is_taken_back() {
    let path = file("guest-keys.json");
    crate::support::owners_alone(path.parent().unwrap());
    let _ = std::fs::remove_file(&path); // Of an earlier run.
    let keys = path.display().to_string();
    let new = ["key", "new", "--file", &keys, "--client", "alice", "--weight", "7"];
    let lost = ["\"$@\" > /dev/full", "\"$@\" > /dev/null", "\"$@\" >&-"];
    for script in lost {
        let (code, _, err) = shell(script, &new);
        assert!(code == Some(1) && err.contains("standard output"), "{script}: {err}");
        assert!(!path.exists(), "{script}: it was not there before");
    }
    assert!(orchestratord(&["key", "new", "--file", &keys, "--client", "bob"]).0);
    let before = std::fs::read_to_string(&path).unwrap();
    for script in lost {
        let (code, _, err) = shell(script, &new);
        assert!(code == Some(1) && err.contains("standard output"), "{script}: {err}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before, "{script}");
    }
}

#[test]
fn keys_behind_a_symbolic_link_are_changed_where_they_are() {
    use std::os::unix::fs::PermissionsExt;
    let (link, target) = (file("guest-link.json"), file("guest-target.json"));
    crate::support::owners_alone(link.parent().unwrap());
    for path in [&link, &target] {
        let _ = std::fs::remove_file(path); // Of an earlier run.
    }
    let name = target.display().to_string();
    assert!(orchestratord(&["key", "new", "--file", &name, "--client", "bob"]).0);
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("guest-target.json", &link).unwrap();
    let name = link.display().to_string();
    let (ok, key, err) = orchestratord(&["key", "new", "--file", &name, "--client", "alice"]);
    assert!(ok && link.is_symlink() && !target.is_symlink(), "{err}");
    let text = std::fs::read_to_string(&target).unwrap();
    assert!(text.contains("bob") && text.contains("alice"), "{text}");
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o640);
    let id = key.trim().split('_').nth(1).unwrap();
    assert!(orchestratord(&["key", "revoke", id, "--file", &name]).0 && link.is_symlink());
    assert!(std::fs::read_to_string(&target).unwrap().contains("revoked_at"));
}

#[test]
fn a_signal_that_comes_twice_at_once_drains_and_a_later_one_ends() {
    let config = pools("guest-signals.yaml", false);
    let mut guest = Guest::start("exec \"$@\"", Stdio::null(), &["--config", &config]);
    let (mut stream, mut seen) = guest.begin("slow", 40);
    guest.terminate();
    guest.terminate();
    kill(guest.child.id(), "-INT");
    stream.read_to_string(&mut seen).unwrap();
    assert!(is_whole(&seen, 40), "it is drained: {seen}");
    assert_eq!(guest.ended(), Some(0));
    let mut guest = Guest::start("exec \"$@\"", Stdio::piped(), &["--config", &config]);
    let (mut stream, mut seen) = guest.begin("slow", 2_000);
    let begin = Instant::now();
    guest.terminate();
    let mut piece = [0; 4096];
    while begin.elapsed() < Duration::from_millis(1_500) {
        let count = stream.read(&mut piece).unwrap();
        seen += &String::from_utf8_lossy(&piece[..count]);
        assert!(count > 0, "{seen}");
    }
    guest.terminate();
    assert_eq!(guest.ended(), Some(1));
    let mut log = String::new();
    guest.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("ended at once by a second signal"), "{log}");
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let config = pools("guest-nohup.yaml", false);
    let mut guest = Guest::start("trap '' HUP INT; exec \"$@\"", Stdio::null(), &["--config", &config]);
    until("the quick pool runs tasks", || guest.task("quick", 1));
    let generation = |guest: &Guest| {
        let config: serde_json::Value = serde_json::from_str(&guest.get("/v1/config").1).unwrap();
        config["generation"].as_u64()
    };
    assert_eq!(generation(&guest), Some(1));
    write("guest-nohup.yaml", "pools: [{id: other, engine: sim, model: quick}]\n");
    kill(guest.child.id(), "-HUP");
    kill(guest.child.id(), "-INT");
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.child.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 3, 3, "{ignored}");
    for _ in 0..20 {
        assert!(guest.task("quick", 1));
    }
    assert_eq!(generation(&guest), Some(1), "SIGHUP was for nobody");
    guest.terminate();
    assert_eq!(guest.ended(), Some(0));
}
