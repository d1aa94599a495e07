//! The list of what the library shows to a host program: every public item with its methods, fields and variants, as
//! its documentation has them. What is hidden there is ours alone.

use std::path::Path;
use std::process::Command;

/// What an item's own members are called in its page, and where the others' begin.
const MEMBERS: [&str; 6] =
    ["method.", "tymethod.", "variant.", "structfield.", "associatedtype.", "associatedconstant."];
const OTHERS: [&str; 3] = ["id=\"trait-implementations\"", "id=\"foreign-impls\"", "id=\"implementors\""];

/// The list, one line for each.
///
/// # Errors
/// The documentation cannot be made or read.
pub fn list(root: &Path) -> Result<String, String> {
    let target = root.join("target/public-api");
    let made = Command::new(env!("CARGO"))
        .args(["doc", "-p", "orchestrator-core", "--lib", "--no-deps"])
        .args(["--features", "metrics,tower", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(root)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return Err("the documentation could not be made".into());
    }
    let folder = target.join("doc/orchestrator_core");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let mut lines = Vec::new();
    for page in between(&read("all.html")?, "<a href=\"", "\">") {
        let Some((path, kind)) = item(&page) else { continue };
        lines.push(format!("{kind} {path}"));
        let text = read(&page)?;
        let own = OTHERS.iter().filter_map(|mark| text.find(mark)).min().map_or(&text[..], |end| &text[..end]);
        for id in between(own, "id=\"", "\"") {
            if let Some(member) = MEMBERS.iter().find_map(|kind| id.strip_prefix(kind)) {
                lines.push(format!("{kind} {path}::{}", member.replace(".field.", "::")));
            }
        }
    }
    lines.sort();
    lines.dedup();
    Ok(lines.join("\n") + "\n")
}

/// The path and the kind of the item of a page: `gpu/trait.Engine.html` is the trait `gpu::Engine`.
fn item(page: &str) -> Option<(String, &str)> {
    let (folders, file) = page.rsplit_once('/').unwrap_or(("", page));
    let (kind, name) = file.strip_suffix(".html")?.split_once('.')?;
    let path = if folders.is_empty() { name.to_owned() } else { format!("{}::{name}", folders.replace('/', "::")) };
    Some((path, kind))
}

/// Everything between two marks.
fn between(text: &str, begin: &str, end: &str) -> Vec<String> {
    let parts = text.split(begin).skip(1);
    parts.filter_map(|part| part.split_once(end).map(|(inside, _)| inside.to_owned())).collect()
}
