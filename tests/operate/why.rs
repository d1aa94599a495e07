//! Why a pool is not Ready is said at once, and not when its load has had its time; and every part of a URL is used
//! or refused.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guest::Guest;
use super::{file, orchestratord, write};
use crate::support::alone;
use crate::support::fakes::Kind;
use crate::support::scripted::{Scripted, say};

/// Longest time until a reason is said: two seconds, and two more for a busy machine. A load may take two minutes.
const SOON: Duration = Duration::from_secs(4);

/// A service with one pool, begun by a shell, and its log.
struct Begun {
    guest: Guest,
    log: PathBuf,
    at: Instant,
}

/// Starts a service with this pool at `url`; `more` are further fields, each behind a comma.
fn begin(name: &str, url: &str, more: &str, key: &str) -> Begun {
    let pool = format!("pools: [{{id: p, engine: openai, model: m, url: {url:?}{more}}}]\n");
    let config = write(&format!("why-{name}.yaml"), &(pool + "gpu: {driver: 'off'}\n"));
    let log = file(&format!("why-{name}.log"));
    let stderr = std::fs::File::create(&log).unwrap();
    let script = format!("ENGINE_KEY='{key}'; export ENGINE_KEY; exec \"$@\"");
    let guest = Guest::start(&script, stderr.into(), &["--config", &config]);
    Begun { guest, log, at: Instant::now() }
}

impl Begun {
    fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn reason(&self) -> String {
        let overview: Value = serde_json::from_str(&self.guest.get("/v1/overview").1).unwrap();
        overview["pools"][0]["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the pool's reason and the log have all of these words.
    async fn until_said(&self, words: &[&str]) {
        loop {
            let (reason, log) = (self.reason(), self.logged());
            if words.iter().all(|word| reason.contains(word) && log.contains(word)) {
                return;
            }
            assert!(self.at.elapsed() < SOON, "not all of {words:?} in the reason {reason:?} and the log {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_ready(&self) {
        while self.guest.get("/readyz").0 != 200 {
            assert!(self.at.elapsed() < SOON * 5, "not Ready: {}", self.reason());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_heard_of_an_engine_that_is_not_ready_is_the_reason_at_once() {
    let _alone = alone().await;
    let server = Scripted::start().await;
    server.be("", Kind::OpenAi, "m", 4096);
    let locked = json!({"error": {"message": "Incorrect API key provided"}}).to_string();
    server.gives("/locked/v1/models", "401 Unauthorized", "", locked);
    let elsewhere = "location: https://engine.example/\r\n";
    server.gives("/moved/v1/models", "301 Moved Permanently", elsewhere, String::new());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, nobody, unknown) =
        (free.to_string(), format!("http://{free}"), "http://engine.invalid:80".to_owned());
    let cases: [(&str, String, &[&str]); 5] = [
        ("locked", server.url() + "/locked", &["401", "Incorrect API key provided"]),
        ("twice", server.url() + "/v1", &["404", "/v1/models"]),
        ("nobody", nobody, &["refused", &address]),
        ("unknown", unknown, &["engine.invalid"]),
        ("moved", server.url() + "/moved", &["301", "https://engine.example/"]),
    ];
    for (name, url, words) in cases {
        let begun = begin(name, &url, "", "");
        begun.until_said(words).await;
        assert_eq!(begun.guest.get("/readyz").0, 503, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_stand_in_a_header_is_the_reason_at_once_and_is_not_shown() {
    let _alone = alone().await;
    let server = Scripted::start().await;
    server.be("", Kind::OpenAi, "m", 4096);
    let begun = begin("key", &server.url(), ", api_key_env: ENGINE_KEY", "s3cr3t\n");
    begun.until_said(&["ENGINE_KEY", "character 7", "line feed"]).await;
    assert!(!begun.reason().contains("s3cr3t") && !begun.logged().contains("s3cr3t"));
    assert!(server.asked_at_all().is_empty(), "nothing is sent with half a key");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_password_and_query_of_a_url_are_sent_and_not_shown() {
    let _alone = alone().await;
    let server = Scripted::start().await;
    server.on("*", |asked, reply| async move {
        let may_enter = asked.header("authorization") == Some("Basic dXNlcjpzM2NyM3Q="); // user:s3cr3t
        match (may_enter, asked.target.as_str()) {
            (false, _) => reply.whole("401 Unauthorized", "", "who are you?").await,
            (true, "/openai/v1/models?version=1") => {
                reply.whole("200 OK", "", &json!({"data": [{"id": "m"}]}).to_string()).await
            }
            (true, "/openai/v1/completions?version=1") => say(Kind::OpenAi, "w", Duration::ZERO, &asked, &reply).await,
            _ => reply.whole("404 Not Found", "", "nothing is here").await,
        }
    });
    let url = format!("http://user:s3cr3t@127.0.0.1:{}/openai?version=1", server.port);
    let begun = begin("parts", &url, "", "");
    begun.until_ready().await;
    assert!(begun.guest.task("m", 3), "the path of tasks is below it, too");
    for asked in server.asked_at_all() {
        assert!(asked.target.starts_with("/openai/") && asked.target.ends_with("?version=1"), "{}", asked.target);
        assert_eq!(asked.header("authorization"), Some("Basic dXNlcjpzM2NyM3Q="), "{}", asked.target);
        assert_eq!(asked.header("host"), Some(format!("127.0.0.1:{}", server.port).as_str()), "{}", asked.target);
    }
    assert!(!begun.logged().contains("s3cr3t") && !begun.guest.get("/v1/overview").1.contains("s3cr3t"));
}

#[test]
fn a_url_with_a_part_that_no_request_could_have_is_refused() {
    let check = |url: &str, more: &str| {
        let pool = format!("pools: [{{id: p, engine: openai, model: m, url: {url:?}{more}}}]\n");
        orchestratord(&["check", &write("why-check.yaml", &pool)])
    };
    let (ok, out, err) = check("http://127.0.0.1:8080/openai?version=1", "");
    assert!(ok, "{out}{err}");
    let (ok, _, err) = check("http://127.0.0.1:8080/openai#models", "");
    assert!(!ok && err.contains("pools[0].url") && err.contains("fragment"), "{err}");
    let (ok, _, err) = check("http://user:password@127.0.0.1:8080", ", api_key_env: ENGINE_KEY");
    assert!(!ok && err.contains("api_key_env"), "{err}");
    for url in ["http://127.0.0.1:1/llm?version=1", "http://127.0.0.1:1/llm#top", "http://user@127.0.0.1:1"] {
        let (ok, _, err) = orchestratord(&["submit", "--url", url, "hi"]);
        assert!(!ok && err.contains("--url: "), "{url}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_below_the_path_of_a_proxy_is_asked_below_it() {
    let proxy = Scripted::start().await;
    proxy.on("/llm/v1/tasks", |_, reply| async move {
        reply.begin().await?;
        reply.chunk("event: token\nid: 1\ndata: {\"t\":\"well met\",\"i\":0}\n\n").await?;
        reply.chunk("event: end\nid: 2\ndata: {\"tokens_out\":1,\"finish_reason\":\"length\"}\n\n").await?;
        reply.end().await
    });
    for end in ["/llm", "/llm/"] {
        let (ok, out, err) = orchestratord(&["submit", "--url", &(proxy.url() + end), "hi"]);
        assert!(ok && out.contains("well met"), "{out}{err}");
    }
    let targets: Vec<String> = proxy.asked_at_all().into_iter().map(|asked| asked.target).collect();
    assert_eq!(targets, ["/llm/v1/tasks", "/llm/v1/tasks"]);
}
