//! The process: how it greets, drains and ends, and the command line around it.

use std::process::Command;

use super::{get, post, quick_service};
use crate::support::{Service, exchange};

fn orchestratord(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(crate::support::orchestratord()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn without_a_configuration_it_says_what_it_serves_and_the_pasted_curl_streams() {
    let service = Service::start(&[]);
    assert!(service.greeting.contains("SIMULATED"), "{}", service.greeting);
    let line = service.greeting.lines().find(|line| line.trim_start().starts_with("curl")).unwrap();
    let output = Command::new("sh").args(["-c", &line.replace("curl", "curl -s")]).output();
    let Some(output) = output.ok().filter(|output| output.status.code() != Some(127)) else {
        println!("SKIPPED: there is no curl on this machine");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((text.matches("event: token").count(), text.matches("event: end").count()), (16, 1), "{text}");
}

#[test]
fn sigterm_drains_then_stops() {
    let mut service = quick_service("sigterm.yaml");
    let body = "{\"prompt\":\"x\",\"model_ref\":\"n\",\"max_tokens\":40}";
    let port = service.port;
    let reader = std::thread::Builder::new().spawn(move || super::stream(port, body)).unwrap();
    while get(port, "/v1/pools/c/health").1["slots_used"] != 1 {}
    service.signal("-TERM");
    // New tasks are refused while the old one goes on.
    while get(port, "/v1/pools/c/health").1["state"] == "ready" {}
    let (status, _, envelope) = post(port, "{\"prompt\":\"x\",\"model_ref\":\"m\"}");
    assert_eq!((status, envelope["code"].as_str()), (503, Some("POOL_UNAVAILABLE")));
    let events = reader.join().unwrap();
    assert_eq!(events.last().unwrap().1, "end", "the running task came to its end");
    assert_eq!(events.iter().filter(|event| event.1 == "token").count(), 40);
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn submit_streams_to_the_terminal_and_says_what_went_wrong() {
    let service = quick_service("submit.yaml");
    let url = format!("http://127.0.0.1:{}", service.port);
    let (ok, out, err) = orchestratord(&["submit", "hello there", "--url", &url, "--model", "m", "--max-tokens", "6"]);
    assert!(ok, "{err}");
    assert!(out.ends_with('\n') && out.trim().len() > 6, "{out:?}");
    assert!(err.contains("ahead") && err.contains("started on") && err.contains("6 tokens"), "{err}");
    let (ok, _, err) = orchestratord(&["submit", "x", "--url", &url]);
    assert!(!ok && err.contains("INVALID_PARAMS") && err.contains("several models"), "{err}");
    let (ok, _, err) = orchestratord(&["submit", "x", "--url", "http://127.0.0.1:1"]);
    assert!(!ok && err.contains("is orchestratord running there?"), "{err}");
}

#[test]
fn a_port_that_is_taken_is_said_so_and_nothing_is_started() {
    let service = quick_service("taken.yaml");
    let address = format!("127.0.0.1:{}", service.port);
    let (ok, _, err) = orchestratord(&["serve", "--listen", &address]);
    assert!(!ok && err.contains(&format!("cannot listen on {address}")), "{err}");
    assert_eq!(exchange(service.port, "GET", "/healthz", &[], b"").0, 200);
}

#[test]
fn a_valid_configuration_is_told_so() {
    let text = "pools: [{id: a, engine: sim, model: m, replicas: [{devices: [0]}, {devices: [1]}]}]\n";
    let (ok, out, _) = orchestratord(&["check", &super::config_file("valid.yaml", text)]);
    assert!(ok && out.contains("valid, 1 pools with 2 replicas"), "{out}");
}
