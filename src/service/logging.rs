//! The log: lines for people or JSON, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::service::cli::LogFormat;

/// What must be kept as long as anything is logged.
pub(crate) struct Telemetry;

/// Begins to log.
///
/// # Errors
/// One line that says what is wrong with what the environment asks for.
pub(crate) fn start(format: LogFormat) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal(); // Colours are for people, not for files.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // A second runtime in one process keeps the first one's log.
    let _ = match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(Telemetry)
}
