//! The dashboard in a real browser: Debian's Chromium, driven over WebDriver. What it shows is what `/metrics` says.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "dashboard/foreign_pages.rs"]
mod foreign_pages;
#[path = "dashboard/hostile_engines.rs"]
mod hostile_engines;

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Alone, Service, alone_blocking, exchange};

/// A browser with one window; `None` where there is none and none must be.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _alone: Alone,
}

impl Browser {
    fn start() -> Option<Browser> {
        Browser::start_with(&[])
    }

    /// One with more arguments than the others.
    fn start_with(more: &[&str]) -> Option<Browser> {
        let alone = alone_blocking();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(driver) = driver else {
            assert!(std::env::var_os("REQUIRE_BROWSER").is_none(), "chromedriver must be there");
            println!("SKIPPED: there is no chromedriver on this machine (Debian: chromium chromium-driver)");
            return None;
        };
        let mut browser = Browser { driver, port, session: String::new(), _alone: alone };
        while !browser.is_listening() {}
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1440,1800",
            "--js-flags=--expose-gc",
            "--enable-precise-memory-info",
        ];
        let arguments = [arguments.as_slice(), more].concat();
        let options = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let answer = browser.call("POST", "/session", &options);
        browser.session = answer["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}")).to_owned();
        Some(browser)
    }

    fn is_listening(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let answer = said(self.port, method, path, &body);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{method} {path}: {answer}"));
        answer["value"].clone()
    }

    fn command(&self, method: &str, what: &str, body: &Value) -> Value {
        self.call(method, &format!("/session/{}/{what}", self.session), body)
    }

    fn open(&self, url: &str) {
        self.command("POST", "url", &json!({ "url": url }));
    }

    /// The value of a script; it may return a promise.
    fn run(&self, script: &str) -> Value {
        self.command("POST", "execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs a script until it gives what is wanted.
    fn until(&self, script: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..3_000 {
            let value = self.run(script);
            if wanted(&value) {
                return value;
            }
        }
        panic!("it never comes: {script}: {}", self.run(script));
    }

    /// Keeps a picture of the page, if somebody wants to look at it.
    fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("SCREENSHOTS") else { return };
        let text = self.command("GET", "screenshot", &json!({}));
        let path = std::path::Path::new(&folder).join(name);
        std::fs::write(path, decoded(text.as_str().unwrap())).unwrap();
    }

    fn theme(&self, name: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": name }]);
        let parameters = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.command("POST", "goog/cdp/execute", &parameters);
    }

    /// What the browser's console complains about.
    fn complaints(&self) -> Vec<String> {
        let entries = self.command("POST", "se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().into_iter().flatten();
        entries.filter_map(|entry| entry["message"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            self.call("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// An answer of the driver, which keeps its connections open.
fn said(port: u16, method: &str, path: &str, body: &str) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Base64 as WebDriver sends pictures.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u32> = text.bytes().filter_map(digit).map(u32::from).collect();
    let group = |group: &[u32]| {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

/// Two pools, of which one can be made to fail, and a service that knows both.
fn service(name: &str) -> Service {
    let text = "
pools:
  - {id: chat, engine: sim, model: m, slots: 4, replicas: [{devices: [0]}, {devices: [1]}], sim: {first_token_us: 20000, token_us: 2000, preload_us: 0}}
  - {id: frail, engine: sim, model: n, slots: 2, replicas: [{devices: [2]}], self_test: false,
     restart: {intensity: 1, backoff_ms: 10, backoff_max_ms: 10, breaker_open_ms: 600000},
     sim: {first_token_us: 0, token_us: 1000, preload_us: 0, faults: {die_ppm: 1000000}}}
";
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/v1/pools/chat/health", &[], b"").0 != 200 {}
    service
}

fn submit(service: &Service, client: &str, body: &str) -> (u16, String) {
    let headers = [("accept", "text/event-stream"), ("x-client-id", client)];
    let (status, _, body) = exchange(service.port, "POST", "/v1/tasks", &headers, body.as_bytes());
    (status, body)
}

/// One series of `/metrics`.
fn metric(service: &Service, name: &str, labels: &[&str]) -> f64 {
    let (_, _, text) = exchange(service.port, "GET", "/metrics", &[], b"");
    let line = text.lines().find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name} {labels:?} in {text}"))
}

const READY: &str =
    "return document.body.dataset.connection === 'live' && document.querySelectorAll('article.pool').length";

#[test]
fn the_page_shows_what_is_and_a_failing_pool_turns_red() {
    let Some(browser) = Browser::start() else { return };
    let service = service("dashboard.yaml");
    let url = format!("http://127.0.0.1:{}/", service.port);
    browser.open(&url);
    browser.until(READY, |pools| *pools == 2);
    browser.until("return document.querySelector('article.pool[data-pool=chat]').dataset.state", |state| {
        *state == "ready"
    });
    browser.theme("light");
    browser.picture("idle-light.png");
    browser.theme("dark");
    browser.picture("idle-dark.png");

    // A prompt, typed and streamed.
    browser.run(
        "document.querySelector('#prompt').value = 'The sky is'; \
         const model = document.querySelector('#prompt-model'); if (model) model.value = 'm'; \
         document.querySelector('#prompt-max-tokens').value = '24'; document.querySelector('#prompt-submit').click();",
    );
    browser.until("return document.querySelector('#prompt-output').dataset.state", |state| *state == "length");
    let text = browser.run("return document.querySelector('#prompt-output').textContent");
    assert!(text.as_str().is_some_and(|text| text.trim().len() > 20), "{text}");

    // Under load; then the figures of the page are those of /metrics.
    std::thread::scope(|scope| {
        for client in ["alice", "bob", "carol"] {
            let service = &service;
            scope.spawn(move || {
                for number in 0..40 {
                    let class = if number % 4 == 0 { "batch" } else { "interactive" };
                    let body = format!(
                        "{{\"prompt\":\"p{number}\",\"model_ref\":\"m\",\"max_tokens\":40,\"priority\":\"{class}\"}}"
                    );
                    assert_eq!(submit(service, client, &body).0, 200);
                }
            });
        }
        browser.until("return document.querySelectorAll('tr[data-client]').length", |rows| rows.as_u64() >= Some(3));
        browser.picture("load-dark.png");
        browser.theme("light");
        browser.picture("load-light.png");
    });
    let shown = |selector: &str| {
        let script =
            format!("const e = document.querySelector(\"{selector}\"); return e ? Number(e.dataset.value) : null");
        browser.run(&script).as_f64()
    };
    let total = "article.pool[data-pool=chat] [data-metric=completed]";
    browser.until(&format!("return Number(document.querySelector('{total}').dataset.value)"), |done| {
        done.as_f64() >= Some(121.0)
    });
    assert_eq!(shown(total), Some(metric(&service, "tasks_completed_total", &["pool_id=\"chat\""])));
    // Percentiles: everything has ended, and the newest figures are out.
    for (stage, quantile, p) in
        [("first_token", "0.5", "p50"), ("queue", "0.95", "p95"), ("decode", "0.99", "p99"), ("total", "0.5", "p50")]
    {
        let selector = format!(
            "[data-metric=latency][data-pool=chat][data-priority=interactive][data-window=all][data-stage={stage}][data-quantile={p}]"
        );
        let labels =
            ["pool_id=\"chat\"", "priority=\"interactive\"", "window=\"all\"", &format!("quantile=\"{quantile}\"")];
        let wanted = metric(&service, &format!("latency_{stage}_quantile_ms"), &labels);
        let script =
            format!("const e = document.querySelector(\"{selector}\"); return e ? Number(e.dataset.value) : null");
        let value = browser.until(&script, |value| value.as_f64().is_some_and(|value| (value - wanted).abs() < 1e-6));
        println!("{stage} {p}: {value} on the page, {wanted} in /metrics");
    }

    // A pool fails: red, a word, and why.
    assert_eq!(browser.run("return document.querySelector('article.pool[data-pool=frail]').dataset.state"), "ready");
    for _ in 0..3 {
        let _ = submit(&service, "dora", "{\"prompt\":\"x\",\"model_ref\":\"n\",\"max_tokens\":5}");
    }
    let state = "return document.querySelector('article.pool[data-pool=frail]').dataset.state";
    browser.until(state, |state| *state == "broken");
    let words = browser.run("return document.querySelector('article.pool[data-pool=frail]').innerText.toLowerCase()");
    assert!(words.as_str().is_some_and(|words| words.contains("broken")), "{words}");
    let red = browser.run(
        "const pool = document.querySelector('article.pool[data-pool=frail]'); \
         const colours = [pool, ...pool.querySelectorAll('*')].flatMap(e => { const s = getComputedStyle(e); \
           return [s.color, s.backgroundColor, s.borderTopColor, s.borderLeftColor]; }); \
         return colours.some(c => { const canvas = document.createElement('canvas').getContext('2d'); \
           canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; \
           return a > 100 && r > 1.6 * g && r > 1.6 * b && r > 90; })",
    );
    assert_eq!(red, true, "it is red");
    browser.picture("failed-light.png");
    browser.theme("dark");
    browser.picture("failed-dark.png");

    // Its failure is in the list, and leads to the task's timeline.
    browser.until("return document.querySelectorAll('a[href^=\"#task=\"]').length", |links| links.as_u64() > Some(0));
    browser.run("document.querySelector('a[href^=\"#task=\"]').click()");
    browser.until("return document.querySelector('#task-timeline').dataset.task || ''", |task| {
        task.as_str().is_some_and(|task| !task.is_empty())
    });
    let complaints: Vec<String> = browser
        .complaints()
        .into_iter()
        .filter(|line| !line.contains("the server responded with a status of"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn eight_hours_of_history_stay_under_a_hundred_megabytes() {
    let Some(browser) = Browser::start() else { return };
    let service = service("history.yaml");
    browser.open(&format!("http://127.0.0.1:{}/dashboard", service.port));
    browser.until(READY, |pools| *pools == 2);
    let script = "
        const dashboard = window.orchestratorDashboard; dashboard.pause();
        const seen = await (await fetch('/v1/overview')).json();
        const text = JSON.stringify(seen), pools = [...Array(8).keys()];
        const start = seen.at_ms + 10_000_000;
        for (let second = 0; second < 28800; second++) {
            const one = JSON.parse(text);
            one.at_ms = start + second * 1000; one.uptime_s = second;
            const like = one.pools[0];
            one.pools = pools.map(n => ({ ...structuredClone(like), pool_id: 'p' + n, tokens_per_s: (second * (n + 7)) % 997,
                queue_depth: [(second + n) % 50, n], slots_used: (second + n) % 8 }));
            one.failures = [{ task_id: 't' + second, client_id: 'c', pool_id: 'p1', code: 'WORKER_RESET', message: 'm', ago_ms: 1 }];
            const fed = dashboard.feed(one);
            if (second % 600 === 0) await fed;
        }
        gc(); return performance.memory.usedJSHeapSize / 1e6;";
    browser.command("POST", "timeouts", &json!({ "script": 600_000 }));
    let megabytes = browser.run(&format!("return (async () => {{ {script} }})()"));
    let events = browser.run("return window.orchestratorDashboard.stats().events");
    assert!(events.as_u64() >= Some(28_800), "{events}");
    println!("eight hours of 8 pools, an event a second: {megabytes} MB of heap");
    assert!(megabytes.as_f64().is_some_and(|megabytes| megabytes < 100.0), "{megabytes}");
}

#[test]
fn where_keys_are_wanted_the_page_asks_for_one() {
    let Some(browser) = Browser::start() else { return };
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    crate::support::owners_alone(folder);
    let (keys, config) = (folder.join("dashboard-keys.json"), folder.join("dashboard-keys.yaml"));
    let _ = std::fs::remove_file(&keys);
    let made = Command::new(crate::support::orchestratord())
        .args(["key", "new", "--client", "ops", "--scopes", "read,submit", "--file"])
        .arg(&keys)
        .output()
        .unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    std::fs::write(&config, format!("pools: [{{id: a, engine: sim, model: m}}]\naccess: {{keys_file: {keys:?}}}\n"))
        .unwrap();
    let service = Service::start(&["--config", &config.display().to_string()]);
    browser.open(&format!("http://127.0.0.1:{}/dashboard", service.port));
    browser.until("return document.body.dataset.connection", |state| *state == "locked");
    browser.picture("locked.png");
    browser.run(&format!(
        "document.querySelector('#key-input').value = '{key}'; document.querySelector('#key-submit').click()"
    ));
    browser.until(READY, |pools| *pools == 1);
    let kept = browser.run("return JSON.stringify({...localStorage}) + document.cookie");
    assert!(!kept.as_str().unwrap().contains(&key[16..]), "the key is not kept beyond the tab: {kept}");
}
