//! Tasks as spans at a collector (ORCH-3027). With the feature `otlp`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::Value;

/// How long the service may take over its answer and over its spans.
const PATIENCE: Duration = Duration::from_secs(30);

/// The next request's path and body, answered with success; none if nothing comes.
fn received(listener: TcpListener) -> Option<(String, Value)> {
    let (connected, next) = channel();
    std::thread::spawn(move || connected.send(listener.accept().unwrap().0));
    let mut stream = next.recv_timeout(PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").unwrap();
    Some((first, serde_json::from_slice(&body).unwrap()))
}

#[test]
fn otlp_spans_of_a_task_reach_the_collector_in_its_callers_trace() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut service = Command::new(crate::support::orchestratord())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.local_addr().unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let listening = lines.map(Result::unwrap).find(|line| line.starts_with("listening")).unwrap();
    let address = listening.rsplit('/').next().unwrap().to_owned();
    let body = "{\"prompt\":\"secret words\",\"max_tokens\":3,\"task_id\":\"traced\"}";
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
         x-client-id: alice\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Read to its end: a client that leaves at once may be gone before the service has taken its task.
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let sent = received(collector);
    service.kill().unwrap();
    service.wait().unwrap();
    let (path, sent) = sent.expect("the collector hears of the task");
    assert!(path.starts_with("POST /v1/traces "), "{path}");
    let spans = sent["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["task", "queue", "first token", "decode"], "{sent}");
    assert!(spans.iter().all(|span| span["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(spans[0]["parentSpanId"], "00f067aa0ba902b7");
    let text = sent.to_string();
    assert!(text.contains("traced") && text.contains("alice") && !text.contains("secret"), "{text}");
    println!("{names:?}");
}
