//! Nodes as real processes in network namespaces, each pair of them on a wire of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orchestrator_core::config::{ClusterConfig, Config, NodeAntiAffinity, NodeTlsConfig};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::support::llama;

const NAMES: [&str; 3] = ["front", "one", "two"];
/// The HTTP API, inside each namespace.
const API: &str = "127.0.0.1:7700";
/// A link-layer address that nobody has: what is sent there is lost.
const NOWHERE: &str = "02:00:00:00:00:99";

/// Three hosts, the first without an engine.
pub struct Fleet {
    pub hosts: Vec<Host>,
}

pub struct Host {
    pub name: String,
    space: String,
    config: PathBuf,
    child: Option<Child>,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {said}", arguments.join(" "))) }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments)
}

/// Other processes do not tell us when something has changed.
pub fn look_again() {
    std::thread::park_timeout(Duration::from_millis(5));
}

/// Address of one host on its wire to another.
fn address(from: usize, to: usize) -> String {
    let wire = from + to; // 0-1, 0-2, 1-2 give 1, 2, 3.
    format!("10.77.{wire}.{}", if from < to { 1 } else { 2 })
}

impl Fleet {
    /// Makes the namespaces and what the nodes need, or says why it cannot be.
    pub fn new(server: &str) -> Option<Self> {
        let spaces: Vec<String> = NAMES.iter().map(|name| format!("oc{}-{name}", std::process::id())).collect();
        if let Err(why) = wire(&spaces) {
            spaces.iter().for_each(|space| drop(ip(&["netns", "del", space])));
            println!("SKIPPED: network namespaces cannot be made: {why}");
            return None;
        }
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-{}", std::process::id()));
        let init = Command::new(crate::support::orchestratord())
            .args(["cluster", "init", &folder.display().to_string(), "--nodes", &NAMES.join(",")])
            .output()
            .expect("starts");
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let hosts = spaces.into_iter().enumerate().map(|(index, space)| {
            let name = NAMES[index].to_owned();
            let at = |file: &str| folder.join(file).display().to_string();
            let others = (0..NAMES.len()).filter(|other| *other != index);
            let tls = NodeTlsConfig {
                ca_file: at("ca.pem"),
                certificate_file: at(&format!("{name}.pem")),
                key_file: at(&format!("{name}.key")),
            };
            let cluster = ClusterConfig {
                name: name.clone(),
                listen: "0.0.0.0:7710".into(),
                peers: others
                    .map(|other| (NAMES[other].to_owned(), format!("{}:7710", address(other, index))))
                    .collect(),
                allow: Vec::new(),
                deny: Vec::new(),
                dns: None,
                tls,
                crl_file: None,
                cookie_file: at("cookie"),
                zone: None,
                anti_affinity: NodeAntiAffinity::default(),
            };
            let pools = if index == 0 { Vec::new() } else { vec![llama::pool(server, 1, 4)] };
            let config = Config { pools, cluster: Some(cluster), ..Config::default() };
            let file = folder.join(format!("{name}.json.yaml"));
            std::fs::write(&file, serde_json::to_string_pretty(&config).unwrap()).unwrap();
            Host { name, space, config: file, child: None }
        });
        Some(Fleet { hosts: hosts.collect() })
    }

    pub fn start_all(&mut self) {
        self.hosts.iter_mut().for_each(Host::start);
        self.hosts[0].until_serving(2);
    }

    /// Loses what one host sends to another, without a word.
    pub fn cut(&self, from: usize, to: usize) {
        let (space, device) = (&self.hosts[from].space, NAMES[to]);
        let to = address(to, from);
        ip(&["-n", space, "neigh", "replace", &to, "lladdr", NOWHERE, "dev", device, "nud", "permanent"]).unwrap();
    }

    pub fn mend(&self, from: usize, to: usize) {
        ip(&["-n", &self.hosts[from].space, "neigh", "del", &address(to, from), "dev", NAMES[to]]).unwrap();
    }

    /// Loses so many percent of all packets on each wire, in both directions: by `tc netem` where the kernel has it,
    /// else where they arrive, by the packet filter. Says by which.
    pub fn lose(&self, percent: u32) -> Result<&'static str, String> {
        let netem = |space: &str, device: &str| {
            let share = format!("{percent}%");
            run("tc", &["-n", space, "qdisc", "add", "dev", device, "root", "netem", "loss", &share])
        };
        let filter = |space: &str, device: &str| {
            let share = format!("0.{percent:02}");
            let rule =
                ["iptables", "-A", "INPUT", "-i", device, "-m", "statistic", "--mode", "random", "--probability"];
            ip(&[&["netns", "exec", space], rule.as_slice(), &[&share, "-j", "DROP"]].concat())
        };
        let everywhere = |lose: &dyn Fn(&str, &str) -> Result<(), String>| {
            self.hosts.iter().enumerate().try_for_each(|(index, host)| {
                let others = NAMES.iter().enumerate().filter(|(other, _)| *other != index);
                others.map(|(_, name)| *name).try_for_each(|name| lose(&host.space, name))
            })
        };
        let without = match everywhere(&netem) {
            Ok(()) => return Ok("tc netem"),
            Err(why) => why,
        };
        everywhere(&filter).map(|()| "iptables").map_err(|why| format!("{without}; {why}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.kill();
            let _ = ip(&["netns", "del", &host.space]);
        }
    }
}

/// Namespaces, and a wire between each two of them.
fn wire(spaces: &[String]) -> Result<(), String> {
    for space in spaces {
        ip(&["netns", "add", space])?;
        ip(&["-n", space, "link", "set", "lo", "up"])?;
    }
    for one in 0..spaces.len() {
        for other in one + 1..spaces.len() {
            let (near, far) = (&spaces[one], &spaces[other]);
            ip(&["-n", near, "link", "add", NAMES[other], "type", "veth", "peer", "name", NAMES[one], "netns", far])?;
            for (space, device, at) in
                [(near, NAMES[other], address(one, other)), (far, NAMES[one], address(other, one))]
            {
                ip(&["-n", space, "addr", "add", &format!("{at}/24"), "dev", device])?;
                ip(&["-n", space, "link", "set", device, "up"])?;
            }
        }
    }
    Ok(())
}

impl Host {
    /// Starts the node and waits until its API answers.
    pub fn start(&mut self) {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.space, crate::support::orchestratord(), "serve", "--config"])
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.config.with_extension("log")).unwrap())
            .spawn()
            .expect("starts");
        self.child = Some(child);
        for _ in 0..2_000 {
            if self.inside(|| TcpStream::connect(API)).is_ok() {
                return;
            }
            look_again();
        }
        panic!("{} does not answer", self.name);
    }

    /// Moves this thread to the host's network, for good.
    pub fn enter(&self) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.space)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                self.enter();
                work()
            });
            work.join().unwrap()
        })
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.inside(|| {
            let mut stream = TcpStream::connect(API).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
        })
    }

    pub fn is_linked(&self, peer: &str) -> bool {
        let view = self.get("/v1/cluster").unwrap_or_default();
        let peers = view["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().any(|one| one["name"] == peer && !one["link"].is_null())
    }

    /// Links that this node has had.
    pub fn links_made(&self) -> u64 {
        let view = self.get("/v1/cluster").unwrap_or_default();
        let peers = view["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().filter_map(|peer| peer["links_made"].as_u64()).sum()
    }

    /// Attempts of others that are here.
    pub fn guests(&self) -> u64 {
        self.get("/v1/cluster").map_or(u64::MAX, |view| view["guests_open"].as_u64().unwrap_or(u64::MAX))
    }

    /// Waits until so many pools are Ready here.
    pub fn until_serving(&self, pools: usize) {
        for _ in 0..6_000 {
            let all = self.get("/v1/pools").unwrap_or_default();
            let ready = |pool: &&Value| pool["state"] == "ready";
            if all.as_array().is_some_and(|all| all.iter().filter(ready).count() == pools) {
                return;
            }
            look_again();
        }
        panic!("{} does not come to serve {pools} pools", self.name);
    }

    /// Waits until so many attempts of this node run elsewhere.
    pub fn until_lent(&self, attempts: u64) {
        for _ in 0..6_000 {
            let view = self.get("/v1/cluster").unwrap_or_default();
            let peers = view["peers"].as_array().cloned().unwrap_or_default();
            if peers.iter().filter_map(|peer| peer["link"]["lent"].as_u64()).sum::<u64>() >= attempts {
                return;
            }
            look_again();
        }
        panic!("{} does not come to lend {attempts} attempts", self.name);
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it lives").id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Drains the node by its command, stops it and starts it again, as an upgrade does.
    pub fn replace(&mut self) {
        let drained = Command::new("ip")
            .args(["netns", "exec", &self.space, crate::support::orchestratord(), "cluster", "drain", "--url"])
            .arg(format!("http://{API}"))
            .output()
            .expect("starts");
        assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
        assert_eq!(self.guests(), 0, "nothing of others runs there any more");
        self.signal("TERM");
        let status = self.child.take().expect("it lives").wait().unwrap();
        assert!(status.success(), "it stops by itself: {status}");
        self.start();
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let pid = self.child.as_ref().expect("it lives").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap() * 1024
    }
}

/// Submits a task to the node of this thread's network, and reads its stream to the end: every index once and in order,
/// one end.
pub fn stream(id: &str, prompt: &str, seed: u64, tokens: u32) -> String {
    let body = json!({ "task_id": id, "prompt": prompt, "seed": seed, "max_tokens": tokens }).to_string();
    let mut stream = TcpStream::connect(API).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    write!(
        stream,
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let (mut text, mut kind, mut ended, mut expected) = (String::new(), String::new(), false, 0);
    let mut rest = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.expect("it goes on until its end");
        if let Some(event) = line.strip_prefix("event: ") {
            kind = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            let data: Value = serde_json::from_str(data).expect("JSON");
            match kind.as_str() {
                "token" => {
                    assert!(!ended, "{id}: a token behind the end");
                    assert_eq!(data["i"], expected, "{id}: every index once");
                    expected += 1;
                    text.push_str(data["t"].as_str().expect("text"));
                }
                "end" => ended = true,
                "error" => panic!("{id}: {data}"),
                _ => {}
            }
        } else {
            rest.push(line);
        }
    }
    assert!(ended, "{id} has an end: {rest:?}");
    text
}

/// A shell in a folder and a network of its own, where the program is on the path.
pub struct Shell {
    space: String,
    folder: PathBuf,
    children: std::cell::RefCell<Vec<Child>>,
}

impl Shell {
    pub fn new() -> Option<Self> {
        let space = format!("oc{}-docs", std::process::id());
        let made = ip(&["netns", "add", &space]).and_then(|()| ip(&["-n", &space, "link", "set", "lo", "up"]));
        if let Err(why) = made {
            println!("SKIPPED: network namespaces cannot be made: {why}");
            return None;
        }
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("docs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Some(Shell { space, folder, children: Vec::new().into() })
    }

    fn command(&self, line: &str) -> Command {
        let program = std::path::Path::new(crate::support::orchestratord());
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space, "bash", "-c", &format!("exec {line}")]);
        command.current_dir(&self.folder).env("PATH", path).stderr(Stdio::null());
        command
    }

    /// What a command says, or `None` when it fails.
    pub fn try_run(&self, line: &str) -> Option<String> {
        let output = self.command(line).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|| panic!("it fails: {line}"))
    }

    pub fn start(&self, line: &str) {
        self.children.borrow_mut().push(self.command(line).stdout(Stdio::null()).spawn().unwrap());
    }

    pub fn kill(&self, index: usize) {
        let child = &mut self.children.borrow_mut()[index];
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let count = self.children.borrow().len();
        (0..count).for_each(|index| self.kill(index));
        let _ = ip(&["netns", "del", &self.space]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
