//! `orchestratord`: the runtime as a service. See `orchestratord --help`.

fn main() -> std::process::ExitCode {
    orchestrator_core::service::cli::run()
}
