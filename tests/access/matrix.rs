//! Every route, as the router has it, beside every kind of key.

use std::collections::BTreeSet;

use orchestrator_core::service::keys::Scope;
use orchestrator_core::service::routes::{Audience, routes};

use super::{bearer, guarded, key, keys, orchestratord, with_key};
use crate::support::{alone_blocking, exchange, status_of};

/// A path of a route that leads to something, and one to nothing.
fn concrete(path: &str, id: &str) -> String {
    path.replace("{id}", id).replace("{pool}", id).replace("{file}", "base.js")
}

#[test]
fn every_route_lets_in_whom_it_means_to_and_nobody_else() {
    let file = keys("matrix.json");
    let admin = key(&file, "root", "admin", &[]);
    let read = key(&file, "looker", "read", &[]);
    let submit = key(&file, "alice", "submit", &[]);
    let other = key(&file, "bob", "submit", &[]);
    let expired = key(&file, "old", "admin", &["--expires", "1s"]);
    let revoked = key(&file, "gone", "admin", &[]);
    assert!(orchestratord(&["key", "revoke", &revoked, "--file", &file]).0);
    // Nobody waits for it by a clock: it is asked for until it is refused.
    let service = guarded("matrix.yaml", &file, ", failures_burst: 1000000");
    let port = service.port;
    while with_key(port, &expired, "GET", "/v1/pools", "").0 != 401 {}
    let task = "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":1,\"task_id\":\"alices\"}";
    assert_eq!(with_key(port, &submit, "POST", "/v1/tasks", task).0, 202);
    let wrong = format!("{}{}", &submit[..submit.len() - 1], if submit.ends_with('0') { '1' } else { '0' });
    let (mut asked, mut denied) = (0, 0);
    for route in routes() {
        let path = concrete(route.path, "alices");
        if route.face == Audience::Open {
            for (method, _) in &route.needs {
                let (status, _, _) = exchange(port, method.as_str(), &path, &[], b"");
                assert!([200, 303].contains(&status), "{method} {path} is open: {status}");
            }
            continue;
        }
        for (method, needs) in &route.needs {
            let ask = |headers: &[(&str, &str)], path: &str| status_of(port, method.as_str(), path, headers);
            let auth = |value: &str| ask(&[("authorization", value)], &path);
            let mut nobody = |what: &str, status: u16| {
                assert_eq!(status, 401, "{method} {path} with {what}");
                denied += 1;
            };
            nobody("no key", ask(&[], &path));
            nobody("an empty header", auth(""));
            nobody("an empty key", auth("Bearer "));
            nobody("a wrong key", auth(&bearer(&wrong)));
            nobody("the begin of a key", auth(&bearer(&admin[..20])));
            nobody("the end of a key", auth(&bearer(&admin[3..])));
            nobody("two keys in one", auth(&bearer(&format!("{admin},{admin}"))));
            nobody("another scheme", auth(&format!("Basic {admin}")));
            nobody("no scheme", auth(&admin));
            nobody("an expired key", auth(&bearer(&expired)));
            nobody("a revoked key", auth(&bearer(&revoked)));
            nobody("the key in the query", ask(&[], &format!("{path}?authorization={admin}&api_key={admin}")));
            nobody("another header", ask(&[("x-api-key", &admin), ("x-client-id", "root")], &path));
            let twice = [("authorization", &*bearer(&admin)), ("Authorization", &*bearer(&admin))];
            nobody("a doubled header", ask(&twice, &path));
            // Scopes: of each key that is good, whether it gets in.
            for (key, scope) in [(&submit, Scope::Submit), (&read, Scope::Read), (&admin, Scope::Admin)] {
                let status = auth(&bearer(key));
                let allowed = scope == Scope::Admin || needs.contains(&scope);
                assert_eq!(status == 403, !allowed, "{method} {path} with {scope:?}: {status}");
                assert!(status != 401 && status < 500 || status == 503, "{method} {path} with {scope:?}: {status}");
                asked += 1;
            }
            // What is another's is not there.
            if route.path.starts_with("/v1/tasks/{id}") {
                assert_eq!(auth(&bearer(&other)), 404, "{method} {path} of another client");
                assert_ne!(auth(&bearer(&submit)), 404, "{method} {path} of one's own");
            }
        }
        // Other methods and paths open nothing without a key, and nothing behind the path with one.
        for method in ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "FOO"] {
            assert_eq!(exchange(port, method, &path, &[], b"").0, 401, "{method} {path} without a key");
        }
        for trick in [
            format!("/{path}"),
            format!("{path}/"),
            format!("{path}."),
            format!("/.{path}"),
            format!("/%2e{path}"),
            format!("/x/..{path}"),
            path.replacen("/v1", "/%76%31", 1),
            path.to_uppercase(),
            format!("{path}%00"),
            format!("{path}%2f.."),
            format!("{path};x=1"),
        ] {
            if trick != path {
                let (status, _, _) = exchange(port, "GET", &trick, &[], b"");
                assert_eq!(status, 401, "GET {trick} without a key");
            }
        }
    }
    println!(
        "{} routes, {denied} requests without a good key refused, {asked} with one judged by its scope",
        routes().len()
    );
    // Health pages are open, and say nothing but health.
    assert_eq!(exchange(port, "GET", "/healthz", &[], b"").2, "ok\n");
}

#[test]
fn a_key_submits_for_its_client_to_its_pools_and_sees_only_its_own() {
    let file = keys("own.json");
    let alice = key(&file, "alice", "submit", &["--pools", "a", "--weight", "3", "--quota-running", "2"]);
    let bob = key(&file, "bob", "submit", &[]);
    let admin = key(&file, "root", "admin", &[]);
    let service = guarded("own.yaml", &file, "");
    let port = service.port;
    let task = |id: &str, model: &str, tokens: u32| {
        format!("{{\"prompt\":\"x\",\"model_ref\":\"{model}\",\"max_tokens\":{tokens},\"task_id\":\"{id}\"}}")
    };
    // Whoever it says that it is, it is who its key says.
    let headers = [("authorization", &*bearer(&alice)), ("x-client-id", "bob")];
    assert_eq!(exchange(port, "POST", "/v1/tasks", &headers, task("t1", "m", 3).as_bytes()).0, 202);
    let (_, _, body) = with_key(port, &alice, "GET", "/v1/tasks/t1", "");
    assert!(body.contains("\"client_id\":\"alice\""), "{body}");
    let (status, _, body) = with_key(port, &alice, "POST", "/v1/tasks", &task("t2", "n", 3));
    assert_eq!(status, 403, "{body}");
    assert_eq!(with_key(port, &bob, "POST", "/v1/tasks", &task("t3", "n", 500)).0, 202);
    for (method, path) in [
        ("GET", "/v1/tasks/t3"),
        ("GET", "/v1/tasks/t3/stream"),
        ("GET", "/v1/tasks/t3/explain"),
        ("POST", "/v1/tasks/t3/cancel"),
    ] {
        assert_eq!(with_key(port, &alice, method, path, "").0, 404, "{path}");
    }
    let (_, _, body) = with_key(port, &bob, "GET", "/v1/tasks/t3", "");
    assert!(!body.contains("terminal"), "it still runs: {body}");
    assert_eq!(with_key(port, &admin, "POST", "/v1/tasks/t3/cancel", "").0, 200);
    // What the keys' file says of a client is in force.
    let (_, _, config) = with_key(port, &admin, "GET", "/v1/config", "");
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["config"]["clients"]["alice"]["weight"], 3);
    assert_eq!(config["config"]["clients"]["alice"]["quotas"]["running"], 2);
}

#[test]
fn a_revoked_key_opens_nothing_within_a_second_and_a_new_one_opens() {
    let _alone = alone_blocking();
    let file = keys("revoke.json");
    let first = key(&file, "alice", "read", &[]);
    let service = guarded("revoke.yaml", &file, "");
    assert_eq!(with_key(service.port, &first, "GET", "/v1/pools", "").0, 200);
    let second = key(&file, "alice", "read", &[]);
    while with_key(service.port, &second, "GET", "/v1/pools", "").0 != 200 {}
    let (_, list, _) = orchestratord(&["key", "list", "--file", &file]);
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(!list.contains(&second[16..]), "no secret in the list");
    let since = std::time::Instant::now();
    assert!(orchestratord(&["key", "revoke", &first, "--file", &file]).0);
    while with_key(service.port, &first, "GET", "/v1/pools", "").0 != 401 {}
    println!("refused {:?} after the revocation", since.elapsed());
    assert!(since.elapsed() < std::time::Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(with_key(service.port, &second, "GET", "/v1/pools", "").0, 200);
    // No secret and no prompt is in the log.
    let task = "{\"prompt\":\"canary-prompt-8471\",\"model_ref\":\"m\"}";
    let third = key(&file, "carol", "submit", &[]);
    while with_key(service.port, &third, "POST", "/v1/tasks", task).0 != 202 {}
    let log = service.stop_and_log();
    for secret in [&first[16..], &second[16..], &third[16..], "canary-prompt-8471"] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    assert!(log.contains("keys_read") && log.contains("key_refused"), "{log}");
}

/// Three lists that people read say what the router serves, and nothing else: a route that one of them lacks is found
/// here.
#[test]
fn the_document_and_the_pages_have_every_route_and_no_other() {
    let is_page = |path: &str| path == "/" || path.starts_with("/dashboard"); // For browsers; no part of the API.
    let served: BTreeSet<String> = routes()
        .iter()
        .filter(|route| !is_page(route.path))
        .flat_map(|route| route.needs.iter().map(|(method, _)| format!("{method} {}", route.path)))
        .collect();
    let document: serde_json::Value = serde_json::from_str(&orchestrator_core::service::http::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let documented = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(documented.collect::<BTreeSet<_>>(), served, "service/http/openapi.rs lists what routes.rs serves");
    let page = |path: &str| std::fs::read_to_string(crate::support::root().join(path)).unwrap();
    let access = page("docs/access.md");
    let rows = access.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows: BTreeSet<String> = rows.filter(|cell| cell.contains(" /")).map(str::to_owned).collect();
    let guarded = served.iter().filter(|route| !route.ends_with("z")).cloned().collect::<BTreeSet<_>>();
    let unlisted: Vec<_> = guarded.difference(&rows).collect();
    assert!(unlisted.is_empty(), "docs/access.md lacks {unlisted:?}");
    let unserved: Vec<_> = rows.iter().filter(|row| row.contains("/v1/") && !served.contains(*row)).collect();
    assert!(unserved.is_empty(), "docs/access.md has {unserved:?}");
    let short = page("docs/http.md");
    let missing: Vec<_> = served.iter().filter(|route| !short.contains(route.split(' ').nth(1).unwrap())).collect();
    assert!(missing.is_empty(), "docs/http.md lacks {missing:?}");
}
