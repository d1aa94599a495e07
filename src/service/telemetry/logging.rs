//! The log: lines for people or JSON, on standard error. Panics are among them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::Level;
use tracing_subscriber::EnvFilter;

use crate::service::telemetry::log_throttle::ThrottledLog;
use crate::service::telemetry::log_writer;
use crate::service::telemetry::log_writer::LogFormat;

/// What must be kept as long as anything is logged.
#[derive(Default)]
pub(crate) struct Telemetry {
    /// Sends spans to a collector; ends with this.
    #[cfg(feature = "otlp")]
    _exporter: tokio::task::JoinSet<()>,
}

/// Begins to log, and to report panics there.
///
/// # Errors
/// One line that says what is wrong with what the environment asks for, or why nothing can be logged.
pub(crate) fn start(format: LogFormat) -> Result<Telemetry, String> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) => EnvFilter::try_new(text).map_err(|error| format!("{}: {error}", EnvFilter::DEFAULT_ENV))?,
        Err(_) => EnvFilter::new("info"),
    };
    let log = log_writer::start(format).map_err(|error| format!("nothing can be logged: {error}"))?;
    log.set_colours(std::io::stderr().is_terminal());
    let log = ThrottledLog::new(log, format);
    std::panic::set_hook(Box::new(report));
    #[cfg(feature = "otlp")]
    if let Some((spans, exporter)) = crate::service::telemetry::otlp::from_env()? {
        return Ok(with_spans(format, filter, log, (spans, exporter)));
    }
    let ansi = std::io::stderr().is_terminal(); // Colours are for people, not for files.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).with_ansi(ansi);
    let builder = builder.log_internal_errors(false); // Else they go to standard error, and wait for its reader.
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
    log: ThrottledLog,
    (spans, exporter): (crate::service::telemetry::otlp::Spans, crate::service::telemetry::otlp::Exporter),
) -> Telemetry {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{Layer, fmt, registry};
    let ansi = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(log).with_ansi(ansi).log_internal_errors(false);
    let lines = match format {
        LogFormat::Human => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let spans = spans.with_filter(Targets::new().with_target("orchestrator_core::task_span", LevelFilter::TRACE));
    let _ = registry().with(lines).with(spans).try_init(); // A second runtime in one process keeps the first one's log.
    let mut telemetry = Telemetry::default();
    telemetry._exporter.spawn(exporter.run());
    telemetry
}

/// Reports a panic in the log, whatever `RUST_LOG` leaves out. The hook of the standard library writes to standard
/// error itself, and so waits for its reader.
fn report(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or("with something that is no text");
    let backtrace = Backtrace::capture(); // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let text = format!("thread {thread:?} panicked at {location}: {said}");
    if tracing::enabled!(target: "panic", Level::ERROR) {
        tracing::error!(target: "panic", location, backtrace, "{text}");
    } else {
        log_writer::line(&format!("{text}\n{}", backtrace.unwrap_or_default()));
    }
}
