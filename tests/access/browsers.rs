//! What a page in a browser of the same host can do: nothing, on no route, whichever way it asks.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use orchestrator_core::service::routes::{Audience, routes};

use super::{bearer, file, guarded, key, keys};
use crate::support::{Service, exchange};

/// Sends a request with these headers and no others. Returns the status, the head, and the body where it has a length.
fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    let end = loop {
        if let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
            _ => break answer.len(),
        }
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    // A stream has no length, and no end.
    if head.contains("content-length: ") {
        let _ = stream.read_to_end(&mut answer);
    }
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, head, String::from_utf8_lossy(&answer[end..]).trim_start().to_owned())
}

/// The status by which a request was refused whoever sent it; `None` when it came as far as its route or the keys.
fn refused(status: u16, body: &str) -> Option<u16> {
    let is_of_a_route = status == 400 && !body.contains("'Host'");
    ([400, 403, 415, 421].contains(&status) && !is_of_a_route).then_some(status)
}

/// What asks.
#[derive(Clone, Copy)]
struct Asks<'a> {
    method: &'a str,
    face: Option<Audience>,
}

impl Asks<'_> {
    fn reads(&self) -> bool {
        ["GET", "HEAD", "OPTIONS"].contains(&self.method)
    }
}

/// A way to ask: what it is, its headers, and by what status it is refused.
type Way = (&'static str, Vec<(&'static str, String)>, fn(Asks<'_>) -> Option<u16>);

const IN: fn(Asks<'_>) -> Option<u16> = |_| None;

/// Every way, to a service on this port that is called llm.example.com behind its proxy.
fn ways(port: u16) -> Vec<Way> {
    let own = format!("127.0.0.1:{port}");
    let way = |name, headers: &[(&'static str, &str)], refused| -> Way {
        let headers = headers.iter().map(|(name, value)| (*name, value.replace("OWN", &own)));
        (name, headers.map(|(name, value)| (name, value.replace("PORT", &port.to_string()))).collect(), refused)
    };
    let (host, evil) = (("host", "OWN"), ("origin", "http://evil.test"));
    let site = |site| ("sec-fetch-site", site);
    let (navigate, no_cors) = (("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "no-cors"));
    let dest = |dest| ("sec-fetch-dest", dest);
    let json = ("content-type", "application/json");
    let link =
        |asks: Asks<'_>| (asks.face != Some(Audience::Open) || !["GET", "HEAD"].contains(&asks.method)).then_some(403);
    // What is the same for everybody is asked so by balancers, with HTTP/1.0.
    let no_host =
        |asks: Asks<'_>| (asks.face != Some(Audience::Open) || !["GET", "HEAD"].contains(&asks.method)).then_some(400);
    let kind = |asks: Asks<'_>| (!asks.reads()).then_some(415);
    vec![
        way("a program by address", &[host], IN),
        way("a program by name", &[("host", "localhost:PORT")], IN),
        way("a program that sends JSON", &[host, json], IN),
        way("the dashboard's own page", &[host, ("origin", "http://OWN"), site("same-origin"), json], IN),
        way("an address that is typed in", &[host, site("none"), navigate, dest("document")], IN),
        way(
            "a proxy that hands on the name",
            &[("host", "llm.example.com"), ("origin", "https://llm.example.com")],
            IN,
        ),
        way("a proxy that asks by address", &[host, ("origin", "https://llm.example.com"), site("same-origin")], IN),
        way("a link of another site", &[host, site("cross-site"), navigate, dest("document")], link),
        way("a link of the same site", &[host, site("same-site"), navigate, dest("document")], link),
        way("a frame of another site", &[host, site("cross-site"), navigate, dest("iframe")], |_| Some(403)),
        way("a fetch of another site", &[host, evil, site("cross-site"), no_cors, json], |_| Some(403)),
        way("an image of another site", &[host, site("cross-site"), no_cors, dest("image")], |_| Some(403)),
        way("an image of the same site", &[host, site("same-site"), no_cors, dest("image")], |_| Some(403)),
        way("another site's page", &[host, evil], |_| Some(403)),
        way("another port's page", &[host, ("origin", "http://127.0.0.1:1")], |_| Some(403)),
        way("another name's page", &[host, ("origin", "http://localhost:PORT")], |_| Some(403)),
        way("a page without an origin", &[host, ("origin", "null")], |_| Some(403)),
        way("two origins", &[host, ("origin", "http://OWN"), ("origin", "http://OWN")], |_| Some(403)),
        way("a name made to lead here", &[("host", "evil.test:PORT"), ("origin", "http://evil.test:PORT")], |_| {
            Some(421)
        }),
        way("a name made to lead here, silent", &[("host", "evil.test:PORT")], |_| Some(421)),
        way("the address of everywhere", &[("host", "0.0.0.0:PORT")], |_| Some(421)),
        way("text", &[host, ("content-type", "text/plain;charset=UTF-8")], kind),
        way("a form", &[host, ("content-type", "application/x-www-form-urlencoded")], kind),
        way("a form with files", &[host, ("content-type", "multipart/form-data; boundary=x")], kind),
        way("no host", &[], no_host),
        way("two hosts", &[host, ("host", "localhost")], |_| Some(400)),
        way("no name at all", &[("host", "")], |_| Some(400)),
    ]
}

fn write(name: &str, text: &str) -> String {
    std::fs::write(file(name), text).unwrap();
    file(name).display().to_string()
}

const SIM: &str = "sim: {first_token_us: 0, token_us: 0, preload_us: 0}";

fn port_of_operators(service: &Service) -> u16 {
    let address = service.greeting.split("dashboard: http://127.0.0.1:").nth(1).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

fn refusals(port: u16) -> u64 {
    let (_, _, metrics) = exchange(port, "GET", "/metrics", &[], b"");
    let lines = metrics.lines().filter(|line| line.starts_with("http_requests_refused_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn no_page_but_the_services_own_gets_to_any_route() {
    let text = format!("pools: [{{id: a, engine: sim, model: m, {SIM}}}]\nhttp: {{hosts: [llm.example.com]}}\n");
    let service = Service::start(&["--config", &write("pages.yaml", &text), "--admin-listen", "127.0.0.1:0"]);
    let operators = port_of_operators(&service);
    let mut asked: Vec<(String, String, Option<Audience>)> = Vec::new();
    for route in routes() {
        let path = route.path.replace("{id}", "nobody").replace("{pool}", "nobody").replace("{file}", "base.js");
        asked.extend(route.needs.iter().map(|(method, _)| (method.to_string(), path.clone(), Some(route.face))));
        asked.push(("OPTIONS".into(), path.clone(), Some(route.face)));
        asked.push(("FOO".into(), path, Some(route.face)));
    }
    asked.extend(["GET", "POST"].map(|method| (method.to_owned(), "/no/such/path".to_owned(), None)));
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for (port, other) in [(service.port, Audience::Operator), (operators, Audience::Public)] {
        for (name, headers, wanted) in ways(port) {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for (method, path, face) in &asked {
                let face = face.filter(|face| *face != other); // What the other listener has is not known here.
                let (status, head, body) = ask(port, method, path, &headers, "");
                let (got, wanted) = (refused(status, &body), wanted(Asks { method, face }));
                assert_eq!(got, wanted, "{name}: {method} {path} on {port}: {status} {body}");
                counts.entry(name).or_default()[usize::from(got.is_some())] += 1;
                for line in ["x-frame-options: DENY", "cross-origin-resource-policy: same-origin", "vary: origin"] {
                    assert!(head.contains(line), "{line} in {head}");
                }
                assert!(head.contains("frame-ancestors 'none'"), "{head}");
                assert!(!head.contains("access-control-allow"), "{head}");
            }
        }
    }
    println!("{:34} {:>6} {:>7}", "who asks", "served", "refused");
    counts.iter().for_each(|(name, [served, refused])| println!("{name:34} {served:>6} {refused:>7}"));
    assert_eq!(refusals(operators), counts.values().map(|[_, refused]| refused).sum::<u64>(), "each is counted");
}

#[test]
fn where_keys_are_wanted_a_page_is_refused_before_its_key_is_looked_at() {
    let file = keys("pages.json");
    let admin = bearer(&key(&file, "root", "admin", &[]));
    let service = guarded("pages-keys.yaml", &file, ", failures_burst: 1000000");
    let own = format!("127.0.0.1:{}", service.port);
    let get = |headers: &[(&str, &str)]| ask(service.port, "GET", "/v1/config", headers, "").0;
    assert_eq!(get(&[("host", &own), ("authorization", &admin)]), 200);
    assert_eq!(get(&[("host", &own)]), 401);
    for key in [admin.as_str(), "Bearer oc_wrong", ""] {
        let key = ("authorization", key);
        assert_eq!(get(&[("host", &own), ("origin", "http://evil.test"), key]), 403);
        assert_eq!(get(&[("host", &own), ("sec-fetch-site", "cross-site"), key]), 403);
        assert_eq!(get(&[("host", "evil.test"), key]), 421);
        let text = [("host", own.as_str()), ("content-type", "text/plain"), key];
        assert_eq!(ask(service.port, "POST", "/v1/tasks", &text, "{}").0, 415);
    }
}

#[test]
fn lines_about_refusals_are_bounded_and_say_how_many_were_left_out() {
    let service = Service::start(&[]);
    let long = "x.".repeat(120) + "test";
    let refuse = || assert_eq!(ask(service.port, "GET", "/", &[("host", &long)], "").0, 421);
    let began = std::time::Instant::now();
    (0..300).for_each(|_| refuse());
    let seconds = began.elapsed().as_secs() as usize;
    while service.log().matches("request_refused").count() < 10 {}
    assert!(service.log().matches("request_refused").count() <= 11 + seconds, "{}", service.log());
    let said = |log: &str| {
        let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
        log.split("suppressed=").skip(1).filter_map(|rest| digits(rest).parse::<u64>().ok()).sum::<u64>()
    };
    while said(&service.log()) == 0 {
        refuse();
    }
    assert!(refusals(service.port) >= 300, "each is counted");
    let log = service.stop_and_log();
    let line = log.lines().find(|line| line.contains("request_refused")).unwrap();
    assert!(line.contains("unknown_host") && line.len() < 500, "{line}");
}

#[test]
fn names_of_an_address_that_others_can_reach_are_configured_or_any_where_keys_are_wanted() {
    let pools = format!("pools: [{{id: a, engine: sim, model: m, {SIM}}}]\n");
    let config = write("names.yaml", &pools);
    let start = |config: &str| Service::start(&["--config", config, "--listen", "0.0.0.0:0", "--insecure"]);
    let status = |service: &Service, host: &str| ask(service.port, "GET", "/healthz", &[("host", host)], "").0;
    let open = start(&config);
    for (host, wanted) in [("localhost", 200), ("10.1.2.3:7700", 200), ("[2001:db8::1]", 200), ("gpu-1", 421)] {
        assert_eq!(status(&open, host), wanted, "{host}");
    }
    // Names are followed while it serves.
    let named = format!("{pools}http: {{hosts: [\"*.example.com\", gpu-1]}}\n");
    let yaml = [("host", "localhost"), ("content-type", "application/yaml")];
    let (code, _, body) = ask(open.port, "POST", "/v1/config", &yaml, &named);
    assert_eq!(code, 200, "{body}");
    for (host, wanted) in [("gpu-1:80", 200), ("GPU-1", 200), ("a.example.com", 200), ("example.com", 421)] {
        assert_eq!(status(&open, host), wanted, "{host}");
    }
    let (code, _, body) = ask(open.port, "POST", "/v1/config", &yaml, &named.replace("gpu-1", "\"http://gpu-1\""));
    assert!(code == 400 && body.contains("http.hosts[1]"), "{body}");
    let file = keys("names.json");
    let with_keys = start(&write("names-keys.yaml", &format!("{pools}access: {{keys_file: {file:?}}}\n")));
    assert_eq!(status(&with_keys, "any.name.test"), 200);
    let origin = [("host", "any.name.test"), ("origin", "http://evil.test")];
    assert_eq!(ask(with_keys.port, "GET", "/healthz", &origin, "").0, 403, "a page is another's all the same");
}

#[test]
fn who_has_no_key_makes_the_service_run_and_load_nothing() {
    let text = |slots: u32, command: &str, more: &str| {
        format!(
            "pools:\n  - {{id: a, engine: sim, model: m, slots: {slots}, {SIM}}}\n  - {{id: run, engine: llamacpp, \
             model: n, command: [{command}, --port, \"{{port}}\", \"{{model}}\"], \
             replicas: [{{devices: [1]}}]}}\n{more}"
        )
    };
    let nowhere = "/nowhere/llama-server";
    let config = write("runs.yaml", &text(1, nowhere, ""));
    let service = Service::start(&["--config", &config]);
    let own = format!("127.0.0.1:{}", service.port);
    let post = |path: &str, body: &str| {
        let kind = if path.starts_with("/v1/config?") || path == "/v1/config" { "yaml" } else { "json" };
        let kind = format!("application/{kind}");
        ask(service.port, "POST", path, &[("host", &own), ("content-type", &kind)], body)
    };
    let pool = |more: &str| format!("  - {{id: b, engine: openai, model: o, replicas: [{{devices: [2]}}], {more}}}\n");
    for wrong in [
        text(1, "touch", ""),
        text(1, nowhere, &pool("command: [touch, \"{port}\"]")),
        text(1, nowhere, &pool("url: \"http://127.0.0.1:1\", api_key_env: PWD")),
        text(1, nowhere, "gpu: {library: /tmp/library.so}\n"),
    ] {
        for path in ["/v1/config", "/v1/config?dry_run=true"] {
            let (status, _, body) = post(path, &wrong);
            assert!(status == 403 && body.contains("configuration file"), "{path} {status} {body}\n{wrong}");
        }
    }
    assert_eq!(refusals(service.port), 8);
    // What is in force already stays, and the rest is changed.
    let (status, _, body) = post("/v1/config", &text(2, nowhere, &pool("url: \"http://127.0.0.1:1\"")));
    assert_eq!(status, 200, "{body}");
    let (status, _, body) = post("/v1/config/rollback", "");
    assert_eq!(status, 200, "{body}");
    // The file may say what it likes.
    write("runs.yaml", &text(3, "/nowhere/else", ""));
    service.signal("-HUP");
    while !exchange(service.port, "GET", "/v1/config", &[], b"").2.contains("/nowhere/else") {}
    // A model that is filled into a command is a word.
    for model in ["--trust-remote-code", "../x", "a b", "$(id)"] {
        let (status, _, body) = post("/v1/pools/run/reload", &format!("{{\"model\":\"{model}\"}}"));
        assert!(status == 403 && body.contains("field 'model'"), "{status} {body}");
    }
    assert_ne!(post("/v1/pools/run/reload", "{\"model\":\"org/name-7b\"}").0, 403);
}

#[test]
fn who_has_an_admins_key_may_send_commands() {
    let file = keys("runs.json");
    let admin = bearer(&key(&file, "root", "admin", &[]));
    let service = guarded("runs-keys.yaml", &file, "");
    let text = std::fs::read_to_string(super::file("runs-keys.yaml")).unwrap();
    let pool = "  - {id: c, engine: llamacpp, model: o, command: [/nowhere/x, \"{port}\"]}\naccess:";
    let headers = [("host", "localhost"), ("authorization", &*admin), ("content-type", "application/yaml")];
    let (status, _, body) = ask(service.port, "POST", "/v1/config", &headers, &text.replace("access:", pool));
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"added\":[\"c\"]"), "{body}");
}
