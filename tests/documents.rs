//! What the documents tell people to type works: every block marked `sh run` is run as it stands.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::process::Command;

/// The blocks of a document that are to be run, with the lines they begin at.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```sh run" => block = Some((number + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => found.extend(block.take()),
            Some((_, text)) => *text += &format!("{line}\n"),
        }
    }
    found
}

#[test]
fn every_command_that_the_documents_say_to_run_works() {
    let _alone = crate::support::alone_blocking();
    let root = crate::support::root();
    let missing = ["curl", "openssl"].into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        println!("SKIPPED: there is no {tool} on this machine");
        return;
    }
    let folder = Path::new(crate::support::orchestratord()).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut run = 0;
    for document in ["docs/access.md", "docs/operations.md"] {
        for (line, block) in blocks(&std::fs::read_to_string(root.join(document)).unwrap()) {
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("documents-{line}-{}", document.len()));
            let _ = std::fs::remove_dir_all(&place); // None from an earlier run.
            std::fs::create_dir_all(&place).unwrap();
            crate::support::owners_alone(&place);
            let output = Command::new("bash")
                .args(["-euo", "pipefail", "-c", &block])
                .current_dir(&place)
                .env("PATH", &path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document}:{line}:\n{block}\n{said}");
            run += 1;
        }
    }
    println!("{run} blocks");
    assert!(run >= 5, "{run}");
}
