//! What a client can make the service hold: each line of the table in docs/access.md beside a service with small
//! bounds, and a neighbour who loses nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::{bearer, file, key, keys, orchestratord, with_key};
use crate::support::{Service, alone_blocking, exchange};

const WAIT: Duration = Duration::from_secs(30);

/// A service with these bounds and keys of a hog, of a polite client and of an operator.
struct Shared {
    service: Service,
    hog: String,
    polite: String,
    admin: String,
}

impl Shared {
    fn start(name: &str, bounds: &str) -> Shared {
        let keys = keys(&format!("{name}.json"));
        let [hog, polite] = ["hog", "polite"].map(|client| key(&keys, client, "submit", &[]));
        let admin = key(&keys, "root", "admin", &[]);
        let text = format!(
            "
pools:
  - {{id: quick, engine: sim, model: m, slots: 4, replicas: [{{devices: [0]}}], sim: {{first_token_us: 0, token_us: 0, preload_us: 0}}}}
  - {{id: slow, engine: sim, model: n, slots: 2, replicas: [{{devices: [1]}}], queue: {{capacity: 1000}}, sim: {{first_token_us: 0, token_us: 50000, preload_us: 0}}}}
access: {{keys_file: {keys:?}}}
{bounds}
"
        );
        let path = file(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        let service = Service::start(&["--config", &path.display().to_string()]);
        while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
        Shared { service, hog, polite, admin }
    }

    fn ask(&self, key: &str, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, _, body) = with_key(self.service.port, key, method, path, &body);
        (status, body)
    }

    /// Submits a task under this id; it is accepted.
    fn submit(&self, key: &str, id: &str, model: &str, more: &Value) {
        let mut body = json!({"prompt": "x", "model_ref": model, "max_tokens": 1, "task_id": id});
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let (status, said) = self.ask(key, "POST", "/v1/tasks", &body);
        assert_eq!(status, 202, "{said}");
    }

    /// The same, and waits for its end.
    fn run(&self, key: &str, id: &str, more: &Value) {
        self.submit(key, id, "m", more);
        while !self.ask(key, "GET", &format!("/v1/tasks/{id}"), &Value::Null).1.contains("\"terminal\"") {}
    }

    /// A request whose answer is read later.
    fn open(&self, key: &str, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.service.port)).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let head = format!("{head}\r\nhost: localhost\r\nauthorization: {}\r\n\r\n", bearer(key));
        let _ = stream.write_all(head.as_bytes()); // It may be closed at once.
        stream
    }

    fn stream(&self, key: &str, id: &str) -> TcpStream {
        self.open(key, &format!("GET /v1/tasks/{id}/stream HTTP/1.1"))
    }

    fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.ask(&self.admin, "GET", "/metrics", &Value::Null);
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{series} in {text}"))
    }
}

/// What has come of an answer so far; empty when the connection was closed without one.
fn begin(stream: &mut TcpStream) -> String {
    let mut piece = [0; 4096];
    let count = stream.read(&mut piece).unwrap_or(0);
    String::from_utf8_lossy(&piece[..count]).into_owned()
}

/// The table of the documents: for each thing its test.
fn table() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(crate::support::root().join("docs/access.md")).unwrap();
    let (_, text) = text.split_once("## What a client can make the service hold").expect("the section is there");
    let rows =
        text.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.map(cells).map(|cells| (cells[0].clone(), cells.last().unwrap().clone())).collect()
}

#[test]
fn each_line_of_the_table_has_a_test_that_is_there() {
    let table = table();
    for what in [
        "bodies",
        "connections",
        "texts of tasks",
        "readers of a task",
        "requests besides tasks",
        "pages without a key",
        "explanations",
        "waiting tasks",
        "retained ends",
        "conversations",
        "ids",
        "refusal lines",
        "quoted words",
        "wrong keys",
        "answers that go on",
    ] {
        assert!(table.contains_key(what), "{what} is not in the table");
    }
    for (what, test) in table {
        let (path, name) = test.trim_matches('`').split_once("::").unwrap_or_else(|| panic!("{what}: {test}"));
        let text = std::fs::read_to_string(crate::support::root().join(path)).unwrap();
        assert!(text.contains(&format!("fn {name}(")), "{what}: there is no {test}");
    }
}

#[test]
fn bodies_that_never_end_hold_a_part_and_are_refused_beyond_it_before_they_are_read() {
    let shared = Shared::start("bodies", "http: {bodies_bytes_max: 4194304, body_bytes_max: 1048576, body_ms: 60000}");
    let announce = |key: &str| {
        let head = "POST /v1/tasks HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1048576";
        shared.open(key, head)
    };
    let mut stuck: Vec<TcpStream> = (0..2).map(|_| announce(&shared.hog)).collect();
    while shared.metric("http_bodies_bytes") < 2_097_152.0 {}
    for _ in 0..6 {
        let said = begin(&mut announce(&shared.hog));
        assert!(said.starts_with("HTTP/1.1 429") && said.to_ascii_lowercase().contains("retry-after"), "{said}");
        assert!(said.contains("x-policy: bodies"), "{said}");
    }
    // Without a length it takes room as it comes.
    let head = "POST /v1/tasks HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked";
    let mut growing = shared.open(&shared.hog, head);
    let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let _ = growing.write_all(piece.as_bytes()); // It may be refused by then.
    assert!(begin(&mut growing).starts_with("HTTP/1.1 429"));
    let body = json!({"prompt": "y".repeat(900_000), "model_ref": "m", "ctx": 1, "max_tokens": 1});
    let (status, said) = shared.ask(&shared.polite, "POST", "/v1/tasks", &body);
    assert!(status == 400 && said.contains("prompt"), "it was read: {status} {said}");
    stuck.clear();
    while shared.metric("http_bodies_bytes") > 0.0 {}
    assert!(shared.metric("http_requests_limited_total{limit=\"bodies\"}") >= 7.0);
}

#[test]
fn texts_of_waiting_tasks_have_a_bound_and_each_client_a_part() {
    let shared = Shared::start("texts", "texts_bytes_max: 400000\nprompt_bytes_max: 300000");
    // Of 8 KiB and one token: they wait for those that run, and are not refused for anything else.
    let long = json!({"prompt": "x".repeat(8_000), "model_ref": "n", "max_tokens": 2000});
    let answers: Vec<(u16, String)> = (0..40).map(|_| shared.ask(&shared.hog, "POST", "/v1/tasks", &long)).collect();
    let taken = answers.iter().filter(|(status, _)| *status == 202).count();
    assert_eq!(taken, 25, "half of the bound, for one that is alone");
    assert!(answers[39].0 == 429 && answers[39].1.contains("\"policy\":\"texts\""), "{}", answers[39].1);
    shared.submit(&shared.hog, "small", "n", &Value::Null);
    shared.submit(&shared.polite, "mine", "n", &json!({"prompt": "x".repeat(8_000)}));
    // What has ended takes no part any more.
    let (_, task) = &answers[0];
    let task: Value = serde_json::from_str(task).unwrap();
    let path = format!("/v1/tasks/{}/cancel", task["task_id"].as_str().unwrap());
    assert_eq!(shared.ask(&shared.hog, "POST", &path, &Value::Null).0, 200);
    let (status, _) = shared.ask(&shared.polite, "POST", "/v1/tasks", &long);
    assert_eq!(status, 202);
}

#[test]
fn pages_without_a_key_are_bounded_by_address_and_health_is_not() {
    let shared = Shared::start("pages", "");
    let mut asked: Vec<TcpStream> =
        (0..900).map(|_| shared.open(&shared.hog, "GET /dashboard/base.js HTTP/1.1\r\nconnection: close")).collect();
    for _ in 0..50 {
        assert_eq!(exchange(shared.service.port, "GET", "/healthz", &[], b"").0, 200);
        assert_eq!(exchange(shared.service.port, "GET", "/readyz", &[], b"").0, 200);
    }
    let begins: Vec<String> = asked.iter_mut().map(begin).collect();
    let refused = begins.iter().filter(|said| said.contains("x-policy: requests")).count();
    let answered = begins.iter().filter(|said| said.starts_with("HTTP/1.1 200")).count();
    assert!(answered >= 400 && refused > 0 && answered + refused == 900, "{answered} answered, {refused} refused");
    // Nor do they take the places of those who have a key.
    let shared = Shared::start("pages-few", "http: {connections_max: 40}");
    let many = "GET /dashboard/base.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(40);
    let mut asking: Vec<TcpStream> = (0..100).map(|_| shared.open(&shared.hog, "GET / HTTP/1.1")).collect();
    for _ in 0..30 {
        asking.iter_mut().for_each(|stream| drop(stream.write_all(many.as_bytes()))); // Some have been closed.
        assert_eq!(exchange(shared.service.port, "GET", "/healthz", &[], b"").0, 200);
        assert_eq!(shared.ask(&shared.polite, "GET", "/v1/tasks/none", &Value::Null).0, 404);
    }
}

#[test]
fn who_holds_all_connections_gives_one_back_to_whoever_holds_fewer() {
    let _alone = alone_blocking();
    let shared = Shared::start("connections", "http: {connections_max: 40, readers_max: 1000}");
    shared.submit(&shared.hog, "long", "n", &json!({"max_tokens": 2000}));
    let mut streams: Vec<TcpStream> = (0..60).map(|_| shared.stream(&shared.hog, "long")).collect();
    let begins: Vec<String> = streams.iter_mut().map(begin).collect();
    let count = |status: &str| begins.iter().filter(|said| said.starts_with(status)).count();
    let (served, refused) = (count("HTTP/1.1 200"), count("HTTP/1.1 429"));
    assert!(served == 40 && (10..=20).contains(&refused), "{served} served, {refused} refused: {begins:?}");
    assert!(begins.iter().any(|said| said.contains("x-policy: connections")));
    for _ in 0..20 {
        assert_eq!(exchange(shared.service.port, "GET", "/healthz", &[], b"").0, 200, "places are kept");
        assert_eq!(shared.ask(&shared.polite, "GET", "/v1/tasks/none", &Value::Null).0, 404, "it gets in");
        assert_eq!(shared.ask(&shared.admin, "GET", "/v1/pools", &Value::Null).0, 200);
    }
    shared.submit(&shared.polite, "own", "n", &json!({"max_tokens": 2000}));
    let mut own: Vec<TcpStream> = (0..10).map(|_| shared.stream(&shared.polite, "own")).collect();
    assert!(own.iter_mut().map(begin).all(|said| said.starts_with("HTTP/1.1 200")), "an equal part is its own");
    assert!(shared.metric("http_connections_closed_total{reason=\"share\"}") >= 10.0);
}

#[test]
fn one_task_has_so_many_readers_and_no_more() {
    let shared = Shared::start("readers", "http: {readers_max: 3}");
    shared.submit(&shared.hog, "read", "n", &json!({"max_tokens": 2000}));
    let mut readers: Vec<TcpStream> = (0..3).map(|_| shared.stream(&shared.hog, "read")).collect();
    assert!(readers.iter_mut().map(begin).all(|said| said.starts_with("HTTP/1.1 200")));
    let said = begin(&mut shared.stream(&shared.hog, "read"));
    assert!(said.starts_with("HTTP/1.1 429") && said.contains("x-policy: readers"), "{said}");
    readers.pop();
    while !begin(&mut shared.stream(&shared.hog, "read")).starts_with("HTTP/1.1 200") {}
}

#[test]
fn who_asks_too_fast_waits_and_is_refused_and_others_are_not() {
    let shared = Shared::start("requests", "http: {requests_per_s: 4}");
    let mut asked: Vec<TcpStream> =
        (0..64).map(|_| shared.open(&shared.hog, "GET /v1/tasks/none HTTP/1.1\r\nconnection: close")).collect();
    let (status, said) = shared.ask(&shared.polite, "GET", "/v1/tasks/none", &Value::Null);
    assert_eq!(status, 404, "{said}");
    let begins: Vec<String> = asked.iter_mut().map(begin).collect();
    let refused = begins.iter().filter(|said| said.contains("x-policy: requests")).count();
    let answered = begins.iter().filter(|said| said.starts_with("HTTP/1.1 404")).count();
    assert!(answered >= 8 && refused >= 16 && answered + refused == 64, "{answered} answered, {refused} refused");
    // Tasks have limits of their own.
    shared.submit(&shared.hog, "task", "m", &Value::Null);
}

#[test]
fn explanations_are_right_however_many_wait() {
    let path = file("explained.yaml");
    let text = "pools: [{id: a, engine: sim, model: m, replicas: [{devices: [0]}], queue: {capacity: 1000}, \
                sim: {first_token_us: 60000000, token_us: 0, preload_us: 0}, self_test: false}]\nhttp: {requests_per_s: 100000}\n";
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    for number in 0..401 {
        let body = json!({"prompt": "x", "task_id": format!("t{number}"), "max_tokens": 1}).to_string();
        let headers = [("x-client-id", &*format!("c{number:04}"))];
        assert_eq!(exchange(service.port, "POST", "/v1/tasks", &headers, body.as_bytes()).0, 202);
    }
    for number in [1, 2, 200, 400] {
        let headers = [("x-client-id", &*format!("c{number:04}"))];
        let (status, _, body) = exchange(service.port, "GET", &format!("/v1/tasks/t{number}/explain"), &headers, b"");
        let said: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, said["standing"]["clients_ahead"].as_u64()), (200, Some(number - 1)), "{body}");
        let named = said["standing"]["clients_ahead_first"].as_array().unwrap().len() as u64;
        assert_eq!(named, (number - 1).min(16), "{body}");
    }
}

#[test]
fn a_full_queue_takes_from_who_waits_most() {
    let text = "default_client: {quotas: {queued: 20}}";
    let shared = Shared::start("waiting", text);
    let body = json!({"prompt": "x", "model_ref": "n", "max_tokens": 2000});
    let statuses: Vec<u16> = (0..30).map(|_| shared.ask(&shared.hog, "POST", "/v1/tasks", &body).0).collect();
    let taken = statuses.iter().filter(|status| **status == 202).count();
    assert!((20..=22).contains(&taken) && statuses[29] == 429, "20 wait and 2 run: {statuses:?}");
    shared.submit(&shared.polite, "mine", "n", &Value::Null);
}

#[test]
fn a_neighbours_ends_forget_none_of_mine() {
    let shared = Shared::start("ends", "retention: {tasks: 40}");
    shared.run(&shared.polite, "mine", &Value::Null);
    (0..200).for_each(|number| shared.submit(&shared.hog, &format!("h{number}"), "m", &Value::Null));
    shared.run(&shared.hog, "last", &Value::Null);
    assert_eq!(shared.ask(&shared.hog, "GET", "/v1/tasks/h0", &Value::Null).0, 404, "its own make room");
    assert!(shared.ask(&shared.polite, "GET", "/v1/tasks/mine", &Value::Null).1.contains("\"terminal\""));
    // Sent again it is the same, and does not run a second time.
    shared.submit(&shared.polite, "mine", "m", &Value::Null);
    let (_, view) = shared.ask(&shared.polite, "GET", "/v1/tasks/mine", &Value::Null);
    assert!(view.contains("\"terminal\"") && view.contains("\"attempts\":1"), "{view}");
}

#[test]
fn a_neighbours_conversations_forget_none_of_mine() {
    let shared = Shared::start("talks", "sessions: {capacity: 10}");
    shared.run(&shared.polite, "mine", &json!({"session_id": "s"}));
    (0..100).for_each(|number| {
        shared.run(&shared.hog, &format!("h{number}"), &json!({"session_id": format!("s{number}")}))
    });
    assert_eq!(shared.ask(&shared.polite, "GET", "/v1/sessions/s", &Value::Null).0, 200);
    assert_eq!(shared.ask(&shared.hog, "GET", "/v1/sessions/s0", &Value::Null).0, 404, "its own oldest");
    assert_eq!(shared.ask(&shared.hog, "GET", "/v1/sessions/s99", &Value::Null).0, 200);
}

#[test]
fn ids_are_their_clients_own() {
    let shared = Shared::start("ids", "");
    shared.run(&shared.hog, "order-2", &Value::Null);
    shared.run(&shared.polite, "order-2", &json!({"max_tokens": 3}));
    for (key, client) in [(&shared.hog, "hog"), (&shared.polite, "polite")] {
        let (_, view) = shared.ask(key, "GET", "/v1/tasks/order-2", &Value::Null);
        assert!(view.contains(&format!("\"client_id\":\"{client}\"")), "{view}");
        assert_eq!(shared.ask(key, "GET", "/v1/tasks/order-2?client_id=root", &Value::Null).0, 404);
        let (_, view) =
            shared.ask(&shared.admin, "GET", &format!("/v1/tasks/order-2?client_id={client}"), &Value::Null);
        assert!(view.contains(&format!("\"client_id\":\"{client}\"")), "{view}");
    }
    let others = shared.ask(&shared.hog, "GET", "/v1/tasks/order-2?client_id=polite", &Value::Null);
    assert_eq!(others.0, 404, "another's is not there, whoever is named: {}", others.1);
    let (status, said) = shared.ask(&shared.admin, "GET", "/v1/tasks/order-2", &Value::Null);
    assert!(status == 400 && said.contains("2 clients") && said.contains("client_id"), "{said}");
    let (status, said) = shared.ask(&shared.admin, "POST", "/v1/tasks/order-2/cancel?client_id=hog", &Value::Null);
    assert!(status == 200 && said.contains("\"canceled\":false"), "{said}");
    assert_eq!(shared.ask(&shared.admin, "GET", "/v1/tasks/order-2?nobody=1", &Value::Null).0, 400);
}

#[test]
fn refusals_of_a_key_have_few_lines_and_short_ones() {
    let shared = Shared::start("lines", "");
    let long = format!("/v1/pools/p{}/health", "x".repeat(8_000));
    for _ in 0..300 {
        assert_eq!(shared.ask(&shared.hog, "GET", &long, &Value::Null).0, 403);
        assert_eq!(shared.ask(&shared.admin, "POST", "/v1/pools/none/drain", &Value::Null).0, 404);
    }
    let log = shared.service.stop_and_log();
    for event in ["scope_refused", "\"admin\""] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(event)).collect();
        assert!((10..60).contains(&lines.len()), "{} lines of {event}", lines.len());
        assert!(lines.iter().all(|line| line.len() < 800), "{event}");
    }
}

#[test]
fn what_is_wrong_is_quoted_and_no_more_of_it_than_shows_what_it_is() {
    let shared = Shared::start("quotes", "");
    let long = "w".repeat(1_000_000);
    let mut field = json!({"prompt": "x"});
    field[&long] = json!(1);
    let bodies = [
        json!({"prompt": "x", "model_ref": long}),
        json!({"prompt": "x", "engine": long}),
        json!({"prompt": "x", "sampler_profile_version": long}),
        json!({"prompt": "x", "priority": long}),
        json!({"prompt": "x", "task_id": long}),
        json!({"prompt": "x", "session_id": long}),
        json!({"prompt": {"text": long}}),
        json!({"prompt": "x", "max_tokens": long}),
        json!({"prompt": "x", "parameters": {"stop": [long]}}),
        field,
    ];
    for body in bodies {
        let (status, said) = shared.ask(&shared.hog, "POST", "/v1/tasks", &body);
        let name: String = body.to_string().chars().take(60).collect();
        assert!(status == 400 && said.len() < 1_000, "{name}: {status}, {} bytes", said.len());
    }
    let (status, said) = shared.ask(&shared.hog, "GET", &format!("/{}", "p".repeat(8_000)), &Value::Null);
    assert!(status == 404 && said.len() < 1_000, "{said}");
    let (ok, _, _) = orchestratord(&["check", &file("quotes.yaml").display().to_string()]);
    assert!(ok);
}
