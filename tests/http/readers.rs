//! Readers that leave, and readers that do not read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{config_file, json};
use crate::support::{Service, alone, eventually, exchange};

fn submit(port: u16, body: &str) -> String {
    let (status, _, answer) = exchange(port, "POST", "/v1/tasks", &[], body.as_bytes());
    assert_eq!(status, 202, "{answer}");
    json(&answer)["task_id"].as_str().unwrap().to_owned()
}

/// Opens a task's stream, and reads nothing of it.
fn open(port: u16, task: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /v1/tasks/{task}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream
}

fn task(port: u16, id: &str) -> serde_json::Value {
    json(&exchange(port, "GET", &format!("/v1/tasks/{id}"), &[], b"").2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_closes_cancels_its_task_after_the_grace_unless_it_is_to_be_kept() {
    let text =
        "pools: [{id: a, engine: sim, model: m, slots: 4, sim: {first_token_us: 0, token_us: 5000, preload_us: 0}}]
disconnect_grace_ms: 200\n";
    let service = Service::start(&["--config", &config_file("leaving.yaml", text)]);
    let port = service.port;
    eventually("it is Ready", || exchange(port, "GET", "/v1/pools/a/health", &[], b"").0 == 200).await;
    let left = submit(port, r#"{"prompt": "a", "max_tokens": 3000}"#);
    let kept = submit(port, r#"{"prompt": "a", "max_tokens": 3000, "on_disconnect": "keep"}"#);
    for id in [&left, &kept] {
        let mut reader = BufReader::new(open(port, id));
        let mut line = String::new();
        while !line.contains("event: token") {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
    }
    // Both connections are closed here.
    eventually("the one that was left is cancelled", || task(port, &left)["phase"] == "terminal").await;
    assert_eq!(task(port, &left)["end"]["finish_reason"], "canceled");
    assert_eq!(task(port, &kept)["phase"], "running");
    let metrics = exchange(port, "GET", "/metrics", &[], b"").2;
    let counted = metrics.lines().find(|line| line.contains("reason=\"disconnect\"")).unwrap();
    assert!(counted.ends_with(" 1"), "{counted}");
    assert_eq!(exchange(port, "POST", &format!("/v1/tasks/{kept}/cancel"), &[], b"").0, 200);
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

const READING: usize = 100;
const NOT_READING: usize = 1_000;
/// Tokens by which the gaps are measured, and the engine's own gap.
const MEASURED: usize = 300;
const GAP_US: u64 = 10_000;

/// What each of the hundred readers sees: gaps between tokens, sorted.
fn gaps(port: u16, ids: &[String]) -> Vec<Duration> {
    let readers: Vec<_> = ids
        .iter()
        .map(|id| {
            let reader = BufReader::new(open(port, id));
            std::thread::spawn(move || {
                let (mut seen, mut newest) = (Vec::new(), None::<Instant>);
                for line in reader.lines() {
                    if line.unwrap() != "event: token" {
                        continue;
                    }
                    let now = Instant::now();
                    seen.extend(newest.replace(now).map(|newest| now - newest));
                    if seen.len() > MEASURED {
                        break;
                    }
                }
                seen.split_off(50) // What had come before the reader comes in one piece.
            })
        })
        .collect();
    let mut all: Vec<Duration> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_that_never_read_cost_bounded_memory_and_the_others_nothing() {
    let _alone = alone().await;
    let text = format!(
        "pools:
  - {{id: a, engine: sim, model: m, ctx: 32768, slots: 200, sim: {{first_token_us: 0, token_us: {GAP_US}, preload_us: 0}}}}
  - {{id: b, engine: sim, model: n, ctx: 32768, slots: 4, sim: {{first_token_us: 0, token_us: 0, preload_us: 0}}}}\n"
    );
    let service = Service::start(&["--config", &config_file("not-reading.yaml", &text)]);
    let (port, pid) = (service.port, service.child.id());
    for pool in ["a", "b"] {
        eventually("it is Ready", || exchange(port, "GET", &format!("/v1/pools/{pool}/health"), &[], b"").0 == 200)
            .await;
    }
    let submit_all = || -> Vec<String> {
        let body = r#"{"prompt": "a", "model_ref": "m", "max_tokens": 600}"#;
        (0..READING).map(|_| submit(port, body)).collect()
    };
    let alone = gaps(port, &submit_all());
    // Whole long texts, some megabyte of events each, for readers that take none of it.
    let long: Vec<String> = (0..4)
        .map(|_| submit(port, r#"{"prompt": "a", "model_ref": "n", "max_tokens": 20000, "on_disconnect": "keep"}"#))
        .collect();
    eventually("the long texts are there", || long.iter().all(|id| task(port, id)["phase"] == "terminal")).await;
    let before = resident(pid);
    let mut idle: Vec<TcpStream> = (0..NOT_READING).map(|number| open(port, &long[number % 4])).collect();
    let beside = gaps(port, &submit_all());
    let each = (resident(pid).saturating_sub(before)) as f64 / NOT_READING as f64;
    let mean = |gaps: &[Duration]| gaps.iter().sum::<Duration>() / gaps.len() as u32;
    let p99 = |gaps: &[Duration]| gaps[gaps.len() * 99 / 100];
    println!("{READING} readers alone: a token each {:?}, p99 {:?}", mean(&alone), p99(&alone));
    println!(
        "beside {NOT_READING} that do not read: {:?}, p99 {:?}; {each:.0} KiB for each of them",
        mean(&beside),
        p99(&beside)
    );
    assert!(each <= 64.0, "{each} KiB for a reader that does not read");
    assert!(mean(&beside) <= mean(&alone).mul_f64(1.1), "the gap grows by no more than a tenth");
    // And it is all there for whoever begins to read after all.
    let mut first = [0; 12];
    idle[0].read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}
