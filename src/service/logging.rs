//! The log: lines for people or JSON, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::service::cli::LogFormat;

/// What must be kept as long as anything is logged.
#[derive(Default)]
pub(crate) struct Telemetry {
    /// Sends spans to a collector; ends with this.
    #[cfg(feature = "otlp")]
    _exporter: tokio::task::JoinSet<()>,
}

/// Begins to log.
///
/// # Errors
/// One line that says what is wrong with what the environment asks for.
pub(crate) fn start(format: LogFormat) -> Result<Telemetry, String> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) => EnvFilter::try_new(text).map_err(|error| format!("{}: {error}", EnvFilter::DEFAULT_ENV))?,
        Err(_) => EnvFilter::new("info"),
    };
    #[cfg(feature = "otlp")]
    if let Some((spans, exporter)) = crate::service::otlp::from_env()? {
        return Ok(with_spans(format, filter, spans, exporter));
    }
    let ansi = std::io::stderr().is_terminal(); // Colours are for people, not for files.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // A second runtime in one process keeps the first one's log.
    let _ = match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(Telemetry::default())
}

/// The same beside spans that go to a collector. What the log leaves out does not concern them.
#[cfg(feature = "otlp")]
fn with_spans(
    format: LogFormat,
    filter: EnvFilter,
    spans: crate::service::otlp::Spans,
    exporter: crate::service::otlp::Exporter,
) -> Telemetry {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{Layer, fmt, registry};
    let ansi = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match format {
        LogFormat::Human => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let spans = spans.with_filter(Targets::new().with_target("task_span", LevelFilter::TRACE));
    let _ = registry().with(lines).with(spans).try_init(); // A second runtime in one process keeps the first one's log.
    let mut telemetry = Telemetry::default();
    telemetry._exporter.spawn(exporter.run());
    telemetry
}
