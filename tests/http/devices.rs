//! The host's devices from outside, and tasks that are no completions.

use serde_json::json;

use super::{config_file, get, stream};
use crate::support::nvml::{FakeDriver, uuid};
use crate::support::{Service, exchange};

#[test]
fn devices_are_seen_with_their_figures_and_who_uses_them() {
    let driver = FakeDriver::new("http", 2);
    let text = format!(
        "gpu: {{ library: {:?}, poll_ms: 20 }}\npools:\n  - {{ id: a, engine: sim, model: m, replicas: [{{ devices: [1] }}] }}\n",
        driver.library
    );
    let service = Service::start(&["--config", &config_file("devices.yaml", &text)]);
    while get(service.port, "/v1/pools/a/health").0 != 200 {}
    while get(service.port, "/v1/devices").1["devices"][1]["sample"].is_null() {}
    let (status, view) = get(service.port, "/v1/devices");
    assert_eq!((status, view["source"].as_str(), view["version"].as_str()), (200, Some("driver"), Some("570.00")));
    let device = &view["devices"][1];
    assert_eq!((device["id"].as_str(), device["condition"].as_str()), (Some(&*uuid(1)), Some("healthy")));
    assert_eq!((&device["replicas"], &device["numa_node"]), (&json!(["a/0"]), &json!(0)));
    let (_, _, metrics) = exchange(service.port, "GET", "/metrics", &[], b"");
    let labels = format!("replica_id=\"a/0\",device=\"{}\"}}", uuid(1));
    for (name, value) in [("gpu_utilization", "0.37"), ("vram_used_bytes", "1073741824.0")] {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        assert!(line.contains("engine=\"sim\",engine_version=\"sim-") && line.contains("pool_id=\"a\""), "{line}");
        assert!(line.contains(&labels) && line.ends_with(value), "{line}");
    }
    for name in ["device_usable", "device_temperature_celsius", "driver_reset_events_total", "oom_events_total"] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name}");
    }
}

#[test]
fn without_a_driver_devices_are_simulated_and_the_greeting_says_so() {
    let text = "gpu: { library: /nowhere/libnvidia-ml.so }\npools:\n  - { id: a, engine: sim, model: m, replicas: [{ devices: [0] }] }\n";
    let service = Service::start(&["--config", &config_file("no-driver.yaml", text)]);
    let (greeting, (_, view)) = (&service.greeting, get(service.port, "/v1/devices"));
    assert!(greeting.contains("no NVIDIA driver found") && greeting.contains("devices are simulated"), "{greeting}");
    assert_eq!((view["source"].as_str(), view["devices"][0]["id"].as_str()), (Some("simulated"), Some("0")));
    assert_eq!(stream(service.port, "{\"prompt\":\"x\",\"max_tokens\":2}").last().unwrap().1, "end");
}

#[test]
fn texts_are_embedded_and_ranked_where_a_pool_says_that_it_does() {
    let text = "pools:\n  - { id: a, engine: sim, model: m, workloads: [embedding, rerank] }\n";
    let service = Service::start(&["--config", &config_file("workloads.yaml", text)]);
    while get(service.port, "/v1/pools/a/health").0 != 200 {}
    let tokens = |body: &str| -> Vec<serde_json::Value> {
        let events = stream(service.port, body);
        assert_eq!(events.last().unwrap().1, "end", "{events:?}");
        let tokens = events.iter().filter(|event| event.1 == "token");
        tokens.map(|event| serde_json::from_str(event.2["t"].as_str().unwrap()).unwrap()).collect()
    };
    let vectors = tokens("{\"workload\":\"embedding\",\"inputs\":[\"one\",\"two\",\"one\"]}");
    assert!(vectors.len() == 3 && vectors[0] == vectors[2] && vectors[0] != vectors[1], "{vectors:?}");
    let scores = tokens("{\"workload\":\"rerank\",\"prompt\":\"q\",\"inputs\":[\"one\",\"two\"]}");
    assert!(scores[1]["index"] == 1 && scores[1]["score"].is_f64(), "{scores:?}");
    let (status, _, error) = super::post(service.port, "{\"prompt\":\"x\"}");
    assert_eq!(status, 400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("nothing serves \"completion\"; there is embedding, rerank"), "{message}");
}

#[test]
fn the_command_line_lists_what_there_is() {
    let list = |library: &std::path::Path| {
        let command = std::process::Command::new(crate::support::orchestratord())
            .args(["devices", "--library"])
            .arg(library)
            .output()
            .unwrap();
        assert!(command.status.success());
        String::from_utf8(command.stdout).unwrap()
    };
    let driver = FakeDriver::new("list", 2);
    let said = list(&driver.library);
    assert!(said.starts_with("NVIDIA driver 570.00, 2 devices\n"), "{said}");
    assert!(said.contains(&format!("  1 {} Fake H100, 81920 MiB, sm_90, NUMA node 0\n", uuid(1))), "{said}");
    let said = list(std::path::Path::new("/nowhere/libnvidia-ml.so"));
    assert!(said.contains("no NVIDIA driver found") && said.contains("devices would be simulated"), "{said}");
}
