//! What the process writes into its log.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// The fields of ORCH-3027.
const FIELDS: [&str; 20] = [
    "job_id",
    "session_id",
    "client_id",
    "engine",
    "pool_id",
    "replica_id",
    "model_id",
    "quant",
    "ctx",
    "tensor_split",
    "engine_version",
    "sampler_profile_version",
    "kv_warmth",
    "queue_time_ms",
    "decode_time_ms",
    "tokens_in",
    "tokens_out",
    "eviction_events",
    "oom_events",
    "driver_reset_events",
];

#[test]
fn a_task_ends_with_one_log_line_that_has_every_required_field() {
    let mut child = Command::new(crate::support::orchestratord())
        .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let listening = lines.map(Result::unwrap).find(|line| line.starts_with("listening")).unwrap();
    let port = listening.rsplit(':').next().unwrap().parse().unwrap();
    let task = "{\"prompt\":\"secret prompt\",\"max_tokens\":3,\"task_id\":\"job-1\",\"session_id\":\"s-1\"}";
    super::stream(port, task);
    let log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = log.into_iter().find(|line| line.contains("task ended")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let event = super::json(&line);
    for field in FIELDS {
        assert!(!event[field].is_null(), "{field} in {line}");
    }
    let text = |field: &str| event[field].as_str().unwrap().to_owned();
    assert_eq!([text("job_id"), text("session_id"), text("client_id")], ["job-1", "s-1", "anonymous"]);
    assert_eq!(event["tokens_out"].as_u64(), Some(3));
    // Whichever of the two was loaded first.
    assert!(["demo/0", "demo/1"].contains(&text("replica_id").as_str()), "{line}");
    assert!(!line.contains("secret"), "prompts are never logged");
}
