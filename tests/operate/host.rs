//! What the host allows the process: the table of processes, a control group's memory, files.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::guest::{Guest, pools, shell, until};
use super::write;

/// Processes with this parent, and whether each is a zombie.
fn children(parent: u32) -> Vec<(u32, bool)> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let child = |id: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
        (fields.get(1)?.parse::<u32>() == Ok(parent)).then_some((id, fields[0] == "Z"))
    };
    processes.filter_map(child).collect()
}

#[test]
fn process_one_reaps_what_its_engines_leave_behind() {
    let isolate = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new("unshare").args(isolate).arg("true").status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: this system lets us make no space of processes");
        return;
    }
    // Each engine leaves a helper in its group and two outside of it.
    let text = "pools:
  - {id: quick, engine: sim, model: quick, sim: {first_token_us: 0, token_us: 0, preload_us: 0}}
  - {id: broken, engine: llamacpp, model: broken, replicas: [{devices: [2]}],
     restart: {intensity: 1000, backoff_ms: 20, backoff_max_ms: 20},
     command: [sh, -c, '(sleep 100 &); (setsid sleep 0.01 &); (setsid sleep 0.1 &); exit 3', engine, --port, '{port}']}
";
    let script = format!("exec unshare {} \"$@\"", isolate.join(" "));
    let config = write("guest-orphans.yaml", text);
    let guest = Guest::start(&script, Stdio::null(), &["--config", &config]);
    let service = children(guest.child.id()).first().expect("the service").0;
    let deaths = || guest.deaths("broken", "exit_code");
    let mut most = 0;
    until("thirty engines have come and gone", || {
        let zombies = children(service).iter().filter(|(_, is_zombie)| *is_zombie).count();
        most = most.max(zombies);
        deaths() >= 30
    });
    until("no zombie is left for long", || children(service).iter().filter(|child| child.1).count() <= 3);
    println!("{} engines, at most {most} zombies at once", deaths());
    assert!(most <= 12, "{most}: each is reaped within a moment");
    assert!(guest.task("quick", 3));
}

/// A control group with a bound on memory, which goes with it.
struct Group(PathBuf);

impl Group {
    /// `None` where this system lets us make none.
    fn with_memory(name: &str, bytes: u64) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = |wanted: &str| {
            let fields = groups.lines().map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>());
            let mut paths = fields.filter(|fields| fields[0] == wanted).map(|fields| fields[1].trim_start_matches('/'));
            paths.next().unwrap_or_default().to_owned()
        };
        let [one, two] = [("memory", own("memory")), ("", own(""))]
            .map(|(controller, path)| Path::new("/sys/fs/cgroup").join(controller).join(path));
        for (parent, limit) in [(one, "memory.limit_in_bytes"), (two, "memory.max")] {
            let group = Group(parent.join(format!("{name}-{}", std::process::id())));
            let is_bound = std::fs::create_dir(&group.0).is_ok()
                && group.0.join(limit).exists()
                && std::fs::write(group.0.join(limit), bytes.to_string()).is_ok();
            if is_bound {
                return Some(group);
            }
        }
        println!("SKIPPED: this system lets us make no control group");
        None
    }

    /// What a shell says to run the rest in it.
    fn script(&self) -> String {
        format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display())
    }

    /// Whether a process is in it.
    fn has(&self, pid: u32) -> bool {
        let members = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| line == pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begin = Instant::now();
        // What was in it takes a moment to be gone.
        while std::fs::remove_dir(&self.0).is_err() && self.0.exists() && begin.elapsed() < Duration::from_secs(5) {}
    }
}

#[test]
fn the_bound_of_a_control_group_is_the_host_memory_there_is() {
    let Some(group) = Group::with_memory("oc-guest-room", 256 << 20) else { return };
    let pool = |bytes: u64| {
        let restart = "restart: {intensity: 1000, backoff_ms: 20, backoff_max_ms: 20}";
        let pool = format!("{{id: a, engine: sim, model: m, memory: {{host_bytes: {bytes}}}, {restart}}}");
        format!("pools: [{pool}]\nhttp: {{listen: '127.0.0.1:0'}}\n")
    };
    let large = write("guest-room-large.yaml", &pool(1 << 30));
    let (code, out, _) = shell(&group.script(), &["doctor", "--config", &large]);
    assert_eq!(code, Some(1), "{out}");
    let wrong = out.lines().find(|line| line.starts_with("WRONG")).unwrap_or_else(|| panic!("{out}"));
    assert!(wrong.contains("pool a: memory.host_bytes: the control group /") && wrong.contains("268435456"), "{wrong}");
    let small = write("guest-room-small.yaml", &pool(64 << 20));
    let (code, out, _) = shell(&group.script(), &["doctor", "--config", &small]);
    assert!(code == Some(0) && out.contains("67108864 bytes of host memory"), "{out}");
    let guest = Guest::start(&group.script(), Stdio::null(), &["--config", &large]);
    assert!(group.has(guest.child.id()));
    until("the load says who has too little", || {
        let pools = guest.get("/v1/pools").1;
        pools.contains("\"out_of_memory\"")
            && pools.contains("the control group /")
            && pools.contains("free of 268435456")
    });
}

#[test]
fn an_engine_that_the_system_kills_for_want_of_memory_is_said_so() {
    let Some(group) = Group::with_memory("oc-guest-kill", 192 << 20) else { return };
    let text = "pools:
  - {id: greedy, engine: llamacpp, model: greedy, restart: {intensity: 1000, backoff_ms: 500, backoff_max_ms: 500},
     command: [sh, -c, 'x=$(head -c 400000000 /dev/zero | tr \"\\0\" x); exit 0', engine, --port, '{port}']}
  - {id: killed, engine: llamacpp, model: killed, replicas: [{devices: [1]}],
     restart: {intensity: 1000, backoff_ms: 500, backoff_max_ms: 500},
     command: [sh, -c, 'kill -KILL $$', engine, --port, '{port}']}
";
    let config = write("guest-kill.yaml", text);
    let guest = Guest::start(&group.script(), Stdio::null(), &["--config", &config]);
    assert!(group.has(guest.child.id()));
    until("both have died, each of its own cause", || {
        guest.deaths("greedy", "out_of_memory") >= 1 && guest.deaths("killed", "signal") >= 1
    });
    assert_eq!(guest.get("/healthz").0, 200);
}

#[test]
fn connections_stay_within_the_files_that_may_be_open() {
    let config = pools("guest-files.yaml", false);
    let script = "ulimit -n 64; exec \"$@\"";
    let mut guest = Guest::start(script, Stdio::piped(), &["--config", &config]);
    let mut connections: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        connections.push(TcpStream::connect(("127.0.0.1", guest.port)).unwrap());
    }
    until("it answers beside two hundred connections", || guest.get("/healthz").0 == 200);
    until("it runs tasks beside them", || guest.task("quick", 3));
    drop(connections);
    until("it answers behind them", || guest.get("/healthz").0 == 200);
    guest.terminate();
    assert_eq!(guest.ended(), Some(0));
    let mut log = String::new();
    guest.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("effective=32") && log.contains("connections_max=16384"), "{log}");
    assert!(log.matches("could not be accepted").count() <= 2, "{log}");
}
