//! The service from outside: the binary, its HTTP API, its configuration file, its signals.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "http/bad_inputs.rs"]
mod bad_inputs;
#[path = "http/contract.rs"]
mod contract;
#[path = "http/devices.rs"]
mod devices;
#[path = "http/life.rs"]
mod life;
#[path = "http/log.rs"]
mod log;
#[path = "http/readers.rs"]
mod readers;

use serde_json::Value;

use crate::support::{Service, exchange};

/// A configuration file of this test program's own.
fn config_file(name: &str, text: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A service that answers at once: two pools of one model, one of another.
fn quick_service(name: &str) -> Service {
    let text = "
pools:
  - {id: a, engine: sim, model: m, ctx: 2048, replicas: [{devices: [0]}], sim: {first_token_us: 0, token_us: 100}}
  - {id: b, engine: sim, model: m, ctx: 2048, replicas: [{devices: [1]}], sim: {first_token_us: 0, token_us: 100}}
  - {id: c, engine: sim, model: n, ctx: 1024, slots: 2, replicas: [{devices: [2]}], queue: {capacity: 2},
     sim: {first_token_us: 0, token_us: 20000}}
http: {body_bytes_max: 100000, metrics_ms: 50}
prompt_bytes_max: 4000
";
    let service = Service::start(&[
        "--config",
        &config_file(name, &text.replace("first_token_us: 0", "first_token_us: 0, preload_us: 0")),
    ]);
    for pool in ["a", "b", "c"] {
        while get(service.port, &format!("/v1/pools/{pool}/health")).0 != 200 {}
    }
    service
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
}

fn post(port: u16, body: &str) -> (u16, String, Value) {
    let (status, head, body) = exchange(port, "POST", "/v1/tasks", &[], body.as_bytes());
    (status, head, json(&body))
}

fn get(port: u16, path: &str) -> (u16, Value) {
    let (status, _, body) = exchange(port, "GET", path, &[], b"");
    (status, json(&body))
}

/// Submits with the stream as the answer, and returns its events as `(id, type, data)`.
fn stream(port: u16, body: &str) -> Vec<(Option<u64>, String, Value)> {
    let accept = [("accept", "text/event-stream")];
    let (status, _, body) = exchange(port, "POST", "/v1/tasks", &accept, body.as_bytes());
    assert_eq!(status, 200, "{body}");
    events(&body)
}

fn events(body: &str) -> Vec<(Option<u64>, String, Value)> {
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let blocks = body.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let parse = |block| {
        let data = json(&field(block, "data:").unwrap_or_else(|| panic!("no data in {block:?}")));
        (field(block, "id:").map(|id| id.parse().unwrap()), field(block, "event:").unwrap(), data)
    };
    blocks.map(parse).collect()
}
