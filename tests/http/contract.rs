//! What the API promises: statuses, fields, framing, metrics.

use super::{events, get, json, post, quick_service, stream};
use crate::support::exchange;

const TASK: &str = "{\"prompt\":\"the sky\",\"model_ref\":\"m\",\"max_tokens\":12,\"seed\":3}";

#[test]
fn a_task_is_accepted_streamed_and_looked_at() {
    let service = quick_service("accepted.yaml");
    let (status, _, accepted) = post(service.port, TASK);
    assert_eq!(status, 202);
    for field in ["queue_position", "predicted_start_ms", "backoff_ms"] {
        assert!(accepted[field].is_u64(), "{field} in {accepted}");
    }
    let id = accepted["task_id"].as_str().unwrap();
    let (_, _, body) = exchange(service.port, "GET", &format!("/v1/tasks/{id}/stream"), &[], b"");
    let whole: Vec<_> = events(&body).into_iter().filter(|event| event.1 != "metrics").collect();
    assert_eq!(whole.iter().map(|event| event.0).collect::<Vec<_>>(), (0..14).map(Some).collect::<Vec<_>>());
    let (_, kind, started) = &whole[0];
    assert_eq!(kind, "started");
    let wanted = [
        "task_id",
        "queue_position",
        "predicted_start_ms",
        "engine",
        "engine_version",
        "model_digest",
        "pool_id",
        "replica_id",
        "seed",
        "attempt",
        "kv_warmth",
    ];
    assert_eq!(started.as_object().unwrap().len(), wanted.len());
    assert!(wanted.iter().all(|field| !started[field].is_null()), "{started}");
    for (number, (_, kind, token)) in whole[1..13].iter().enumerate() {
        assert_eq!((kind.as_str(), token["i"].as_u64()), ("token", Some(number as u64)));
        assert!(token["t"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let (_, kind, end) = &whole[13];
    assert_eq!((kind.as_str(), end["finish_reason"].as_str()), ("end", Some("length")));
    for field in ["tokens_in", "tokens_out", "queue_ms", "first_token_ms", "decode_ms", "attempts"] {
        assert!(end[field].is_number(), "{field} in {end}");
    }
    let (status, task) = get(service.port, &format!("/v1/tasks/{id}"));
    assert_eq!((status, task["phase"].as_str(), task["tokens_out"].as_u64()), (200, Some("terminal"), Some(12)));
    // Resumed behind any event, the rest is the same.
    for last in [0, 5, 12, 13] {
        let header = [("last-event-id", &*last.to_string())];
        let (_, _, body) = exchange(service.port, "GET", &format!("/v1/tasks/{id}/stream"), &header, b"");
        let rest: Vec<_> = events(&body).into_iter().filter(|event| event.1 != "metrics").collect();
        assert_eq!(rest, whole[last + 1..], "behind {last}");
    }
}

#[test]
fn the_stream_itself_is_the_answer_where_it_is_asked_for_and_metrics_come_in_between() {
    let service = quick_service("one-trip.yaml");
    let accept = [("accept", "text/event-stream")];
    let slow = "{\"prompt\":\"x\",\"model_ref\":\"n\",\"max_tokens\":10}";
    let (status, head, body) = exchange(service.port, "POST", "/v1/tasks", &accept, slow.as_bytes());
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/event-stream") && head.contains("x-task-id:"), "{head}");
    let events = events(&body);
    let metrics: Vec<_> = events.iter().filter(|event| event.1 == "metrics").collect();
    assert!(!metrics.is_empty());
    for (id, _, data) in metrics {
        assert_eq!(*id, None, "the log has no such event");
        assert!(data["queue_depth"].is_u64() && data["tokens_per_s"].is_f64() && data["kv_warmth"].is_boolean());
    }
    let same = |seed: &str| {
        let body = format!("{{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":8,\"seed\":{seed}}}");
        let tokens = stream(service.port, &body).into_iter().filter(|event| event.1 == "token");
        tokens.map(|event| event.2["t"].as_str().unwrap().to_owned()).collect::<String>()
    };
    assert_eq!(same("5"), same("5"));
    assert_ne!(same("5"), same("6"));
}

#[test]
fn a_full_queue_is_429_with_advice_that_is_computed() {
    let service = quick_service("full.yaml");
    let slow = "{\"prompt\":\"x\",\"model_ref\":\"n\",\"max_tokens\":500}";
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(post(service.port, slow));
    }
    let refused: Vec<_> = answers.iter().filter(|answer| answer.0 == 429).collect();
    assert_eq!(refused.len(), 2, "two run, two wait");
    for (_, head, envelope) in refused {
        assert_eq!(
            (envelope["code"].as_str(), envelope["policy"].as_str()),
            (Some("ADMISSION_REJECT"), Some("reject"))
        );
        assert_eq!(envelope["engine"], "sim");
        let ms = envelope["retry_after_ms"].as_u64().unwrap();
        assert!(ms > 0);
        assert!(head.contains(&format!("retry-after: {}", ms.div_ceil(1000))), "{head}");
        assert!(head.contains(&format!("x-backoff-ms: {ms}")) && head.contains("x-policy: reject"), "{head}");
        assert!(head.contains("x-queue-position: 2"), "{head}");
    }
}

#[test]
fn a_cancel_ends_the_task_and_is_idempotent() {
    let service = quick_service("cancel.yaml");
    let (_, _, accepted) = post(service.port, "{\"prompt\":\"x\",\"model_ref\":\"n\",\"max_tokens\":500}");
    let id = accepted["task_id"].as_str().unwrap();
    for canceled in [true, false] {
        let (status, _, body) = exchange(service.port, "POST", &format!("/v1/tasks/{id}/cancel"), &[], b"");
        let body = json(&body);
        assert_eq!((status, body["canceled"].as_bool()), (200, Some(canceled)), "{body}");
        assert_eq!(body["task"]["end"]["finish_reason"], "canceled");
    }
}

#[test]
fn pools_replica_sets_and_sessions_are_seen() {
    let service = quick_service("views.yaml");
    stream(service.port, "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":2,\"session_id\":\"s\"}");
    let (status, health) = get(service.port, "/v1/pools/a/health");
    assert_eq!((status, health["state"].as_str()), (200, Some("ready")));
    let (_, sets) = get(service.port, "/v1/replicasets");
    let pools: Vec<_> = sets.as_array().unwrap().iter().map(|set| set["pools"].as_array().unwrap().len()).collect();
    assert_eq!(pools, [2, 1], "a and b are one set");
    let (status, session) = get(service.port, "/v1/sessions/s");
    assert_eq!((status, session["tasks"].as_u64()), (200, Some(1)));
    assert_eq!(exchange(service.port, "DELETE", "/v1/sessions/s", &[], b"").0, 204);
    assert_eq!(get(service.port, "/v1/sessions/s").0, 404);
    assert_eq!(exchange(service.port, "GET", "/healthz", &[], b"").0, 200);
    assert_eq!(get(service.port, "/readyz").1["ready"], true);
    // A pool that drains says so, and its sibling takes over.
    assert_eq!(exchange(service.port, "POST", "/v1/pools/a/drain", &[], b"").0, 202);
    assert_eq!(get(service.port, "/v1/pools/a/health").0, 503);
    let events = stream(service.port, "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":2}");
    assert_eq!(events[0].2["pool_id"], "b");
}

#[test]
fn a_pool_is_reloaded_and_taken_back() {
    let service = quick_service("reload.yaml");
    let ended = || loop {
        let (_, pools) = get(service.port, "/v1/pools");
        let reload = pools[0]["reload"].clone();
        if !["rolling", "walking_back"].contains(&reload["state"].as_str().unwrap()) {
            return reload;
        }
    };
    for (body, from, to) in [("{\"model\":\"new\"}", "m", "new"), ("", "new", "new"), ("{\"undo\":true}", "new", "new")]
    {
        let (status, _, answer) = exchange(service.port, "POST", "/v1/pools/a/reload", &[], body.as_bytes());
        let reload = json(&answer)["reload"].clone();
        assert_eq!(
            (status, reload["from"]["model"].as_str(), reload["to"]["model"].as_str()),
            (202, Some(from), Some(to))
        );
        assert_eq!(ended()["state"], "done");
        let events = stream(service.port, &format!("{{\"prompt\":\"x\",\"model_ref\":\"{to}\",\"max_tokens\":2}}"));
        assert_eq!((events[0].2["pool_id"].as_str(), events.last().unwrap().1.as_str()), (Some("a"), "end"));
    }
    let (_, sets) = get(service.port, "/v1/replicasets");
    assert_eq!(sets.as_array().unwrap().len(), 3, "a has left the set of b");
    let metrics = exchange(service.port, "GET", "/metrics", &[], b"").2;
    let done = metrics.lines().find(|line| line.starts_with("pool_reloads_total") && line.contains("outcome=\"done\""));
    assert!(done.is_some_and(|line| line.ends_with(" 3")), "{metrics}");
}

#[test]
fn a_task_explains_why_it_waits_and_a_refused_one_what_refused_it() {
    let config = "pools:\n  - {id: a, engine: sim, model: m, queue: {capacity: 2}, sim: {token_us: 20000}}\n\
                  clients: {bound: {quotas: {queued: 0}}, barred: {pools: []}}\n";
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("explain.yaml");
    std::fs::write(&path, config).unwrap();
    let service = crate::support::Service::start(&["--config", path.to_str().unwrap()]);
    let task = |id: &str| format!("{{\"task_id\":\"{id}\",\"prompt\":\"x\",\"max_tokens\":2000}}");
    assert_eq!(post(service.port, &task("first")).0, 202);
    let runs = || get(service.port, "/v1/tasks/first").1["phase"] == "running";
    while !runs() {}
    for id in ["second", "third"] {
        assert_eq!(post(service.port, &task(id)).0, 202);
    }
    let (status, explained) = get(service.port, "/v1/tasks/third/explain");
    assert_eq!((status, explained["why"].as_str()), (200, Some("1 tasks of client anonymous are before it")));
    let standing = &explained["standing"];
    assert_eq!((standing["lane_ahead"].as_u64(), standing["client_running"].as_u64()), (Some(1), Some(1)));
    assert!(explained["predicted_start_ms"].is_u64(), "{explained}");
    assert_eq!(explained["pools"][0]["replicas"][0]["fit"], "no_free_slot");
    assert_eq!(explained["pools"][0]["why_not"], "its queue is full");
    assert_eq!(post(service.port, &task("fourth")).0, 429);
    let (status, explained) = get(service.port, "/v1/tasks/fourth/explain");
    assert_eq!((status, explained["refusal"]["policy"].as_str()), (200, Some("reject")));
    for (client, status, policy) in [("bound", 429, "quota"), ("barred", 403, "allowed-pools")] {
        let (found, _, body) =
            exchange(service.port, "POST", "/v1/tasks", &[("x-client-id", client)], task("other").as_bytes());
        assert_eq!((found, json(&body)["policy"].as_str()), (status, Some(policy)), "{body}");
    }
    assert_eq!(get(service.port, "/v1/tasks/nobody/explain").0, 404);
    let metrics = exchange(service.port, "GET", "/metrics", &[], b"").2;
    for series in ["policy=\"quota\"} 1", "policy=\"allowed-pools\"} 1", "policy=\"reject\"} 1"] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
}

/// Name, type and labels of the contract (ORCH-3028). Beside these there may be more.
const METRICS: &[(&str, &str, &[&str])] = &[
    ("tasks_enqueued", "counter", &["engine", "engine_version", "pool_id", "replica_id", "priority"]),
    ("tasks_started", "counter", &["engine", "engine_version", "pool_id", "replica_id", "priority"]),
    ("tasks_canceled", "counter", &["engine", "engine_version", "pool_id", "replica_id", "reason"]),
    ("tasks_rejected", "counter", &["engine", "reason"]),
    ("admission_backpressure_events", "counter", &["engine", "policy"]),
    ("tokens_in", "counter", &["engine", "engine_version", "pool_id", "replica_id"]),
    ("tokens_out", "counter", &["engine", "engine_version", "pool_id", "replica_id"]),
    ("queue_depth", "gauge", &["engine", "engine_version", "pool_id", "priority"]),
    ("kv_cache_usage_ratio", "gauge", &["engine", "engine_version", "pool_id", "replica_id"]),
    ("latency_first_token_ms", "histogram", &["engine", "engine_version", "pool_id", "priority"]),
    ("latency_decode_ms", "histogram", &["engine", "engine_version", "pool_id", "priority"]),
];

#[test]
fn the_metrics_have_the_names_types_and_labels_of_the_contract_and_count() {
    let service = quick_service("metrics.yaml");
    for _ in 0..5 {
        stream(service.port, TASK);
        // A stream may end a moment before its slot is free; the next task would then go to the sibling.
        while get(service.port, "/v1/pools/a/health").1["slots_used"] != 0 {}
    }
    let scrape = || exchange(service.port, "GET", "/metrics", &[], b"").2;
    // Percentiles lag a moment, and the KV cache is measured once a second.
    let complete = |text: &str| text.contains("kv_cache_usage_ratio{") && text.contains("latency_decode_ms_count");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut text = scrape();
    while !complete(&text) || !text.contains("first_token_ms_count{engine=\"sim\",engine_version=\"sim-0.1.0\",pool_id=\"a\",priority=\"interactive\"} 5") {
        assert!(std::time::Instant::now() < deadline, "{text}");
        text = scrape();
    }
    for (name, kind, labels) in METRICS {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is a {kind}");
        let begins = |line: &&str| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_"));
        let line =
            text.lines().filter(|line| !line.starts_with('#')).find(begins).unwrap_or_else(|| panic!("no {name}"));
        assert!(labels.iter().all(|label| line.contains(&format!("{label}=\""))), "{labels:?} in {line}");
    }
    let value = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("tokens_out_total{engine=\"sim\",engine_version=\"sim-0.1.0\",pool_id=\"a\""), 60.0);
    assert!(text.ends_with("# EOF\n"));
}
