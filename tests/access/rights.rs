//! Rights that end, end: answers that go on end with their key. What an engine says is seen by whose task it is and by
//! operators, and a refusal names what its key may use.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::{bearer, file, guarded, key, keys, orchestratord, with_key};
use crate::support::fakes::Kind;
use crate::support::scripted::Scripted;
use crate::support::{Service, alone_blocking, exchange};

/// An answer that goes on, line by line.
fn going_on(port: u16, key: &str, path: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\n\r\n", bearer(key));
    stream.write_all(head.as_bytes()).unwrap();
    let (mut reader, mut line) = (BufReader::new(stream), String::new());
    while !line.contains("data:") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "it ended before its first event");
    }
    reader
}

/// All that still comes of it.
fn rest(mut answer: BufReader<TcpStream>) -> String {
    let mut rest = Vec::new();
    // Keep-alive: what ends is the chunked body.
    while !rest.ends_with(b"0\r\n\r\n") {
        let mut piece = [0; 65_536];
        match answer.read(&mut piece).unwrap() {
            0 => break,
            count => rest.extend_from_slice(&piece[..count]),
        }
    }
    String::from_utf8_lossy(&rest).into_owned()
}

#[test]
fn answers_that_go_on_end_with_their_key_and_the_tasks_go_on() {
    let _alone = alone_blocking();
    let file = keys("going.json");
    let alice = key(&file, "alice", "submit", &[]);
    let read = key(&file, "looker", "read", &[]);
    let admin = key(&file, "root", "admin", &[]);
    let service = guarded("going.yaml", &file, "");
    let port = service.port;
    for (id, model) in [("slow", "n"), ("kept", "n")] {
        let task =
            json!({"prompt": "x", "model_ref": model, "max_tokens": 3000, "task_id": id, "on_disconnect": "keep"});
        let (status, _, said) = with_key(port, &alice, "POST", "/v1/tasks", &task.to_string());
        assert_eq!(status, 202, "{said}");
    }
    let answers = [
        going_on(port, &alice, "/v1/tasks/slow/stream"),
        going_on(port, &read, "/v1/events"),
        going_on(port, &admin, "/v1/events"),
    ];
    for key in [&alice, &read] {
        assert!(orchestratord(&["key", "revoke", key, "--file", &file]).0);
    }
    let [stream, events, others] = answers;
    for answer in [stream, events] {
        let said = rest(answer);
        let last = said.rsplit("event: ").next().unwrap();
        assert!(last.starts_with("error") && last.contains("the key has been revoked"), "{last}");
    }
    let (_, _, view) = with_key(port, &admin, "GET", "/v1/tasks/slow", "");
    assert!(view.contains("\"running\""), "what was accepted goes on: {view}");
    let mut others = others;
    let mut line = String::new();
    while !line.starts_with("event: overview") {
        line.clear();
        others.read_line(&mut line).unwrap();
    }
}

#[test]
fn answers_that_go_on_end_when_their_key_expires() {
    let file = keys("expiring.json");
    let service = guarded("expiring.yaml", &file, "");
    let read = key(&file, "looker", "read", &["--expires", "3s"]);
    while with_key(service.port, &read, "GET", "/v1/pools", "").0 != 200 {}
    let said = rest(going_on(service.port, &read, "/v1/events"));
    assert!(said.contains("event: error") && said.contains("the key has expired"), "{said}");
}

#[test]
fn a_key_that_ends_while_a_body_comes_opens_nothing() {
    let file = keys("slow-body.json");
    let admin = key(&file, "root", "admin", &[]);
    let service = guarded("slow-body.yaml", &file, "");
    let begin = |path: &str, body: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            bearer(&admin),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body.as_bytes()[..3]).unwrap();
        stream
    };
    let task = json!({"prompt": "x", "model_ref": "m", "max_tokens": 1, "task_id": "late"}).to_string();
    let bodies = [("/v1/tasks", task), ("/v1/pools/b/reload", "{ }".to_owned() + " ")];
    let begun: Vec<(TcpStream, String)> = bodies.iter().map(|(path, body)| (begin(path, body), body.clone())).collect();
    assert!(orchestratord(&["key", "revoke", &admin, "--file", &file]).0);
    while with_key(service.port, &admin, "GET", "/v1/pools", "").0 != 401 {}
    for (mut stream, body) in begun {
        let _ = stream.write_all(&body.as_bytes()[3..]); // It may have been answered.
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
}

#[test]
fn who_asks_for_the_head_of_a_stream_is_no_reader_who_leaves() {
    let path = file("head.yaml");
    let text = "pools: [{id: a, engine: sim, model: m, sim: {first_token_us: 0, token_us: 20000, preload_us: 0}}]\n\
                disconnect_grace_ms: 0\n";
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    let task = b"{\"prompt\":\"x\",\"max_tokens\":30,\"task_id\":\"t\",\"on_disconnect\":\"cancel\"}";
    assert_eq!(exchange(service.port, "POST", "/v1/tasks", &[], task).0, 202);
    let (status, head, body) = exchange(service.port, "HEAD", "/v1/tasks/t/stream", &[], b"");
    assert!(status == 200 && head.contains("text/event-stream") && body.is_empty(), "{head}");
    let view = loop {
        let (_, _, view) = exchange(service.port, "GET", "/v1/tasks/t", &[], b"");
        if view.contains("\"terminal\"") {
            break view;
        }
    };
    assert!(view.contains("\"finish_reason\":\"length\""), "{view}");
}

#[test]
fn a_refusal_names_what_its_key_may_use() {
    let file = keys("named.json");
    let alice = key(&file, "alice", "submit", &["--pools", "a"]);
    let service = guarded("named.yaml", &file, "");
    let refused = |body: &Value| with_key(service.port, &alice, "POST", "/v1/tasks", &body.to_string());
    let (status, _, said) = refused(&json!({"prompt": "x", "model_ref": "nope"}));
    assert!(status == 400 && said.contains("nothing serves \\\"nope\\\"; there is m\""), "{said}");
    let (status, _, said) = refused(&json!({"prompt": "x", "model_ref": "n"}));
    assert!(status == 403 && !said.contains("pool b"), "{said}");
    let (status, _, said) = refused(&json!({"prompt": "x", "engine": "vllm"}));
    assert!(status == 400 && said.contains("there is sim"), "{said}");
    let (status, _, said) = refused(&json!({"prompt": "x"}));
    assert!(status == 202, "it may use one model alone: {said}");
}

const PRIVATE: &str = "PRIVATE-PROMPT-OF-ALICE";

/// A service with a pool at this server, and one whose engine says something and ends.
fn with_engine(name: &str, keys: &str, url: &str) -> Service {
    let script = format!("echo loading {PRIVATE} at {{port}}; exit 3");
    let text = format!(
        "
pools:
  - {{id: chat, engine: openai, model: m, url: {url:?}, self_test: false}}
  - {{id: dying, engine: openai, model: d, command: [sh, -c, {script:?}], restart: {{intensity: 1, breaker_open_ms: 600000}}}}
access: {{keys_file: {keys:?}}}
"
    );
    let path = file(name);
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_engine_says_is_for_whose_task_it_is_and_for_operators() {
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    let body = json!({"error": {"message": format!("bad input: {PRIVATE}"), "type": "invalid_request_error"}});
    server.gives("/v1/completions", "400 Bad Request", "", body.to_string());
    let file = keys("words.json");
    let [alice, bob] = ["alice", "bob"].map(|client| key(&file, client, "submit", &[]));
    let read = key(&file, "looker", "read", &[]);
    let admin = key(&file, "root", "admin", &[]);
    let service = with_engine("words.yaml", &file, &server.url());
    let ask = |key: &str, path: &str| with_key(service.port, key, "GET", path, "");
    let task = json!({"prompt": PRIVATE, "model_ref": "m", "task_id": "t"}).to_string();
    assert_eq!(with_key(service.port, &alice, "POST", "/v1/tasks", &task).0, 202);
    while !ask(&alice, "/v1/tasks/t").2.contains("terminal") {}
    while !ask(&admin, "/v1/pools").2.contains("it said last") {}
    for key in [&alice, &admin] {
        assert!(ask(key, "/v1/tasks/t").2.contains(PRIVATE), "its client and operators see it");
        assert!(ask(key, "/v1/tasks/t/explain").2.contains(PRIVATE));
    }
    for path in ["/v1/pools", "/v1/overview", "/v1/pools/dying/health"] {
        assert!(ask(&admin, path).2.contains(PRIVATE), "{path}");
    }
    assert_eq!(ask(&bob, "/v1/tasks/t").0, 404);
    let paths =
        ["/v1/tasks/t", "/v1/tasks/t/explain", "/v1/pools", "/v1/pools/dying/health", "/v1/overview", "/metrics"];
    for path in paths {
        let (status, _, said) = ask(&read, path);
        assert!([200, 503].contains(&status) && !said.contains(PRIVATE), "{path}: {said}");
    }
    let (_, _, said) = ask(&read, "/v1/tasks/t");
    assert!(said.contains("INVALID_PARAMS") && said.contains("the engine failed: client"), "code and cause: {said}");
    assert!(ask(&read, "/v1/pools").2.contains("exit_code; what it says is for 'admin'"));
    let log = service.stop_and_log();
    assert!(!log.contains(&format!("loading {PRIVATE}")), "an engine's lines are for DEBUG: {log}");
}
