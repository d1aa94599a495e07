//! What several test programs share.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::disallowed_methods)] // Each program uses its part.

#[cfg(feature = "engines-http")]
pub mod engine_faults;
#[cfg(feature = "engines-http")]
pub mod fakes;
#[cfg(feature = "engines-http")]
pub mod fields;
#[cfg(feature = "engines-http")]
pub mod llama;
#[cfg(feature = "nvml")]
pub mod nvml;
pub mod processes;
#[cfg(feature = "service")]
pub mod real;
#[cfg(feature = "service")]
pub mod scripted;

mod sim;
#[allow(unused_imports)] // Each program uses its part.
pub use sim::*;

/// Held by a test that runs alone among those of its kind.
pub type Alone = tokio::sync::MutexGuard<'static, ()>;

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// For a test that measures real time, or keeps every core busy: of these, one runs at a time in a program. Beside it
/// run those that do neither.
pub async fn alone() -> Alone {
    ALONE.lock().await
}

/// The same for a test that is not asynchronous.
pub fn alone_blocking() -> Alone {
    ALONE.blocking_lock()
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
        head += &format!("content-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            head += "content-type: application/json\r\n";
        }
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

/// The status of an answer whose body may have no end.
pub fn status_of(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).expect("sends");
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(count) if count > 0 => answer.extend_from_slice(&piece[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
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

/// The root of the project, for tests of each of its packages.
pub fn root() -> &'static std::path::Path {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join(".specs").is_dir()).expect("a package of the project")
}

/// Where the service is. Only tests of its package may start it: with others cargo does not build it.
pub fn orchestratord() -> &'static str {
    let Some(path) = option_env!("CARGO_BIN_EXE_orchestratord") else { panic!("a test of the package orchestratord") };
    path
}

/// A run of `orchestratord serve`, and the port it listens on, once it does.
pub struct Service {
    pub child: std::process::Child,
    pub port: u16,
    pub greeting: String,
    log: std::path::PathBuf,
}

impl Service {
    pub fn start(arguments: &[&str]) -> Self {
        use std::io::BufRead;
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = format!("service-{}-{number}.log", std::process::id());
        let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(log);
        let listen: &[&str] = if arguments.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = std::process::Command::new(orchestratord())
            .arg("serve")
            .args(listen)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("starts");
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut greeting = String::new();
        while !greeting.contains("curl") {
            greeting += &(lines.next().expect("the service greets").expect("in UTF-8") + "\n");
        }
        let address = greeting.split("listening on ").nth(1).expect("it says where it listens");
        let port = address.lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        Service { child, port, greeting, log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it and returns all that it has logged.
    pub fn stop_and_log(mut self) -> String {
        self.signal("-TERM");
        let _ = self.child.wait();
        self.log()
    }

    pub fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Takes from others what a generous umask gave them: the commands about keys write only where their user alone may.
pub fn owners_alone(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(folder).unwrap().permissions().mode();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode & 0o7755)).unwrap();
}

/// Sends a signal to a process that this test has started, directly or through the runtime.
pub fn kill(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill {signal} {pid}");
}
