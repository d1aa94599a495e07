//! The configuration of a running service: by signal, by file, over the API, and back.

use serde_json::Value;

use super::{orchestratord, slots, write};
use crate::support::nvml::{FakeDriver, uuid};
use crate::support::{Service, exchange};

fn config(service: &Service) -> Value {
    let (_, _, body) = exchange(service.port, "GET", "/v1/config", &[], b"");
    serde_json::from_str(&body).unwrap()
}

fn until_generation(service: &Service, generation: u64) {
    while config(service)["generation"] != generation {}
}

#[test]
fn a_signal_reads_the_file_again_and_wrong_ones_change_nothing() {
    let file = write("hup.yaml", &slots(2));
    let mut service = Service::start(&["--config", &file]);
    write("hup.yaml", &slots(3));
    service.signal("-HUP");
    until_generation(&service, 2);
    write("hup.yaml", "pools: [{id: a, engine: sim, model: m, slotz: 3}]\n");
    service.signal("-HUP");
    while !service.log().contains("config_rejected") && !service.log().contains("did you mean") {
        assert!(service.child.try_wait().unwrap().is_none(), "it goes on");
        if exchange(service.port, "GET", "/metrics", &[], b"")
            .2
            .contains("config_reloads_total{outcome=\"rejected\"} 1")
        {
            break;
        }
    }
    assert_eq!(config(&service)["generation"], 2);
    assert_eq!(config(&service)["config"]["pools"][0]["slots"], 3);
}

#[test]
fn a_watched_file_is_put_in_force_when_it_changes() {
    let file = write("watched.yaml", &slots(2));
    let service = Service::start(&["--config", &file, "--watch"]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    until_generation(&service, 1);
    let mut slots_now = 3;
    // The first look at the file may come late; whatever is written behind it is seen.
    while config(&service)["generation"] == 1 {
        write("watched.yaml", &slots(slots_now));
        slots_now = 3 + (slots_now - 2) % 500; // Not beyond what a replica may have, however late the first look comes.
    }
    assert!(config(&service)["config"]["pools"][0]["slots"].as_u64() >= Some(3));
}

#[test]
fn one_command_shows_applies_and_undoes() {
    let file = write("commands.yaml", &slots(2));
    let service = Service::start(&["--config", &file]);
    let url = format!("http://127.0.0.1:{}", service.port);
    let run = |arguments: &[&str]| orchestratord(&[arguments, &["--url", &url]].concat());
    let next = write("commands-next.yaml", &slots(5));
    let (ok, out, err) = run(&["config", "diff", &next]);
    assert!(ok && out.contains("~ pools.a.slots: 2 -> 5") && out.contains("nothing was changed"), "{out}{err}");
    assert_eq!(config(&service)["generation"], 1);
    let (ok, out, _) = run(&["config", "apply", &next]);
    assert!(
        ok && out.contains("pools that get a successor: a") && out.contains("configuration 2 is in force"),
        "{out}"
    );
    let wrong = write("commands-wrong.yaml", &slots(0));
    let (ok, _, err) = run(&["config", "apply", &wrong]);
    assert!(!ok && err.contains("pools[0].slots: it must be from 1"), "{err}");
    let (ok, out, _) = run(&["config", "rollback"]);
    assert!(ok && out.contains("~ pools.a.slots: 5 -> 2"), "{out}");
    let (_, out, _) = run(&["config", "history"]);
    assert_eq!(out.lines().filter(|line| line.contains("from \"") || line.contains("  from ")).count(), 3, "{out}");
    let (ok, out, _) = run(&["config", "rollback", "--to", "2"]);
    assert!(ok && out.contains("2 -> 5"), "{out}");
    let (ok, out, _) = run(&["config", "show"]);
    assert!(ok && serde_json::from_str::<Value>(&out).unwrap()["pools"][0]["slots"] == 5);
}

#[test]
fn a_new_model_comes_by_percentage_and_goes_back_when_it_fails() {
    let sim = "sim: {first_token_us: 0, token_us: 0, preload_us: 0";
    let text = format!(
        "pools:\n  - {{id: old, engine: sim, model: m1, aliases: [chat], replicas: [{{devices: [0]}}], {sim}}}}}\n  - {{id: new, engine: sim, \
         model: m2, aliases: [chat], replicas: [{{devices: [1]}}], self_test: false, resume: {{attempts_max: 1}}, \
         restart: {{intensity: 1000, backoff_ms: 0}}, {sim}, faults: {{die_ppm: 1000000}}}}}}\n"
    );
    let service = Service::start(&["--config", &write("rollout.yaml", &text)]);
    while !exchange(service.port, "GET", "/readyz", &[], b"").2.contains("\"new\":\"ready\"") {}
    let ask = |number: u32| {
        let body =
            format!("{{\"prompt\":\"p{number}\",\"model_ref\":\"chat\",\"max_tokens\":3,\"task_id\":\"r{number}\"}}");
        exchange(service.port, "POST", "/v1/tasks", &[("accept", "text/event-stream")], body.as_bytes())
    };
    assert!((0..40).all(|number| ask(number).2.contains("\"pool_id\":\"old\"")), "an alias is the first pool's");
    let spec = b"{\"from\":\"old\",\"to\":\"new\",\"steps\":[50,100],\"hold_ms\":60000,\"tasks_min\":5}";
    let (status, _, body) = exchange(service.port, "POST", "/v1/rollouts", &[], spec);
    assert_eq!(status, 202, "{body}");
    assert!(body.contains("\"share_percent\":50"), "{body}");
    let mut number = 1_000;
    let state = loop {
        let _ = ask(number);
        number += 1;
        let (_, _, body) = exchange(service.port, "GET", "/v1/rollouts", &[], b"");
        if !body.contains("\"state\":\"rolling\"") {
            break body;
        }
        assert!(number < 20_000, "it never goes back: {body}");
    };
    assert!(state.contains("rolled_back") && state.contains("\"share_percent\":0"), "{state}");
    println!("after {} tasks: {state}", number - 1_000);
    assert!((50_000..50_040).all(|number| ask(number).2.contains("\"pool_id\":\"old\"")), "everything goes back");
}

/// The driver is opened when the service starts; a change is held against what it said then.
#[test]
fn a_change_is_checked_against_the_devices_without_asking_the_driver_again() {
    let driver = FakeDriver::new("asked-once", 1);
    let of = |device: &str, slots: u32| {
        let pool = format!("{{id: a, engine: sim, model: m, slots: {slots}, replicas: [{{devices: [\"{device}\"]}}]}}");
        format!("gpu: {{driver: required, library: {:?}}}\npools: [{pool}]\n", driver.library)
    };
    let file = write("asked-once.yaml", &of(&uuid(0), 2));
    let service = Service::start(&["--config", &file]);
    // Whoever opened it now would not find it, and one that is required would be missing.
    std::fs::remove_file(&driver.library).unwrap();
    let apply = |text: &str, how: &str| {
        let headers = [("content-type", "application/yaml")];
        let (status, _, body) = exchange(service.port, "POST", &format!("/v1/config{how}"), &headers, text.as_bytes());
        (status, body)
    };
    let (status, body) = apply(&of(&uuid(0), 3), "?dry_run=true");
    assert_eq!(status, 200, "{body}");
    let (status, body) = apply(&of(&uuid(7), 3), "?dry_run=true");
    assert!(status == 400 && body.contains(&uuid(7)), "a device that is not there is said: {status} {body}");
    let (status, body) = apply(&of(&uuid(0), 3), "");
    assert_eq!(status, 200, "{body}");
    until_generation(&service, 2);
}
