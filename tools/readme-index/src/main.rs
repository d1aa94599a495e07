//! Writes the README's table of requirements from `requirements/index.yaml`.

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
    let fresh = tools_readme_index::refresh(&readme, &tools_readme_index::read(root)?)?;
    std::fs::write(&path, fresh).map_err(|error| format!("{}: {error}", path.display()))
}

#[expect(clippy::print_stderr, reason = "this is a command line")]
fn tell(text: &str) {
    eprintln!("{text}");
}
