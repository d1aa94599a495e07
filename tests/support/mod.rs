//! What several test programs share.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::disallowed_methods)] // Each program uses its part.

#[cfg(feature = "engines-http")]
pub mod fakes;
#[cfg(feature = "engines-http")]
pub mod fields;
#[cfg(feature = "engines-http")]
pub mod llama;
#[cfg(feature = "engines-http")]
pub mod misdeeds;
#[cfg(feature = "nvml")]
pub mod nvml;
pub mod processes;
#[cfg(feature = "service")]
pub mod real;

mod sim;
#[allow(unused_imports)] // Each program uses its part.
pub use sim::*;

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
