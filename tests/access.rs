//! Who may do what: every route beside every kind of key, encryption, and what happens to those who guess (ORCH-3035).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "access/browsers.rs"]
mod browsers;
#[path = "access/key_files.rs"]
mod key_files;
#[path = "access/matrix.rs"]
mod matrix;
#[path = "access/rights.rs"]
mod rights;
#[path = "access/shares.rs"]
mod shares;
#[path = "access/throttle.rs"]
mod throttle;
#[path = "access/tls.rs"]
mod tls;

use std::path::PathBuf;
use std::process::Command;

use crate::support::{Service, exchange, owners_alone};

/// A file of this test program's own.
fn file(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Runs `orchestratord` and returns whether it succeeded, and what it said on both outputs.
fn orchestratord(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(crate::support::orchestratord()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// A file of keys of this name, without any key yet.
fn keys(name: &str) -> String {
    let path = file(name);
    owners_alone(path.parent().unwrap());
    let _ = std::fs::remove_file(&path); // None from an earlier run.
    path.display().to_string()
}

/// Makes a key and returns it.
fn key(file: &str, client: &str, scopes: &str, more: &[&str]) -> String {
    let arguments = [&["key", "new", "--file", file, "--client", client, "--scopes", scopes], more].concat();
    let (ok, out, err) = orchestratord(&arguments);
    assert!(ok, "{err}");
    out.trim().to_owned()
}

/// A service of two quick pools that wants keys of this file.
fn guarded(name: &str, keys: &str, more: &str) -> Service {
    let text = format!(
        "
pools:
  - {{id: a, engine: sim, model: m, replicas: [{{devices: [0]}}], sim: {{first_token_us: 0, token_us: 0, preload_us: 0}}}}
  - {{id: b, engine: sim, model: n, replicas: [{{devices: [1]}}], sim: {{first_token_us: 0, token_us: 5000, preload_us: 0}}}}
access: {{keys_file: {keys:?}{more}}}
"
    );
    let path = file(name);
    std::fs::write(&path, text).unwrap();
    let service = Service::start(&["--config", &path.display().to_string()]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    service
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// A request with a key.
fn with_key(port: u16, key: &str, method: &str, path: &str, body: &str) -> (u16, String, String) {
    exchange(port, method, path, &[("authorization", &bearer(key))], body.as_bytes())
}
