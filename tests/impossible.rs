//! Configurations that cannot be: each is refused at `check`, or at preload while the other pools serve, with the pool,
//! the field, the reason, and what would be right.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::nvml::{FakeDriver, device, uuid};
use crate::support::{Service, eventually, exchange};

fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.yaml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

/// Two devices that are alike, one that is not, and one that is divided.
fn driver(name: &str) -> FakeDriver {
    let mut other = device(2);
    (other["name"], other["memory_total"]) = (json!("Fake L4"), json!(24_u64 << 30));
    let mut divided = device(3);
    divided["mig"] = json!([{"uuid": "MIG-a", "name": "Fake 1g.10gb", "memory_total": 10_u64 << 30}]);
    let mut alike = device(1);
    alike["uuid"] = json!("GPU-00000000-0000-0000-0000-000000000001"); // All but its end is the first one's.
    FakeDriver::with(name, json!({"devices": [device(0), alike, other, divided]}))
}

fn check(driver: &FakeDriver, pools: &str) -> (bool, String) {
    let text = format!("gpu: {{ library: {:?} }}\nhost_labels: [spot]\npools:\n{pools}", driver.library);
    let path = file("impossible", &text);
    let output = Command::new(crate::support::orchestratord()).arg("check").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
    (output.status.success(), said.into_owned())
}

#[test]
fn what_cannot_be_on_this_host_is_refused_at_check() {
    let driver = driver("check");
    let sim = |rest: &str| format!("  - {{ id: a, engine: sim, model: m, {rest} }}\n");
    let two = |first: &str, second: &str| {
        format!("  - {{ id: a, engine: sim, model: m, {first} }}\n  - {{ id: b, engine: sim, model: m, {second} }}\n")
    };
    let llama = |rest: &str| {
        format!("  - {{ id: a, engine: llamacpp, model: m, command: [llama-server, --port, \"{{port}}\"], {rest} }}\n")
    };
    let gib = |gib: u64| gib << 30;
    let cases: Vec<(String, &str, &str)> = vec![
        (
            sim("replicas: [{ devices: [GPU-ffffffff] }]"),
            "pools[0].replicas[0].devices",
            "there is no device GPU-ffffffff; there is 0 (GPU-",
        ),
        (sim("replicas: [{ devices: [9] }]"), "pools[0].replicas[0].devices", "there is no device 9"),
        (sim("replicas: [{ devices: [GPU-00000000] }]"), "pools[0].replicas[0].devices", "write more of the UUID"),
        (sim(&format!("replicas: [{{ devices: [0, {}] }}]", uuid(0))), "pools[0].replicas[0].devices", "named twice"),
        (
            two("replicas: [{ devices: [0] }]", "replicas: [{ devices: [0, 1] }]"),
            "pools[1].replicas[0].devices",
            "give each worker its own, or both a budget",
        ),
        (
            two("replicas: [{ devices: [0] }]", &format!("replicas: [{{ devices: [{}] }}]", uuid(0))),
            "pools[1].replicas[0].devices",
            "belongs to pools[0]",
        ),
        (
            two("replicas: [{ devices: [0] }]", "replicas: [{ devices: [0], shared_bytes: 5 }]"),
            "pools[1].replicas[0].devices",
            "both a budget",
        ),
        (
            two(
                &format!("replicas: [{{ devices: [0], shared_bytes: {} }}]", gib(50)),
                &format!("replicas: [{{ devices: [0], shared_bytes: {} }}]", gib(40)),
            ),
            "pools[1].replicas[0].shared_bytes",
            "add up to",
        ),
        (
            sim("replicas: [{ devices: [0, 1], tensor_split: [0.5, 0.4] }]"),
            "pools[0].replicas[0].tensor_split",
            "add up to 0.9, and must to 1",
        ),
        (
            sim("replicas: [{ devices: [0, 1], tensor_split: [1.0] }]"),
            "pools[0].replicas[0].tensor_split",
            "1 shares for 2 devices",
        ),
        (
            sim("replicas: [{ devices: [0, 2] }]"),
            "pools[0].replicas[0].tensor_split",
            "not alike; say how the model is divided",
        ),
        (
            sim(&format!("replicas: [{{ devices: [2] }}], memory: {{ model_bytes: {} }}", gib(30))),
            "pools[0].replicas[0].devices",
            "fewer slots, a shorter ctx, or another device",
        ),
        (
            two("replicas: [{ devices: [0] }]", "replicas: [{ devices: [1] }], anti_affinity: { numa: [a] }"),
            "pools[1].anti_affinity.numa[0]",
            "NUMA node 0",
        ),
        (
            two(
                "replicas: [{ devices: [0], shared_bytes: 5 }]",
                "replicas: [{ devices: [0], shared_bytes: 5 }], anti_affinity: { device: [a] }",
            ),
            "pools[1].anti_affinity.device[0]",
            "both use device",
        ),
        (sim("anti_affinity: { host: [spot] }"), "pools[0].anti_affinity.host[0]", "must not run"),
        (
            sim("replicas: [{ devices: [3] }]"),
            "pools[0].replicas[0].devices",
            "divided by MIG; name one of its instances: MIG-a",
        ),
        (sim("devices: [0], replicas: [{ devices: [1] }]"), "pools[0].replicas[0].devices", "not all among the pool's"),
        (
            sim("model_files: [{ path: m.gguf, sha256: abc }]"),
            "pools[0].model_files[0].sha256",
            "64 hexadecimal digits",
        ),
        (
            llama("replicas: [{ devices: [0, 2], tensor_split: [0.8, 0.2] }]"),
            "pools[0].command",
            "put {tensor_split} into it",
        ),
        (
            "  - { id: a, engine: tgi, model: m, url: \"http://127.0.0.1:1\", workloads: [embedding] }\n".into(),
            "pools[0].workloads",
            "completions only",
        ),
        (sim("slotz: 4"), "unknown field", "did you mean \"slots\""),
        ("  - { id: a, engine: vlm, model: m }\n".into(), "pools[0].engine", "did you mean \"vllm\""),
    ];
    for (pools, place, words) in &cases {
        let (valid, said) = check(&driver, pools);
        assert!(
            !valid && said.contains(place) && said.contains(words),
            "{pools} said {said:?}, not {place} and {words:?}"
        );
        println!("{}", said.trim().split_once(": ").unwrap_or_default().1);
    }
    let (valid, said) = check(&driver, &sim("replicas: [{ devices: [0, 1] }, { devices: [2] }, { devices: [MIG-a] }]"));
    assert!(valid && said.contains("valid, 1 pools with 3 replicas"), "{said}");
    println!("{} refused", cases.len());
}

#[test]
fn a_driver_that_must_be_there_and_is_not_is_said_at_check_and_at_start() {
    let text =
        "gpu: { driver: required, library: /nowhere/libnvidia-ml.so }\npools:\n  - { id: a, engine: sim, model: m }\n";
    let path = file("required", text);
    for arguments in [vec!["check"], vec!["serve", "--listen", "127.0.0.1:0", "--config"]] {
        let output = Command::new(crate::support::orchestratord()).args(arguments).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("gpu.driver is required: no NVIDIA driver found"), "{said}");
    }
}

#[tokio::test]
async fn what_shows_only_at_preload_is_said_there_and_the_other_pools_serve() {
    let mut driver = driver("preload");
    driver.set(0, "memory_used", 70_u64 << 30); // Somebody else's.
    let model = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("model-{}", std::process::id()));
    std::fs::write(&model, "not the model").unwrap();
    let busy = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let busy_port = busy.local_addr().unwrap().port();
    let zeros = "0".repeat(64);
    let bind = format!("import socket; socket.socket().bind(('127.0.0.1', {busy_port}))");
    // Each pool, and what its last death must say.
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        (
            "digest",
            format!("engine: sim, model_files: [{{ path: {model:?}, sha256: \"{zeros}\" }}]"),
            vec!["its SHA-256 is", "should be 0000"],
        ),
        (
            "file",
            format!("engine: sim, model_files: [{{ path: /nowhere/m.gguf, sha256: \"{zeros}\" }}]"),
            vec!["/nowhere/m.gguf", "cannot be read"],
        ),
        (
            "binary",
            "engine: llamacpp, command: [/nowhere/llama-server, --port, \"{port}\"]".into(),
            vec!["/nowhere/llama-server", "cannot be started"],
        ),
        (
            "exits",
            "engine: vllm, command: [sh, -c, \"echo wrong flag >&2; exit 2\", \"{port}\"]".into(),
            vec!["exit code 2", "wrong flag"],
        ),
        (
            "port",
            format!("engine: tgi, command: [python3, -c, {bind:?}, \"{{port}}\"]"),
            vec!["exit code 1", "Address already in use"],
        ),
        (
            "vram",
            "engine: sim, replicas: [{ devices: [0] }], memory: { model_bytes: 32212254720 }".into(),
            vec!["10737418240 bytes free", "the load needs"],
        ),
        (
            "host",
            "engine: sim, memory: { host_bytes: 1000000000000000 }".into(),
            vec!["the host has", "the load needs 1000000000000000"],
        ),
        (
            "key",
            "engine: openai, url: \"http://127.0.0.1:1\", api_key_env: NO_SUCH_KEY_HERE".into(),
            vec!["api_key_env", "NO_SUCH_KEY_HERE"],
        ),
        (
            "device",
            "engine: sim, replicas: [{ devices: [7] }]".into(),
            vec!["pools[8].replicas[0].devices", "there is no device 7"],
        ),
        ("cpu", "engine: triton, command: [sh, -c, \"kill -SEGV $$\", \"{port}\"]".into(), vec!["signal 11"]),
    ];
    let mut text = format!("gpu: {{ library: {:?}, poll_ms: 50 }}\npools:\n", driver.library);
    for (name, rest, _) in &cases {
        text += &format!("  - {{ id: {name}, model: {name}, {rest} }}\n");
    }
    text += "  - { id: good, model: good, engine: sim, replicas: [{ devices: [1] }] }\n";
    let service = Service::start(&["--config", file("preload", &text).to_str().unwrap()]);
    let port = service.port;
    let pools = || -> Vec<Value> { serde_json::from_str(&exchange(port, "GET", "/v1/pools", &[], b"").2).unwrap() };
    let death = |index: usize| pools()[index]["replicas"][0]["last_death"]["message"].as_str().map(str::to_owned);
    for (index, (name, _, words)) in cases.iter().enumerate() {
        eventually(name, || death(index).is_some()).await;
        let said = death(index).unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{name} said {said:?}, not {words:?}");
        println!("{name:8} {said}");
        let body = json!({"prompt": "x", "model_ref": name}).to_string();
        let (status, _, answer) = exchange(port, "POST", "/v1/tasks", &[], body.as_bytes());
        assert!(status == 503 || status == 202, "{name}: {status} {answer}");
        let body = json!({"prompt": "x", "model_ref": "good", "max_tokens": 2}).to_string();
        let (_, _, stream) = exchange(port, "POST", "/v1/tasks", &[("accept", "text/event-stream")], body.as_bytes());
        assert!(stream.contains("event: end"), "the good pool serves beside {name}: {stream}");
    }
    drop(busy);
}
