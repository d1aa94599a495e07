//! Which file imports which: circles stay small, and in `src/actors` nothing imports a room above its own.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, production};

/// Rooms of `src/actors`, the lowest first.
const ROOMS: [&str; 11] =
    ["kit", "quota", "task", "metrics", "pool", "ledger", "runtime", "admission", "dispatch", "worker", "tree"];

/// Largest circle of files that import each other.
const CIRCLE_MAX: usize = 3;

/// Every path below `crate::` that the text names, groups of `use` written out.
fn named(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let is_start = !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':');
        if is_start {
            expand(String::new(), &text[at + "crate::".len()..], &mut found);
        }
    }
    found
}

/// Reads one path, or a group of them, and returns what is behind it.
fn expand<'a>(before: String, text: &'a str, found: &mut BTreeSet<String>) -> &'a str {
    let end =
        text.find(|letter: char| !(letter.is_alphanumeric() || matches!(letter, '_' | ':'))).unwrap_or(text.len());
    let (path, mut rest) = (format!("{before}{}", &text[..end]), &text[end..]);
    if !path.ends_with("::") || !rest.starts_with('{') {
        found.insert(path);
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches([' ', '\n', ',']);
        match rest.chars().next() {
            None => return rest,
            Some('}') => return &rest[1..],
            Some(_) => {
                let next = expand(path.clone(), rest, found);
                let next =
                    next.strip_prefix(" as ").map_or(next, |name| name.trim_start_matches(char::is_alphanumeric));
                rest = if next.len() == rest.len() { &rest[1..] } else { next };
            }
        }
    }
}

/// For each file, those that it imports.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let files = files("src");
    let module = |name: &str| name["src/".len()..].trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let by_module: BTreeMap<String, &str> = files.iter().map(|(name, _)| (module(name), name.as_str())).collect();
    let file_of = |path: &str| {
        let parts: Vec<&str> = path.split("::").collect();
        (1..=parts.len()).rev().find_map(|count| by_module.get(&parts[..count].join("::")).copied())
    };
    let imports = |(name, text): &(String, String)| {
        let code = production(text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n");
        let paths = named(&code);
        let own = paths.iter().filter_map(|path| file_of(path)).filter(|file| file != name).map(str::to_owned);
        (name.clone(), own.collect())
    };
    files.iter().map(imports).collect()
}

/// Everything that can be reached from a file.
fn reached(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(file) = next.pop() {
        next.extend(graph[&file].iter().filter(|other| seen.insert((*other).clone())).cloned());
    }
    seen
}

#[test]
fn circles_of_files_are_small() {
    let graph = graph();
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 500, "the imports are found");
    let all: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|file| (file, reached(&graph, file))).collect();
    for (file, own) in &all {
        let circle: BTreeSet<&String> = own.iter().filter(|other| all[other].contains(*file)).collect();
        assert!(circle.len() <= CIRCLE_MAX, "{file} is in a circle of {}: {circle:?}", circle.len());
    }
}

#[test]
fn no_room_of_actors_imports_one_above_it() {
    let room = |file: &str| {
        let name = file.strip_prefix("src/actors/")?.split_once('/')?.0;
        ROOMS.iter().position(|room| *room == name)
    };
    for (file, imports) in graph() {
        for other in &imports {
            let (own, theirs) = (room(&file), room(other));
            assert!(own.is_none() || theirs <= own, "{file} imports {other}, which lies above it");
        }
    }
}
