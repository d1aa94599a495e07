//! Chores of the project: `cargo xtask engines | public-api | regen-openapi | regen-schema | regen-reference`.

mod public_api;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use orchestrator_core::service::cli::reference;
use orchestrator_core::service::config::config_file;
use orchestrator_core::service::http;

#[derive(Parser)]
#[command(name = "xtask", about = "Chores of the project")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install the real llama.cpp and Triton servers with tiny models, which the engine tests run on.
    Engines {
        /// vLLM instead: some minutes and 6 GB.
        #[arg(long)]
        vllm: bool,
    },
    /// Write `.specs/public-api.txt`: what the library shows to host programs.
    PublicApi {
        /// Write nothing, and fail where it differs.
        #[arg(long)]
        check: bool,
    },
    /// Write `.specs/openapi.json` from the HTTP API's types.
    RegenOpenapi,
    /// Write `docs/configuration.md` and `docs/api.md` from the schema and the API's document.
    RegenReference,
    /// Write `.specs/config.schema.json` from the configuration's types.
    RegenSchema,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Engines { vllm: false } => {
            install("llamacpp/llama-server").and_then(|()| install("triton/tritonserver"))
        }
        Chore::Engines { vllm: true } => install("vllm/vllm-serve"),
        Chore::PublicApi { check } => public_api::list(&root()).and_then(|list| match check {
            true => compare(".specs/public-api.txt", &list),
            false => write(".specs/public-api.txt", &list),
        }),
        Chore::RegenOpenapi => write(".specs/openapi.json", &http::openapi()),
        Chore::RegenReference => write("docs/configuration.md", &reference::configuration())
            .and_then(|()| write("docs/api.md", &reference::api())),
        Chore::RegenSchema => write(".specs/config.schema.json", &config_file::schema()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            tell(&text);
            ExitCode::FAILURE
        }
    }
}

/// Fails where a file is not what it should be, and says which lines differ.
fn compare(path: &str, wanted: &str) -> Result<(), String> {
    let found = std::fs::read_to_string(root().join(path)).map_err(|error| format!("{path}: {error}"))?;
    let (found, wanted): (Vec<&str>, Vec<&str>) = (found.lines().collect(), wanted.lines().collect());
    let gone = found.iter().filter(|line| !wanted.contains(line)).map(|line| format!("- {line}"));
    let new = wanted.iter().filter(|line| !found.contains(line)).map(|line| format!("+ {line}"));
    let differing: Vec<String> = gone.chain(new).collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the public interface has changed; if that is meant, `cargo xtask public-api` and a line in CHANGELOG.md:\n{}",
        differing.join("\n")
    ))
}

/// The project's root: the folder above this package's.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Installs what a script starts, whatever is not there yet.
fn install(script: &str) -> Result<(), String> {
    let server = root().join("xtask/engines").join(script);
    let status = Command::new(&server).arg("--install-only").status();
    match status.map_err(|error| format!("{} cannot be started: {error}", server.display()))? {
        status if status.success() => {
            tell(&format!("{script} is installed"));
            Ok(())
        }
        status => Err(format!("the installation of {script} failed: {status}")),
    }
}

fn write(path: &str, text: &str) -> Result<(), String> {
    let path = root().join(path);
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    tell(&format!("wrote {}", path.display()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "this is a command line")]
fn tell(text: &str) {
    eprintln!("{text}");
}
