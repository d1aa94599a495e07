//! What several test programs share.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::disallowed_methods)] // Each program uses its part.

#[cfg(feature = "engines-http")]
pub mod llama;

use std::sync::Arc;

use orchestrator_core::config::{DeviceRef, PoolConfig, ReplicaConfig, SimConfig, SimFaults};
use orchestrator_core::core::{ClientId, PoolId, TaskId};
use orchestrator_core::env::InjectedPanic;
use orchestrator_core::gpu::sim::{SimEngine, SimStats};
use orchestrator_core::{Config, Env, Event, Orchestrator, TaskRequest, TaskStream};

/// Panics that a test plans are not printed; all others are.
pub fn hush_planned_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<InjectedPanic>().is_none() {
                print(info);
            }
        }));
    });
}

/// A simulated engine without any delay.
pub fn instant() -> SimConfig {
    SimConfig { first_token_us: 0, token_us: 0, preload_us: 0, ..SimConfig::default() }
}

/// A simulated engine with a token each millisecond.
pub fn millisecond() -> SimConfig {
    SimConfig { first_token_us: 1_000, token_us: 1_000, preload_us: 1_000, ..SimConfig::default() }
}

pub fn faulty(faults: SimFaults) -> SimConfig {
    SimConfig { faults, ..millisecond() }
}

/// A pool of simulated replicas, one device each.
pub fn pool(id: &str, replicas: u32, slots: u32, sim: SimConfig) -> PoolConfig {
    let replica = |index| ReplicaConfig { devices: vec![DeviceRef::Index(index)] };
    let replicas = (0..replicas).map(replica).collect();
    PoolConfig { slots, replicas, sim: Some(sim), ..PoolConfig::new(id, "sim", "tiny") }
}

/// A runtime of simulated pools, and what their workers have done: by pool, then by replica.
pub struct World {
    pub orchestrator: Orchestrator,
    pub stats: Vec<Vec<Arc<SimStats>>>,
}

pub async fn start(env: Env, pools: Vec<PoolConfig>) -> World {
    start_with(env, Config::default(), pools).await
}

pub async fn start_with(env: Env, config: Config, pools: Vec<PoolConfig>) -> World {
    hush_planned_panics();
    let mut builder = Orchestrator::builder().env(env).config(config);
    let mut stats = Vec::new();
    for pool in pools {
        let of_pool: Vec<Arc<SimStats>> = pool.replicas.iter().map(|_| Arc::default()).collect();
        stats.push(of_pool.clone());
        builder = builder
            .pool(pool, move |context| SimEngine::with_stats(context, of_pool[context.replica.index as usize].clone()));
    }
    World { orchestrator: builder.start().await.expect("starts"), stats }
}

pub fn task_id(text: &str) -> TaskId {
    TaskId::parse(text).unwrap()
}

pub fn pool_id(text: &str) -> PoolId {
    PoolId::parse(text).unwrap()
}

pub fn client(text: &str) -> ClientId {
    ClientId::parse(text).unwrap()
}

pub fn request(id: &str, max_tokens: u32) -> TaskRequest {
    TaskRequest { task_id: Some(task_id(id)), ..TaskRequest::completion("the sky is").max_tokens(max_tokens) }
}

/// Reads a stream to its end and checks what must hold for every stream: indices without gaps, one terminal event, and
/// nothing behind it. Returns the text and the terminal event.
pub async fn read_whole(mut stream: TaskStream) -> (String, Event) {
    let (mut text, mut expected, mut tokens) = (String::new(), 0, 0);
    let mut end = None;
    while let Some((index, event)) = stream.next().await {
        assert_eq!(index, expected, "event indices have no gap");
        assert!(end.is_none(), "an event follows the terminal one: {event:?}");
        expected += 1;
        match event {
            Event::Token { text: token, index } => {
                assert_eq!(index, tokens, "token indices have no gap");
                tokens += 1;
                text.push_str(&token);
            }
            Event::Started(_) => {}
            terminal => end = Some(terminal),
        }
    }
    (text, end.expect("every stream has a terminal event"))
}

/// Waits until nothing is queued, running or leased any more.
pub async fn until_idle(orchestrator: &Orchestrator) {
    while !is_idle(orchestrator) {
        // Virtual time: the runtime's own timers decide how long this takes.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

pub fn is_idle(orchestrator: &Orchestrator) -> bool {
    let pools = orchestrator.pools();
    let idle = |pool: &orchestrator_core::PoolView| pool.slots_used == 0 && pool.queue_depth == [0, 0];
    orchestrator.view().tasks_open == 0 && pools.iter().all(idle)
}

/// Waits until something outside is so. Only for other processes: they do not tell us.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// One HTTP exchange on a connection of its own: the status, the headers and the body as text.
pub fn exchange(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    stream.write_all((head + "\r\n").as_bytes()).expect("sends");
    let _ = stream.write_all(body); // A server may refuse before it has read all.
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // And close before we have sent all.
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, head.to_owned(), if chunked { unchunk(body) } else { body.to_owned() })
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        if size == 0 || rest.len() < size {
            break;
        }
        whole += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// A command of this package's binary, and the port it listens on, once it does.
pub struct Service {
    pub child: std::process::Child,
    pub port: u16,
    pub greeting: String,
}

impl Service {
    pub fn start(arguments: &[&str]) -> Self {
        use std::io::BufRead;
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_orchestratord"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut greeting = String::new();
        while !greeting.contains("curl") {
            greeting += &(lines.next().expect("the service greets").expect("in UTF-8") + "\n");
        }
        let address = greeting.split("listening on http://127.0.0.1:").nth(1).expect("it says where it listens");
        let port = address.split_whitespace().next().unwrap().parse().unwrap();
        Service { child, port, greeting }
    }

    pub fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that this test has started, directly or through the runtime.
pub fn kill(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill {signal} {pid}");
}
