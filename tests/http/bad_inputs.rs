//! Bad input gets a clear error that says what, where and what would be right, and the service goes on.

use super::{config_file, json, quick_service, stream};
use crate::support::{Service, exchange};

/// Method, path, headers, body; status, code, and a part of the message.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

const TASKS: &str = "/v1/tasks";

const CASES: &[Case<'static>] = &[
    // JSON
    ("POST", TASKS, &[], "", 400, "EOF while parsing a value"),
    ("POST", TASKS, &[], "{", 400, "EOF while parsing an object"),
    ("POST", TASKS, &[], "[1]", 400, "a JSON object is expected"),
    ("POST", TASKS, &[], "\"x\"", 400, "a JSON object is expected"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\"}}", 400, "trailing characters"),
    ("POST", TASKS, &[], "{\"prompt\":\"\\ud800\",\"model_ref\":\"m\"}", 400, "unexpected end of hex escape"),
    // fields
    ("POST", TASKS, &[], "{}", 400, "field 'prompt': it is missing"),
    ("POST", TASKS, &[], "{\"promt\":\"x\"}", 400, "did you mean \"prompt\"?"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"zzz\":1}", 400, "there is task_id, session_id"),
    ("POST", TASKS, &[], "{\"prompt\":7}", 400, "expected a string"),
    ("POST", TASKS, &[], "{\"prompt\":\"\",\"model_ref\":\"m\"}", 400, "field 'prompt': it must not be empty"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"prompt\":\"y\"}", 400, "duplicate field `prompt`"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"priority\":\"urgent\"}", 400, "expected `interactive` or `batch`"),
    ("POST", TASKS, &[], "{\"inputs\":[\"x\"],\"workload\":\"embedding\"}", 400, "field 'workload'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"workload\":\"embedding\"}", 400, "field 'inputs'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"workload\":\"rerank\",\"inputs\":[\"\"]}", 400, "none empty"),
    ("POST", TASKS, &[], "{\"inputs\":[\"x\"]}", 400, "field 'inputs'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"seed\":-1}", 400, "expected u64"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"model_ref\":\"m\",\"seed\":4294967295}", 400, "at most 4294967294"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"parameters\":{\"temprature\":1}}", 400, "did you mean \"temperature\"?"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"parameters\":{\"temperature\":11}}", 400, "'parameters.temperature'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"parameters\":{\"top_p\":0}}", 400, "'parameters.top_p'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"parameters\":{\"stop\":[\"\"]}}", 400, "'parameters.stop'"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"deadline_ms\":0}", 400, "field 'deadline_ms'"),
    // budgets and choices
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"max_tokens\":0}", 400, "field 'max_tokens': it must be at least 1"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":2048}", 400, "leave 2047"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"max_tokens\":4294967296}", 400, "expected u32"),
    (
        "POST",
        TASKS,
        &[],
        "{\"prompt\":\"x\",\"model_ref\":\"n\",\"ctx\":2048}",
        400,
        "context of 1024 tokens, not 2048",
    ),
    ("POST", TASKS, &[], "{\"prompt\":\"x\"}", 400, "several models are served; there is m, n"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"model_ref\":\"gpt\"}", 400, "there is m, n"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"engine\":\"vllm\"}", 400, "there is sim"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"model_ref\":\"m\",\"sampler_profile_version\":\"9\"}", 400, "there is 1"),
    // ids and headers
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"task_id\":\"a b\"}", 400, "field 'task_id': an id has only letters"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"task_id\":\"\"}", 400, "field 'task_id': an id must not be empty"),
    ("POST", TASKS, &[], "{\"prompt\":\"x\",\"session_id\":\"a/b\"}", 400, "field 'session_id'"),
    ("POST", TASKS, &[("x-client-id", "a b")], "{\"prompt\":\"x\"}", 400, "header 'X-Client-Id'"),
    ("GET", "/v1/tasks/nobody", &[], "", 404, "there is no task nobody"),
    ("GET", "/v1/tasks/a%20b", &[], "", 400, "task id in the path"),
    ("GET", "/v1/tasks/nobody/stream", &[], "", 404, "there is no task nobody"),
    ("GET", "/v1/tasks/known/stream", &[("last-event-id", "x")], "", 400, "header 'Last-Event-ID'"),
    ("POST", "/v1/tasks/nobody/cancel", &[], "", 404, "there is no task nobody"),
    ("GET", "/v1/sessions/nobody", &[], "", 404, "there is no session nobody"),
    ("GET", "/v1/pools/nobody/health", &[], "", 404, "there is a, b, c"),
    ("POST", "/v1/pools/nobody/drain", &[], "", 404, "there is no pool nobody"),
    ("POST", "/v1/pools/nobody/reload", &[], "", 404, "there is no pool nobody"),
    ("POST", "/v1/pools/a/reload", &[], "[\"m\"]", 400, "the body is not a reload: a JSON object is expected"),
    ("POST", "/v1/pools/a/reload", &[], "{\"modle\":\"n\"}", 400, "unknown field \"modle\""),
    ("POST", "/v1/pools/a/reload", &[], "{\"model\":\"\"}", 400, "field 'model': it must not be empty"),
    ("POST", "/v1/pools/a/reload", &[], "{\"ctx\":1}", 400, "field 'ctx': it must be from 2"),
    ("POST", "/v1/pools/a/reload", &[], "{\"undo\":true}", 400, "no reload has been completed"),
    ("GET", "/v1/pools/a/reload", &[], "", 405, "does not take GET"),
    // paths and methods
    ("POST", "/", &[], "", 405, "does not take POST"),
    ("GET", "/dashboard/nobody.js", &[], "", 404, "has no file"),
    ("POST", "/v1/config", &[], "pools: 7", 400, "configuration:1:"),
    ("POST", "/v1/config?dry=1", &[], "", 400, "query"),
    ("POST", "/v1/config/rollback", &[], "{\"to\":7}", 400, "configuration 7 is not kept"),
    ("POST", "/v1/rollouts", &[], "{\"from\":\"a\",\"to\":\"zz\"}", 400, "there is no pool zz"),
    ("POST", "/v1/rollouts", &[], "{\"from\":\"a\",\"to\":\"b\"}", 400, "have no alias in common"),
    ("DELETE", "/v1/rollouts/b", &[], "", 404, "there is no rollout"),
    ("GET", "/v2/tasks", &[], "", 404, "there is no path"),
    ("GET", "//v1/tasks/known", &[], "", 404, "there is no path"),
    ("GET", TASKS, &[], "", 405, "does not take GET"),
    ("DELETE", "/v1/tasks/known", &[], "", 405, "does not take DELETE"),
    ("PUT", "/metrics", &[], "", 405, "does not take PUT"),
];

/// The service still takes a task and answers it whole.
fn works(service: &Service) {
    let events = stream(service.port, "{\"prompt\":\"still there?\",\"model_ref\":\"m\",\"max_tokens\":2}");
    assert_eq!(events.last().map(|event| event.1.as_str()), Some("end"));
}

fn check(service: &Service, case: Case<'_>) {
    let (method, path, headers, body, status, part) = case;
    let (got, _, answer) = exchange(service.port, method, path, headers, body.as_bytes());
    let envelope = json(&answer);
    assert_eq!((got, envelope["code"].as_str()), (status, Some("INVALID_PARAMS")), "{case:?}: {answer}");
    assert_eq!(envelope["retriable"], false, "{case:?}");
    let message = envelope["message"].as_str().unwrap();
    assert!(message.contains(part), "{case:?}: {message}");
    works(service);
}

#[test]
fn every_bad_request_has_its_status_code_and_message_and_the_service_works_on() {
    let service = quick_service("bad-requests.yaml");
    stream(service.port, "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":1,\"task_id\":\"known\"}");
    for case in CASES {
        check(&service, *case);
    }
    let deep = "[".repeat(10_000);
    let nested = format!("{{\"parameters\":{}", "{\"stop\":".repeat(10_000));
    check(&service, ("POST", TASKS, &[], &nested, 400, "expected a sequence"));
    check(&service, ("POST", TASKS, &[], &deep, 400, "a JSON object is expected"));
    let prompt = format!("{{\"prompt\":\"{}\",\"model_ref\":\"m\"}}", "x".repeat(5_000));
    check(&service, ("POST", TASKS, &[], &prompt, 400, "5000 bytes, at most 4000"));
    let context = format!("{{\"prompt\":\"{}\",\"model_ref\":\"n\"}}", "x".repeat(3_990));
    check(&service, ("POST", TASKS, &[], &context, 400, "field 'max_tokens': about 998 tokens of prompt leave 26"));
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(200_000));
    check(&service, ("POST", TASKS, &[], &body, 413, "larger than http.body_bytes_max"));
    let id = format!("{{\"prompt\":\"x\",\"task_id\":\"{}\"}}", "x".repeat(129));
    check(&service, ("POST", TASKS, &[], &id, 400, "at most 128 bytes, this one has 129"));
    let other = "{\"prompt\":\"other\",\"model_ref\":\"m\",\"max_tokens\":1,\"task_id\":\"known\"}";
    check(&service, ("POST", TASKS, &[], other, 400, "known is the id of another task"));
    println!("{} bad requests, each answered with its status, code and message", CASES.len() + 7);
}

#[test]
fn bytes_that_are_no_http_close_only_their_connection() {
    use std::io::{Read, Write};
    let service = quick_service("bad-bytes.yaml");
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"POST /v1/tasks HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
    {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", service.port)).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        works(&service);
    }
}

/// Text of a configuration file, and parts of the complaint.
const FILES: &[(&str, &[&str])] = &[
    ("", &["pools: at least one pool is needed"]),
    ("pools: []\n", &["at least one pool is needed"]),
    ("pools: 3\n", &[":1:"]),
    ("pols: []\n", &[":1:1", "did you mean \"pools\"?"]),
    ("pools:\n  - {id: a, engine: sim}\n", &[":2:", "model"]),
    ("pools:\n  - {id: a, engine: sim, model: m,\n     slotz: 4}\n", &[":3:6", "did you mean \"slots\"?"]),
    ("pools:\n  - {id: a, engine: sim, model: m, slots: many}\n", &[":2:"]),
    ("pools:\n  - {id: a, engine: simm, model: m}\n", &["did you mean \"sim\"?"]),
    ("pools:\n  - {id: a, engine: sim, model: m, slots: 0}\n", &["pools[0].slots", "from 1 to 1024"]),
    ("pools:\n  - {id: 'a b', engine: sim, model: m}\n", &["pools[0].id"]),
    ("pools:\n  - {id: a, engine: sim, model: m}\n  - {id: a, engine: sim, model: m}\n", &["used twice"]),
    ("pools:\n  - {id: a, engine: sim, model: m, queue: {full_policy: lifo}}\n", &["lifo", "drop-lru"]),
    ("pools:\n  - {id: a, engine: sim, model: m, replicas: []}\n", &["pools[0].replicas"]),
    (
        "pools:\n  - {id: a, engine: sim, model: m, devices: [0], replicas: [{devices: [1]}]}\n",
        &["pools[0].replicas[0].devices", "not all among the pool's"],
    ),
    (
        "pools:\n  - {id: a, engine: sim, model: m, replicas: [{devices: [0]}, {devices: [0]}]}\n",
        &["device 0 belongs to pools[0].replicas[0].devices already"],
    ),
    ("pools:\n  - {id: a, engine: llamacpp, model: m}\n", &["needs a url, or a command"]),
    ("pools:\n  - {id: a, engine: llamacpp, model: m, command: [x]}\n", &["{port}"]),
    ("pools:\n  - {id: a, engine: llamacpp, model: m, url: 'ftp://x'}\n", &["http://host:port"]),
    ("pools:\n  - {id: a, engine: llamacpp, model: -x, command: ['{port}', '{model}']}\n", &["pools[0].model", "'-'"]),
    ("pools:\n  - {id: a, engine: sim, model: \"a\\nb\"}\n", &["pools[0].model", "control characters"]),
    (
        "pools:\n  - {id: a, engine: sim, model: m, process: {env_inherit: [NOTIFY_SOCKET]}}\n",
        &["pools[0].process.env_inherit[0]", "the service's own"],
    ),
    (
        "pools:\n  - {id: a, engine: sim, model: m, api_key_env: A_KEY}\n  - {id: b, engine: sim, model: m, \
         process: {env_inherit: [A_KEY]}}\n",
        &["pools[1].process.env_inherit[0]", "key of pool \"a\""],
    ),
    (
        "pools:\n  - {id: a, engine: sim, model: m, process: {env: {CUDA_VISIBLE_DEVICES: '7'}}}\n",
        &["pools[0].process.env.CUDA_VISIBLE_DEVICES", "the service sets it"],
    ),
    ("pools:\n  - {id: a, engine: sim, model: m, process: {user: root}}\n", &["pools[0].process.user", "root"]),
    ("pools:\n  - id: a\n   engine: sim\n", &[":"]),
    ("pools:\n  - {id: a, engine: sim, model: m}\nclients: {x: {weigth: 2}}\n", &["did you mean \"weight\"?"]),
    (
        "pools:\n  - {id: a, engine: sim, model: m}\nclients: {x: {weight: 0}}\n",
        &["clients.x.weight", "from 1 to 1000000"],
    ),
    ("pools:\n  - {id: a, engine: sim, model: m}\nclients: {x: {pools: [b]}}\n", &["clients.x.pools[0]", "there is a"]),
    ("pools:\n  - {id: a, engine: sim, model: m}\nclients: {'x y': {}}\n", &["clients.x y"]),
    (
        "pools:\n  - {id: a, engine: sim, model: m}\ndefault_client: {limits: {tokens_per_s: -1}}\n",
        &["default_client.limits.tokens_per_s"],
    ),
    (
        "pools:\n  - {id: a, engine: sim, model: m}\ndefault_client: {limits: {requests_burst: 3}}\n",
        &["set requests_per_s too"],
    ),
    ("pools:\n  - {id: a, engine: sim, model: m, queue: {order: lifo}}\n", &["lifo", "strict"]),
    ("pools:\n  - {id: a, engine: sim, model: m, queue: {weights: {batch: 0}}}\n", &["pools[0].queue.weights.batch"]),
    ("pools:\n  - {id: a, engine: sim, model: m, cost: {output: 0}}\n", &["pools[0].cost.output"]),
    ("pools:\n  - {id: a, engine: sim, model: m, timeouts: {idle_ms: 0}}\n", &["pools[0].timeouts.idle_ms"]),
];

#[test]
fn every_bad_configuration_is_refused_with_file_place_and_reason() {
    for (number, (text, parts)) in FILES.iter().enumerate() {
        let file = config_file(&format!("bad-{number}.yaml"), text);
        for arguments in [vec!["check", &file], vec!["serve", "--listen", "127.0.0.1:0", "--config", &file]] {
            let output = std::process::Command::new(crate::support::orchestratord()).args(&arguments).output();
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{text:?}: {said}");
            assert!(said.contains(&file), "{text:?}: {said}");
            assert!(parts.iter().all(|part| said.contains(part)), "{text:?}: {said}");
        }
    }
    let missing = std::process::Command::new(crate::support::orchestratord()).args(["check", "nowhere.yaml"]).output();
    assert!(String::from_utf8_lossy(&missing.unwrap().stderr).contains("nowhere.yaml: it cannot be read"));
    println!("{} bad configuration files, each refused by `check` and by `serve`", FILES.len() + 1);
}
