//! A process that stands still for a while, stopped by a signal or with its host, does not take that time for its
//! engines' silence (ORCH-3016).

use std::time::Duration;

use serde_json::Value;

use super::write;
use crate::support::fakes::Kind;
use crate::support::scripted::Scripted;
use crate::support::{Service, alone, eventually, exchange};

/// Tokens of each task, and the time between two. Together that is more than the stop takes.
const TOKENS: u32 = 40;
const PACE: Duration = Duration::from_millis(100);
const CLIENTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_stopped_for_longer_than_the_idle_timeout_ends_no_stream() {
    let _alone = alone().await;
    let server = Scripted::start().await;
    server.describe("", Kind::OpenAi, "m", 4096);
    server.say("", Kind::OpenAi, "w", PACE);
    let pool = format!("id: p, engine: openai, model: m, url: {:?}, slots: 4, self_test: false", server.url());
    let config = write(
        "standing-still.yaml",
        &format!("pools: [{{{pool}, timeouts: {{idle_ms: 1000}}}}]\ngpu: {{driver: 'off'}}\n"),
    );
    let service = Service::start(&["--config", &config]);
    let port = service.port;
    while exchange(port, "GET", "/readyz", &[], b"").0 != 200 {}
    let client = |number: usize| {
        let body = format!("{{\"prompt\":\"p{number}\",\"max_tokens\":{TOKENS}}}");
        let accept = [("accept", "text/event-stream")];
        tokio::task::spawn_blocking(move || exchange(port, "POST", "/v1/tasks", &accept, body.as_bytes()))
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    eventually("all run", || server.asked("/v1/completions").len() == CLIENTS).await;
    tokio::time::sleep(PACE * 10).await;
    service.signal("-STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    service.signal("-CONT");
    for client in clients {
        let (status, _, events) = client.await.unwrap();
        assert_eq!(status, 200, "{events}");
        let count = |kind: &str| events.matches(&format!("event: {kind}\n")).count();
        assert_eq!((count("started"), count("token"), count("end")), (1, TOKENS as usize, 1), "{events}");
        assert!(events.contains("\"attempts\":1"), "{events}");
    }
    let pools: Value = serde_json::from_str(&exchange(port, "GET", "/v1/pools", &[], b"").2).unwrap();
    let replica = &pools[0]["replicas"][0];
    assert_eq!((&replica["attempts_failed"], &replica["deaths"]), (&serde_json::json!({}), &serde_json::json!({})));
    assert_eq!(replica["restarts"], 0, "{replica}");
    assert_eq!(server.asked("/v1/completions").len(), CLIENTS, "each was asked for once");
}
