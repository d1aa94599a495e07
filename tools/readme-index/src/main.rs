//! Writes `.specs/traceability.md` and the README's line about it from `requirements/index.yaml`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match write(&root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            tell(&text);
            ExitCode::FAILURE
        }
    }
}

fn write(root: &Path) -> Result<(), String> {
    let path = root.join("README.md");
    let readme = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let index = tools_readme_index::read(root)?;
    let fresh = tools_readme_index::refresh(&readme, &index)?;
    let page = root.join(tools_readme_index::PAGE);
    for (path, text) in [(path, fresh), (page, tools_readme_index::page(&index))] {
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "this is a command line")]
fn tell(text: &str) {
    eprintln!("{text}");
}
