//! The requirements index, the page that shows which code and which tests answer for each, and the README's line about
//! it.

use std::fmt::Write;
use std::path::Path;

use serde::Deserialize;

/// `requirements/index.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// In the order of the specification.
    pub requirements: Vec<Requirement>,
}

/// One requirement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Its id, such as `ORCH-3004`.
    pub id: String,
    /// What it is about.
    pub title: String,
    /// `MUST`, `SHOULD` or `MAY`.
    pub level: String,
    /// Whether it is there.
    pub status: Status,
    /// Where it is specified.
    pub spec: String,
    /// Files that answer for it.
    pub code: Vec<String>,
    /// Tests that show it, as `file::name`.
    pub tests: Vec<String>,
}

/// Whether a requirement is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is, and tests show it.
    Built,
    /// It is not yet.
    Planned,
}

/// The generated page: which code and which tests answer for each requirement.
pub const PAGE: &str = ".specs/traceability.md";

/// Begin and end of the generated part of the README.
pub const MARKS: [&str; 2] = ["<!-- requirements: begin -->", "<!-- requirements: end -->"];

/// Reads the index of the project at `root`.
///
/// # Errors
/// One line: it cannot be read, or is not of the right shape.
pub fn read(root: &Path) -> Result<Index, String> {
    let path = root.join("requirements/index.yaml");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The page: id, what, where in code, which tests.
pub fn page(index: &Index) -> String {
    let mut text = String::from(
        "# Traceability\n\nEvery requirement of [orchestrator-spec.md](orchestrator-spec.md) with its code and its tests. Generated from \
         `requirements/index.yaml`\nby `cargo run -p tools-readme-index`.\n\n| id | level | what | code | tests |\n|---|---|---|---|---|\n",
    );
    for requirement in &index.requirements {
        let Requirement { id, title, level, status, spec, code, tests } = requirement;
        let code: Vec<String> = code.iter().map(|path| format!("[`{}`](../{path})", short(path))).collect();
        let tests = match status {
            Status::Planned => "*planned*".to_owned(),
            Status::Built => tests.iter().map(|test| link(test)).collect::<Vec<_>>().join("<br>"),
        };
        let spec = spec.strip_prefix(".specs/").unwrap_or(spec);
        // Writing to a string does not fail.
        let _ = writeln!(text, "| [{id}]({spec}) | {level} | {title} | {} | {tests} |", code.join("<br>"));
    }
    text
}

fn short(path: &str) -> &str {
    path.strip_prefix("src/").unwrap_or(path)
}

fn link(test: &str) -> String {
    let (file, name) = test.split_once("::").unwrap_or((test, test));
    format!("[`{name}`](../{file})")
}

/// The README's line: how many there are, and where.
pub fn line(index: &Index) -> String {
    let built = index.requirements.iter().filter(|requirement| requirement.status == Status::Built).count();
    let planned = match index.requirements.len() - built {
        0 => String::new(),
        more => format!("; {more} more are planned"),
    };
    format!("{built} requirements, each with its code and its tests: [{PAGE}]({PAGE}){planned}.\n")
}

/// The README with a fresh line between its marks.
///
/// # Errors
/// One line: the marks are not there.
pub fn refresh(readme: &str, index: &Index) -> Result<String, String> {
    let missing = || format!("README.md has no marks {MARKS:?}");
    let (head, rest) = readme.split_once(MARKS[0]).ok_or_else(missing)?;
    let (_, tail) = rest.split_once(MARKS[1]).ok_or_else(missing)?;
    Ok(format!("{head}{}\n{}{}{tail}", MARKS[0], line(index), MARKS[1]))
}
