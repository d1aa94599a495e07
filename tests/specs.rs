//! Requirements, code and tests name each other, and what is generated is fresh.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use orchestrator_core::service::cli::reference;
use orchestrator_core::service::config::config_file;
use orchestrator_core::service::http;
use tools_readme_index::{Index, PAGE, Status, page, read, refresh};

fn root() -> &'static Path {
    crate::support::root()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn index() -> Index {
    read(root()).unwrap()
}

/// Every test of a file, as `file::name`.
fn tests_in(path: &Path) -> Vec<String> {
    let file = path.strip_prefix(root()).unwrap().display().to_string();
    let text = std::fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    let mut attributed = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            attributed = true;
        } else if let (true, Some((_, rest))) = (attributed, line.split_once("fn ")) {
            found.push(format!("{file}::{}", rest.split(['(', '<']).next().unwrap()));
            attributed = false;
        }
    }
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

#[test]
fn every_requirement_that_is_built_has_code_and_tests_that_exist() {
    let spec = text(".specs/orchestrator-spec.md");
    let mut ids = BTreeSet::new();
    for requirement in index().requirements {
        let id = &requirement.id;
        assert!(ids.insert(id.clone()), "{id} is there twice");
        assert_eq!(requirement.spec, format!(".specs/orchestrator-spec.md#{}", id.to_lowercase()));
        assert!(
            spec.contains(&format!("\n### {id}\n\n**{}** ({}", requirement.title, requirement.level)),
            "{id} in the spec"
        );
        assert!(["MUST", "SHOULD", "MAY"].contains(&requirement.level.as_str()), "{id}");
        match requirement.status {
            Status::Planned => {
                assert!(requirement.tests.is_empty() && requirement.code.is_empty(), "{id} is planned, and has code");
                assert!(spec.contains(&format!("**{}** ({}, planned)", requirement.title, requirement.level)), "{id}");
            }
            Status::Built => assert!(!requirement.tests.is_empty() && !requirement.code.is_empty(), "{id} has no test"),
        }
        for path in &requirement.code {
            assert!(root().join(path).exists(), "{id} names {path}, which is not there");
        }
        for test in &requirement.tests {
            let (file, _) = test.split_once("::").unwrap_or_else(|| panic!("{id}: {test} is not file::name"));
            assert!(tests_in(&root().join(file)).contains(test), "{id} names {test}, which is not there");
        }
    }
    for id in spec.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(ids.contains(id), "{id} is specified and not in the index");
    }
    assert!(ids.len() >= 44, "{}", ids.len());
}

#[test]
fn every_test_from_outside_shows_a_requirement() {
    let named: BTreeSet<String> = index().requirements.into_iter().flat_map(|requirement| requirement.tests).collect();
    for path in rust_files(&root().join("tests")) {
        if ["specs.rs", "tidy.rs"].contains(&path.file_name().unwrap().to_str().unwrap())
            || path.parent().is_some_and(|folder| folder.ends_with("tidy"))
        {
            continue; // They look at the project, not at what it does.
        }
        for test in tests_in(&path) {
            assert!(named.contains(&test), "{test} shows no requirement: name it in requirements/index.yaml");
        }
    }
}

/// Names such as `tests/access/tls.rs::name` in what is said of security.
#[test]
fn every_promise_names_tests_that_are_there() {
    for document in ["SECURITY.md", "docs/access.md"] {
        let text = text(document);
        let mut count = 0;
        for named in text.split('`').filter(|part| part.contains(".rs::") && !part.contains(char::is_whitespace)) {
            let (file, _) = named.split_once("::").unwrap();
            assert!(
                tests_in(&root().join(file)).contains(&named.to_owned()),
                "{document} names {named}, which is not there"
            );
            count += 1;
        }
        assert!(count >= 10, "{document} names {count} tests");
    }
}

#[test]
fn every_id_that_the_code_names_is_specified() {
    let spec = text(".specs/orchestrator-spec.md");
    for path in ["src", "tests", "benches", "examples"].iter().flat_map(|folder| rust_files(&root().join(folder))) {
        let code = std::fs::read_to_string(&path).unwrap();
        for part in code.split("ORCH-").skip(1) {
            let number: String = part.chars().take_while(char::is_ascii_digit).collect();
            if number.len() == 4 {
                assert!(spec.contains(&format!("### ORCH-{number}\n")), "ORCH-{number} in {}", path.display());
            }
        }
    }
}

#[test]
fn the_generated_documents_are_fresh() {
    let stale = |path: &str, command: &str, fresh: &str| {
        assert!(text(path) == fresh, "{path} is stale: {command}");
    };
    stale(".specs/openapi.json", "cargo xtask regen-openapi", &http::openapi());
    stale(".specs/config.schema.json", "cargo xtask regen-schema", &config_file::schema());
    stale("docs/configuration.md", "cargo xtask regen-reference", &reference::configuration());
    stale("docs/api.md", "cargo xtask regen-reference", &reference::api());
    let readme = text("README.md");
    stale("README.md", "cargo run -p tools-readme-index --quiet", &refresh(&readme, &index()).unwrap());
    stale(PAGE, "cargo run -p tools-readme-index --quiet", &page(&index()));
}
