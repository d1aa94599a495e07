//! To operate it: the configuration changes while it runs, `top` and `doctor` look, and the process does as a service
//! manager expects.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "operate/borders.rs"]
mod borders;
#[path = "operate/command_line.rs"]
mod command_line;
#[path = "operate/configuration.rs"]
mod configuration;
#[path = "operate/guest.rs"]
mod guest;
#[path = "operate/host.rs"]
mod host;
#[path = "operate/figures.rs"]
mod prometheus_text;
#[path = "operate/standing_still.rs"]
mod standing_still;
#[path = "operate/why.rs"]
mod why;

use std::path::PathBuf;
use std::process::Command;

/// A file of this test program's own.
fn file(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Writes a file and returns its path.
fn write(name: &str, text: &str) -> String {
    std::fs::write(file(name), text).unwrap();
    file(name).display().to_string()
}

/// Runs `orchestratord` and returns whether it succeeded, and what it said on both outputs.
fn orchestratord(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(crate::support::orchestratord()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// A configuration of one quick pool with so many slots.
fn slots(slots: u32) -> String {
    format!(
        "pools: [{{id: a, engine: sim, model: m, slots: {slots}, sim: {{first_token_us: 0, token_us: 1000, preload_us: 0}}}}]\n"
    )
}
