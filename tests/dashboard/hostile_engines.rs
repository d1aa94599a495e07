//! Engines that answer in the right shape with words of any length and any character in any field: what they say is
//! seen everywhere, and everything stays whole and small: the log, `/metrics`, the overview, `top`, and the dashboard
//! in a real browser.

use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Browser, READY};
use crate::support::fakes::{KINDS, Kind, Server, Twist};
use crate::support::{Service, exchange};

/// Servers of each kind, each hostile in its own way.
const OF_EACH_KIND: usize = 14;
/// Characters of the longest word of an engine in a view, with what says how much was cut, and what is said around it.
const WORDS_MAX: usize = 2_200;
/// Most bytes of a line of the log.
const LINE_MAX: usize = 4_096;
/// Most bytes of what is shown of a pool, and of its metrics.
const POOL_MAX: usize = 16 * 1024;
const METRICS_MAX: usize = 24 * 1024;
/// Most bytes that the log has for each pool: some lines for each start of its engine, and for each task.
const LOG_MAX: usize = 16 * 1024;

/// Characters of `words` are of these: all that control, end lines or turn the direction, and some that mean something
/// to somebody.
fn characters() -> Vec<char> {
    let controls = (0..=0x9f_u8).map(char::from).filter(|c| c.is_control());
    let others = "\u{2028}\u{2029}\u{202e}\u{2066}\u{feff}E\"\\<>{}'`$%&#=,".chars();
    controls.chain(others).collect()
}

/// Words of this length, which begin with a line of a log, a metric or a page.
fn words(random: &mut fastrand::Rng, length: usize) -> String {
    let begin = random.choice([
        "\n2026-01-01T00:00:00Z ERROR forged: line",
        "\r\n# HELP forged x\nforged{pool=\"x\"} 1\n",
        "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>",
        "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m",
        "",
    ]);
    let characters = characters();
    let tail = std::iter::repeat_with(|| *random.choice(&characters).unwrap());
    begin.unwrap().chars().chain(tail).take(length).collect()
}

/// Gives the leaf of this number another value; the number wraps.
fn replace(value: &mut Value, at: usize, with: &Value) {
    fn leaves(value: &Value) -> usize {
        match value {
            Value::Array(all) => all.iter().map(leaves).sum(),
            Value::Object(all) => all.values().map(leaves).sum(),
            _ => 1,
        }
    }
    fn go(value: &mut Value, at: &mut usize, with: &Value) {
        match value {
            Value::Array(all) => all.iter_mut().for_each(|value| go(value, at, with)),
            Value::Object(all) => all.values_mut().for_each(|value| go(value, at, with)),
            leaf => {
                if *at == 0 {
                    *leaf = with.clone();
                }
                *at = at.wrapping_sub(1);
            }
        }
    }
    let count = leaves(value).max(1);
    go(value, &mut (at % count), with);
}

/// The same text with the leaf of this number replaced in each of its JSON objects.
fn twisted(text: &str, at: usize, with: &Value) -> String {
    if let Ok(mut value) = serde_json::from_str::<Value>(text) {
        replace(&mut value, at, with);
        return value.to_string();
    }
    let event = |event: &str| match event.strip_prefix("data: ").map(serde_json::from_str::<Value>) {
        Some(Ok(mut value)) => {
            replace(&mut value, at, with);
            format!("data: {value}\n\n")
        }
        _ => format!("{event}\n\n"),
    };
    text.split_terminator("\n\n").map(event).collect()
}

/// Every answer but those by which a server shows that it lives has one word of this server's in one place; now and
/// then it is an error.
fn twist(random: &mut fastrand::Rng) -> Twist {
    let length = *random.choice(&[0, 1, 127, 128, 129, 300, 301, 4_096, 65_536, 1_000_000, 3_000_000]).unwrap();
    let word = json!(words(random, length));
    let (at, only) = (random.usize(0..40), random.usize(0..6));
    Arc::new(move |path, text| match (only, path) {
        (0, "event") | (1, "last") => {
            format!("data: {}\n\n", json!({"error": {"message": word, "type": word, "code": 500}}))
        }
        (2, "event") => format!("data: {}\n\n", json!({"error": word, "error_type": word})),
        (3, "event" | "last") | (4, _) => twisted(&text, at, &word),
        (5, path) if path != "event" && path != "last" => twisted(&text, at, &word),
        _ => text,
    })
}

/// No text in it controls anything, ends a line or is long.
fn assert_plain(what: &str, value: &Value) {
    match value {
        Value::String(text) => {
            assert!(text.chars().count() <= WORDS_MAX, "{what}: {} characters", text.chars().count());
            assert!(text.chars().all(orchestrator_core::core::line::is_plain), "{what}: {text:?}");
        }
        Value::Array(all) => all.iter().for_each(|value| assert_plain(what, value)),
        Value::Object(all) => all.iter().for_each(|(name, value)| assert_plain(&format!("{what}.{name}"), value)),
        _ => {}
    }
}

fn start(servers: &[(String, Arc<Server>)]) -> Service {
    let pool = |(id, server): &(String, Arc<Server>)| {
        let (engine, port) = (server.kind.engine(), server.port);
        format!(
            "  - {{id: {id}, engine: {engine}, model: fake, aliases: [{id}], slots: 2, self_test: false, url: 'http://127.0.0.1:{port}', \
             restart: {{intensity: 2, backoff_ms: 50, backoff_max_ms: 100, breaker_open_ms: 600000}}}}\n"
        )
    };
    let text = format!("http: {{requests_per_s: 100000}}\npools:\n{}", servers.iter().map(pool).collect::<String>());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile.yaml");
    std::fs::write(&path, text).unwrap();
    Service::start(&["--config", &path.display().to_string()])
}

/// Tasks for every pool, until they have ended; what their clients saw is plain and small.
fn run_tasks(service: &Service, servers: &[(String, Arc<Server>)]) -> usize {
    let mut ended = 0;
    for (id, _) in servers {
        for number in 0..2 {
            let body = json!({"prompt": format!("x{number}"), "model_ref": id, "max_tokens": 4, "deadline_ms": 1_500});
            let headers = [("accept", "text/event-stream")];
            let (status, head, said) =
                exchange(service.port, "POST", "/v1/tasks", &headers, body.to_string().as_bytes());
            if status != 200 {
                assert!(said.len() < WORDS_MAX, "{said}");
                continue;
            }
            ended += 1;
            for event in said.split("\n\n").filter(|event| !event.contains("event: token")) {
                assert!(event.len() < LINE_MAX, "{} bytes of {}", event.len(), &event[..100]);
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                data.iter().for_each(|data| assert_plain("event", &serde_json::from_str(data).unwrap()));
            }
            let task = head.lines().find_map(|line| line.strip_prefix("x-task-id: ")).unwrap().to_owned();
            let (_, _, view) = exchange(service.port, "GET", &format!("/v1/tasks/{task}"), &[], b"");
            assert_plain("task", &serde_json::from_str(&view).unwrap());
        }
    }
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_engines_say_is_shown_everywhere_and_everything_stays_whole() {
    let mut random = fastrand::Rng::with_seed(17);
    let mut servers = Vec::new();
    for kind in KINDS {
        for number in 0..OF_EACH_KIND {
            let server = Server::start(kind).await;
            *server.twist.lock() = Some(twist(&mut random));
            servers.push((format!("{}-{number}", kind.engine()), server));
        }
    }
    let browser = tokio::task::block_in_place(Browser::start);
    let service = start(&servers);
    let pools = servers.len();
    tokio::task::block_in_place(|| {
        let ended: usize = std::thread::scope(|scope| {
            let parts = servers.chunks(pools / 5).map(|part| scope.spawn(|| run_tasks(&service, part)));
            parts.collect::<Vec<_>>().into_iter().map(|part| part.join().unwrap()).sum()
        });
        assert!(ended > pools / 2, "{ended} tasks ran");
        let get = |path: &str| exchange(service.port, "GET", path, &[], b"").2;
        for path in ["/v1/pools", "/v1/overview"] {
            let text = get(path);
            assert!(text.len() < pools * POOL_MAX, "{path} has {} bytes", text.len());
            assert_plain(path, &serde_json::from_str(&text).unwrap());
        }
        let metrics = get("/metrics");
        assert!(metrics.len() < pools * METRICS_MAX, "/metrics has {} bytes", metrics.len());
        assert!(!metrics.lines().any(|line| line.starts_with("forged")), "no series is anybody else's");
        let url = format!("http://127.0.0.1:{}", service.port);
        let top =
            Command::new(crate::support::orchestratord()).args(["top", "--once", "--url", &url]).output().unwrap();
        let shown = String::from_utf8(top.stdout).unwrap();
        assert!(top.status.success() && shown.lines().count() > 10, "{:?} {shown}", top.status);
        assert!(shown.chars().all(|c| c == '\n' || orchestrator_core::core::line::is_plain(c)), "{shown:?}");
        if let Some(browser) = &browser {
            browser.open(&format!("{url}/"));
            browser.until(READY, |shown| shown.as_u64() == Some(pools as u64));
            assert_eq!(browser.run("return window.hacked === undefined"), true, "no word became a part of the page");
            let size = browser.run("return document.body.innerText.length").as_u64().unwrap() as usize;
            assert!(size < pools * POOL_MAX, "{size} characters");
            assert_eq!(browser.complaints(), Vec::<String>::new());
        }
        println!(
            "{pools} hostile engines, {ended} tasks: /metrics {} bytes a pool, log {} bytes a pool",
            metrics.len() / pools,
            service.log().len() / pools
        );
    });
    let log = tokio::task::block_in_place(|| service.stop_and_log());
    assert!(log.len() < pools * LOG_MAX, "{} bytes of log", log.len());
    for line in log.lines() {
        assert!(line.len() < LINE_MAX, "{} bytes: {}", line.len(), &line.chars().take(200).collect::<String>());
        assert!(line.starts_with("20") && line.chars().all(orchestrator_core::core::line::is_plain), "{line:?}");
    }
    servers.iter().for_each(|(_, server)| server.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_controls_no_terminal_and_a_pipe_gets_it_as_it_is() {
    const TOKEN: &str = "\u{1b}[31mred\u{1b}]52;c;eA==\u{7}\u{9b}2J\ttab\n";
    let server = Server::start(Kind::OpenAi).await;
    let event = json!({"choices": [{"index": 0, "text": TOKEN}]});
    *server.twist.lock() = Some(Arc::new(move |path, text| match path {
        "event" => format!("data: {event}\n\n"),
        _ => text,
    }));
    let servers = [("a".to_owned(), server)];
    let service = start(&servers);
    let binary = crate::support::orchestratord();
    let submit = format!("{binary} submit --url http://127.0.0.1:{} --model fake --max-tokens 1 x", service.port);
    let output = |command: &mut Command| tokio::task::block_in_place(|| command.output().unwrap());
    let piped = output(Command::new("sh").args(["-c", &format!("until {submit}; do :; done 2>/dev/null")]));
    assert!(String::from_utf8(piped.stdout).unwrap().ends_with(&format!("{TOKEN}\n")));
    // `script` gives it a terminal, and says what that gets.
    let shown = output(Command::new("script").args(["-qec", &submit, "/dev/null"]).stdin(std::process::Stdio::null()));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("\\x1b[31mred\\x1b]52;c;eA==\\x07\\u{9b}2J\ttab\r\n"), "{shown:?}");
    servers[0].1.stop();
}
