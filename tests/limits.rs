//! What outsiders can make the service spend: silent and slow clients, floods, bodies and heads of every size
//! (RELIABILITY R19).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Service, alone_blocking, exchange};

fn service(name: &str, http: &str) -> Service {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let text = format!(
        "pools: [{{id: a, engine: sim, model: m, sim: {{first_token_us: 0, token_us: 0, preload_us: 0}}}}]\nhttp: {{{http}}}\n"
    );
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    service
}

/// Resident memory of the service, in bytes.
fn memory(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// A good request, and how long its answer took.
fn good(service: &Service) -> Duration {
    let began = Instant::now();
    let (status, _, body) = exchange(service.port, "POST", "/v1/tasks", &[], b"{\"prompt\":\"x\",\"max_tokens\":1}");
    assert_eq!(status, 202, "{body}");
    began.elapsed()
}

fn connect(service: &Service) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends what may be refused before all of it is sent, and returns the status that comes back; 0 for none.
fn status(service: &Service, parts: &[&[u8]]) -> u16 {
    let mut stream = connect(service);
    for part in parts {
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // A reset behind the answer loses none of it.
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[test]
fn a_thousand_slow_and_ten_thousand_silent_clients_keep_nobody_out() {
    let _alone = alone_blocking();
    let service = service("silent.yaml", "connections_max: 8000, head_ms: 60000");
    let before = memory(&service);
    let mut slowest = good(&service);
    let mut slow: Vec<TcpStream> = (0..1_000).map(|_| connect(&service)).collect();
    for (number, stream) in slow.iter_mut().enumerate() {
        stream.write_all(b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nx-slow: ").unwrap();
        if number % 200 == 0 {
            slowest = slowest.max(good(&service));
        }
    }
    // More than there is room for: those that have been idle longest make room.
    let mut silent = Vec::new();
    for number in 0..10_000 {
        match TcpStream::connect(("127.0.0.1", service.port)) {
            Ok(stream) => silent.push(stream),
            Err(error) => {
                println!("this test's own files are used up at {number}: {error}");
                break;
            }
        }
        if number % 500 == 0 {
            slow.iter_mut().for_each(|stream| drop(stream.write_all(b"x"))); // One byte each, now and then.
            slowest = slowest.max(good(&service));
        }
    }
    slowest = slowest.max(good(&service));
    let grown = memory(&service).saturating_sub(before) / 1_000_000;
    println!(
        "{} silent and 1,000 slow clients: the slowest good request took {slowest:?}, {grown} MB more",
        silent.len()
    );
    assert!(silent.len() >= 9_000 && slowest < Duration::from_secs(1) && grown <= 100);
    let (_, _, metrics) = exchange(service.port, "GET", "/metrics", &[], b"");
    let full = metrics.lines().find(|line| line.starts_with("http_connections_closed_total{reason=\"full\"}")).unwrap();
    assert!(full.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 2_000, "{full}");
}

#[test]
fn who_is_too_slow_is_closed_and_told_so_where_that_can_be() {
    let _alone = alone_blocking();
    let service = service("slow.yaml", "head_ms: 300, body_ms: 300");
    let mut idle = connect(&service);
    let mut nothing = Vec::new();
    let _ = idle.read_to_end(&mut nothing); // It ends by itself.
    assert!(nothing.is_empty());
    let body =
        status(&service, &[b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"prompt\":"]);
    assert_eq!(body, 408);
    good(&service);
}

#[test]
fn heads_and_bodies_of_every_size_have_their_answer() {
    let _alone = alone_blocking();
    let service = service("sizes.yaml", "body_bytes_max: 100000, body_ms: 5000");
    let before = memory(&service);
    let head = |headers: &str| {
        format!("POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    };
    let long = format!("x-long: {}\r\n", "y".repeat(20_000));
    assert_eq!(status(&service, &[&head(&long)]), 431);
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    assert_eq!(status(&service, &[&head(&many)]), 431);
    let path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "p".repeat(70_000)).into_bytes();
    assert!([414, 431].contains(&status(&service, &[&path])));
    // Too large, as it says and as it comes.
    assert_eq!(status(&service, &[&head("content-length: 100000000\r\n"), b"{\"prompt\":\"x"]), 413);
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000)).into_bytes();
    let chunks: Vec<&[u8]> = std::iter::repeat_n(chunk.as_slice(), 40).collect();
    let chunked = head("transfer-encoding: chunked\r\n");
    assert_eq!(status(&service, &[&[chunked.as_slice()], chunks.as_slice()].concat()), 413);
    let with = |body: String| (head(&format!("content-length: {}\r\n", body.len())), body.into_bytes());
    let depth = 10_000;
    for body in [
        format!("{{\"prompt\":{}{}}}", "[".repeat(depth), "]".repeat(depth)),
        format!("{{\"parameters\":{}{}}}", "{\"a\":".repeat(depth), "1".to_owned() + &"}".repeat(depth)),
        format!("{{\"inputs\":[{}]}}", vec!["\"x\""; 20_000].join(",")),
        format!("{{\"prompt\":\"x\",\"parameters\":{{\"stop\":[{}]}}}}", vec!["\"x\""; 20_000].join(",")),
    ] {
        let (head, body) = with(body);
        assert_eq!(status(&service, &[&head, &body]), 400);
    }
    assert!(good(&service) < Duration::from_secs(1));
    let grown = memory(&service).saturating_sub(before) / 1_000_000;
    println!("sizes: {grown} MB more");
    assert!(grown <= 100);
}
