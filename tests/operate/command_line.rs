//! The command line around a running service.

use std::process::Command;

use super::{file, orchestratord, slots, write};
use crate::support::{Service, exchange};

#[test]
fn top_shows_the_service_once_and_live_in_a_terminal() {
    let service = Service::start(&[]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    let url = format!("http://127.0.0.1:{}", service.port);
    let body = b"{\"prompt\":\"x\",\"max_tokens\":4}";
    exchange(service.port, "POST", "/v1/tasks", &[("accept", "text/event-stream"), ("x-client-id", "alice")], body);
    while !exchange(service.port, "GET", "/v1/overview", &[], b"").2.contains("\"stage\":\"total\"") {}
    let (ok, picture, err) = orchestratord(&["top", "--once", "--url", &url]);
    assert!(ok, "{err}");
    for part in [
        "1 of 1 pools ready",
        "demo",
        "● ready",
        "Latency, last minute",
        "first token",
        "alice",
        "interactive",
        "Last failures",
    ] {
        assert!(picture.contains(part), "{part} in\n{picture}");
    }
    let (ok, _, err) = orchestratord(&["top", "--once", "--url", "http://127.0.0.1:1"]);
    assert!(!ok && err.contains("is orchestratord running there?"), "{err}");
    // Live, in a terminal that another program looks at.
    let name = format!("oc-top-{}", std::process::id());
    let tmux = |arguments: &[&str]| Command::new("tmux").args(["-L", &name]).args(arguments).output();
    let command = format!("{} top --url {url}", crate::support::orchestratord());
    if tmux(&["new-session", "-d", "-x", "130", "-y", "45", &command]).is_err() {
        println!("SKIPPED: there is no tmux on this machine");
        return;
    }
    let screen = || String::from_utf8(tmux(&["capture-pane", "-p"]).unwrap().stdout).unwrap();
    while !screen().contains("1 of 1 pools ready") {}
    assert!(screen().contains("alice"));
    tmux(&["send-keys", "p"]).unwrap();
    while !screen().contains("HELD") {}
    exchange(service.port, "POST", "/v1/pools/demo/drain", &[], b"");
    tmux(&["send-keys", "p"]).unwrap();
    while !screen().contains("0 of 1 pools ready") {}
    tmux(&["send-keys", "q"]).unwrap();
    while tmux(&["has-session"]).unwrap().status.success() {}
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let (ok, out, _) =
        orchestratord(&["doctor", "--config", &write("well.yaml", &(slots(1) + "http: {listen: '127.0.0.1:0'}\n"))]);
    assert!(ok && out.contains("ok     ") && !out.contains("WRONG"), "{out}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "pools: [{{id: a, engine: llamacpp, model: m, command: [/nowhere/llama-server, --port, '{{port}}']}}]\nhttp: {{listen: '{}'}}\n\
         access: {{keys_file: {:?}}}\n",
        taken.local_addr().unwrap(),
        file("no-keys-at-all.json").display().to_string()
    );
    let (ok, out, err) = orchestratord(&["doctor", "--config", &write("ill.yaml", &text)]);
    assert!(!ok && err.contains("3 of"), "{out}{err}");
    for part in [
        "there is no program \"/nowhere/llama-server\"",
        "install the engine",
        "Address already in use",
        "has no keys",
        "orchestratord key new",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
}

#[test]
fn shells_editors_and_manuals_get_what_they_need() {
    let (ok, out, _) = orchestratord(&["completions", "bash"]);
    assert!(ok && out.contains("orchestratord") && out.contains("rollback"));
    let (ok, out, _) = orchestratord(&["man"]);
    assert!(
        ok && out.contains(".TH orchestratord") && out.contains("EXIT STATUS") && out.contains("ORCHESTRATORD TOP"),
        "{out}"
    );
    let (ok, out, _) = orchestratord(&["schema"]);
    assert!(ok && serde_json::from_str::<serde_json::Value>(&out).unwrap()["properties"]["pools"].is_object());
    let output = Command::new(crate::support::orchestratord()).arg("--nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_lives_and_stops() {
    let socket = std::env::temp_dir().join(format!("oc-notify-{}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut child = Command::new(crate::support::orchestratord())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "200000")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let next = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("the service tells its manager");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut seen = Vec::new();
    while !(seen.contains(&"READY=1".to_owned()) && seen.iter().filter(|said| *said == "WATCHDOG=1").count() >= 3) {
        seen.push(next());
    }
    crate::support::kill(child.id(), "-TERM");
    while next() != "STOPPING=1" {}
    assert!(child.wait().unwrap().success());
    std::fs::remove_file(&socket).unwrap();
}
