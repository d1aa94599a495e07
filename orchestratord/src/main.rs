//! `orchestratord`: the runtime as a service. See `orchestratord --help`.

/// A stream takes some thirty small allocations, freed on another thread as often as not; the system's allocator spent
/// a tenth of the time on them, and gave memory back and took it again with a system call for every third stream.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    orchestrator_core::service::cli::run()
}
