//! The house rules that a machine can check.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[path = "tidy/imports.rs"]
mod imports;

/// Every file of this kind below a folder of the project, with its text.
fn files_of(folder: &str, kind: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(folder), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == kind));
    found.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        (name, std::fs::read_to_string(&path).unwrap())
    };
    found.into_iter().map(read).collect()
}

fn files(folder: &str) -> Vec<(String, String)> {
    files_of(folder, "rs")
}

/// The pages for people: those at the top, and those in `docs` and `.specs`.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let top = top.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let top = top.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    let top = top.map(|(name, path)| (name, std::fs::read_to_string(path).unwrap()));
    top.chain(files_of("docs", "md")).chain(files_of(".specs", "md")).collect()
}

/// The part of a file that is compiled into the library.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn no_file_grows_beyond_its_topic() {
    for (name, text) in files("src") {
        let lines = production(&text).lines().count();
        assert!(lines <= 400, "{name} has {lines} lines");
    }
    for (name, text) in files("tests") {
        assert!(text.lines().count() <= 430, "{name}");
    }
}

/// A folder is a table of contents: what does not fit on it belongs into a room of its own.
#[test]
fn no_folder_has_more_than_twelve_files() {
    let mut folders = std::collections::BTreeMap::new();
    for (name, _) in files("src") {
        *folders.entry(name.rsplit_once('/').unwrap().0.to_owned()).or_insert(0) += 1;
    }
    for (folder, count) in folders {
        assert!(count <= 12, "{folder} has {count} files");
    }
}

#[test]
fn no_function_has_more_than_seventy_lines() {
    for (path, text) in files("src") {
        let lines: Vec<&str> = production(&text).lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_fn = code.split_whitespace().take(4).any(|word| word == "fn") && !code.starts_with("//");
            if !is_fn || code.ends_with(';') || code.ends_with('}') {
                continue;
            }
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let Some(length) = lines[at..].iter().position(|line| *line == end) else { continue };
            assert!(length < 70, "{path}:{}: {} lines; 70 are the most", at + 1, length + 1);
        }
    }
}

/// A struct of more fields has several owners. Configuration, views and requests are lists by nature.
#[test]
fn no_struct_has_more_than_sixteen_fields() {
    let is_list = |name: &str| {
        ["src/config/", "src/views/"].iter().any(|folder| name.starts_with(folder))
            || ["src/service/api/mod.rs", "src/core/task/request.rs"].contains(&name)
    };
    for (name, text) in files("src").into_iter().filter(|(name, _)| !is_list(name)) {
        let mut fields = None;
        for line in production(&text).lines() {
            let code = line.trim_start_matches("pub").trim_start();
            if line.ends_with('{')
                && !line.starts_with(' ')
                && (code.contains("struct ") || line.starts_with("struct "))
            {
                fields = Some((line.to_owned(), 0));
            } else if line == "}" {
                fields = None;
            } else if let Some((of, count)) = &mut fields {
                let is_field =
                    line.starts_with("    ") && !line.trim_start().starts_with(['/', '#']) && line.contains(": ");
                *count += u32::from(is_field);
                assert!(*count <= 16, "{name}: {of}");
            }
        }
    }
}

/// The words that `.specs/glossary.md` lists as replaced stay away: names in code, whole words.
#[test]
fn no_word_that_the_glossary_replaced_comes_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let glossary = std::fs::read_to_string(root.join(".specs/glossary.md")).unwrap();
    let rows = glossary.split("## Replaced").nth(1).unwrap().lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let words: std::collections::BTreeSet<&str> = cells.filter(|word| !word.contains('.')).collect();
    assert!(words.len() > 50, "{words:?}");
    let is_word = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '!');
    for (name, text) in ["src", "tests", "benches", "examples"].into_iter().flat_map(files) {
        for (number, line) in text.lines().enumerate() {
            let found = line.split(|letter| !is_word(letter)).find(|word| words.contains(word));
            assert!(found.is_none(), "{name}:{}: {found:?}, see .specs/glossary.md", number + 1);
        }
    }
}

/// Comments and pages for people, at most 120 characters in a line: tables, code and what is generated apart.
#[test]
fn prose_has_at_most_120_characters_in_a_line() {
    for (name, text) in ["src", "tests", "benches", "examples"].into_iter().flat_map(files) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//")) {
            let is_table = line.trim_start_matches([' ', '/', '!']).starts_with('|');
            assert!(is_table || line.chars().count() <= 120, "{name}:{}", number + 1);
        }
    }
    for (name, text) in pages() {
        if text.contains("enerated from") || ["docs/api.md", "docs/configuration.md"].contains(&name.as_str()) {
            continue;
        }
        let mut is_code = false;
        for (number, line) in text.lines().enumerate() {
            is_code ^= line.trim_start().starts_with("```");
            let may_be_long = is_code || line.trim_start().starts_with('|') || !line.trim().contains(' ');
            assert!(may_be_long || line.chars().count() <= 120, "{name}:{}", number + 1);
        }
    }
}

/// What a page says of a file stays true when the file moves. The glossary and the changelog name what is gone.
#[test]
fn the_pages_name_source_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for (name, text) in
        pages().into_iter().filter(|(name, _)| ![".specs/glossary.md", "CHANGELOG.md"].contains(&name.as_str()))
    {
        for span in text.split('`').skip(1).step_by(2) {
            let is_path = span.ends_with(".rs") && span.contains('/') && !span.contains(['{', ' ', '*']);
            if is_path && !span.contains("NAME") {
                named += 1;
                let exists = ["", "src", "tests"].iter().any(|folder| root.join(folder).join(span).is_file());
                assert!(exists, "{name}: there is no {span}");
            }
        }
    }
    assert!(named > 100, "{named} paths were found");
}

/// The first page a newcomer reads, and the second.
#[test]
fn the_first_pages_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, lines, bytes) in [("README.md", 150, 8 * 1024), ("ARCHITECTURE.md", 250, usize::MAX)] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        assert!(text.lines().count() <= lines && text.len() <= bytes, "{page}");
    }
}

/// Cargo finds no test program by itself here: a file that nothing names would never be compiled.
#[test]
fn every_file_of_tests_is_part_of_a_program() {
    let manifests = ["Cargo.toml", "orchestratord/Cargo.toml"]
        .map(|path| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap());
    let files = files("tests");
    for (name, _) in &files {
        let path = name.strip_prefix("tests/").unwrap();
        let stem = path.rsplit('/').next().unwrap().strip_suffix(".rs").unwrap();
        let named = |beginning: &str, line: String| {
            files.iter().any(|(other, text)| other.starts_with(beginning) && text.lines().any(|there| there == line))
        };
        let is_part = match path.split_once('/') {
            None => {
                manifests.iter().any(|manifest| manifest.contains(&format!("[[test]]\nname = \"{stem}\"\n")))
                    || named("tests/suite_", format!("mod {stem};"))
            }
            Some(("fake-nvml", _) | ("support", "mod.rs")) => true,
            Some(("support", _)) => {
                named("tests/support/mod.rs", format!("pub mod {stem};"))
                    || named("tests/support/mod.rs", format!("mod {stem};"))
            }
            Some(_) => named("tests/", format!("#[path = \"{path}\"]")),
        };
        assert!(is_part, "{name} is in no program: see the test targets of Cargo.toml and orchestratord/Cargo.toml");
    }
}

#[test]
fn each_layer_knows_only_what_lies_below_it() {
    let forbidden: &[(&str, &[&str])] = &[
        (
            "src/core",
            &[
                "ractor",
                "tokio",
                "async ",
                "crate::actors",
                "crate::gpu",
                "crate::service",
                "crate::cluster",
                "tracing",
                "Instant",
            ],
        ),
        (
            "src/gpu",
            &[
                "ractor",
                "crate::actors",
                "crate::service",
                "crate::cluster",
                "crate::orchestrator",
                "crate::core::queue",
            ],
        ),
        ("src/cluster", &["crate::actors", "orchestrator.shared()"]),
        ("src/service", &["crate::actors", "crate::cluster::sharing", "orchestrator.shared()"]),
        ("src/actors", &["axum", "serde_json", "crate::service", "crate::cluster", "crate::orchestrator", "std::env"]),
    ];
    for (folder, words) in forbidden {
        for (name, text) in files(folder) {
            let code = production(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                assert!(!words.iter().any(|word| line.contains(word)), "{name}: {line}");
            }
        }
    }
    for (name, text) in files("src") {
        let knows_codec = text.contains("bincode::");
        assert!(!knows_codec || name == "src/core/cluster/wire.rs", "{name} knows the codec");
    }
}

#[test]
fn nothing_in_the_library_breaks_determinism() {
    for (name, text) in files("src") {
        for (number, part) in text.split("select! {").enumerate().skip(1) {
            assert!(part.trim_start().starts_with("biased;"), "{name}: select! number {number} is not biased");
        }
        let code: Vec<&str> = production(&text).lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        if name == "src/gpu/threads.rs" {
            continue; // The one place for calls that block, which nothing simulated makes.
        }
        let forbidden = [
            "thread::Builder",
            "thread_rng",
            " rand::",
            "spawn_blocking",
            "thread::spawn",
            "sync::watch",
            "RandomState",
        ];
        for line in code {
            assert!(!forbidden.iter().any(|word| line.contains(word)), "{name}: {line}");
        }
    }
}

#[test]
fn no_test_is_ignored_and_none_waits_for_the_wall_clock() {
    for (name, text) in files("tests").into_iter().chain(files("src")) {
        if name == "tests/tidy.rs" || name.starts_with("tests/fake-nvml") {
            continue; // It names what it forbids; and a driver that is slow is slow in real time.
        }
        assert!(!text.contains("#[ignore"), "{name}");
        assert!(!text.contains("thread::sleep"), "{name}");
    }
}
