//! Lines of the library below a node's links: its port on loopback is told to nobody, but any user of this host may
//! knock at it, and each connection makes it write several lines.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

use crate::core::admission::line_budget::LineBudget;
use crate::env::Env;
use crate::service::telemetry::log_writer::LogFormat;
use crate::service::telemetry::log_writer::{LogWriter, notice};

/// Whose lines are bounded.
const TARGET: &str = "ractor_cluster";
const LEFT_OUT: &str = "lines of the links' inner port were left out: there were too many";

/// The log, with a bound on those lines. All others pass.
pub(crate) struct ThrottledLog {
    log: Arc<LogWriter>,
    format: LogFormat,
    env: Env,
    /// A short lock, for lines of that library only.
    lines: Mutex<LineBudget>,
}

impl ThrottledLog {
    pub(crate) fn new(log: Arc<LogWriter>, format: LogFormat) -> Self {
        let env = Env::real();
        let lines = Mutex::new(LineBudget::new(env.now()));
        ThrottledLog { log, format, env, lines }
    }

    /// Whether a line of this target is written; before the first one behind others that were not, it says how many
    /// those were.
    fn admits(&self, target: &str) -> bool {
        if !target.starts_with(TARGET) {
            return true;
        }
        let Some(suppressed) = self.lines.lock().take(self.env.now()) else { return false };
        if suppressed > 0 {
            // A line for which there is no room is counted as lost.
            let mut log = &*self.log;
            let _ = log.write_all(&notice(self.format, LEFT_OUT, ("suppressed", suppressed)));
        }
        true
    }
}

impl<'a> MakeWriter<'a> for ThrottledLog {
    type Writer = OptionalWriter<&'a LogWriter>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(&*self.log)
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        if self.admits(about.target()) { self.make_writer() } else { OptionalWriter::none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_inner_port_are_bounded_and_others_pass() {
        let log = ThrottledLog::new(Arc::default(), LogFormat::Human);
        let admitted = (0..1_000).filter(|_| log.admits("ractor_cluster::net::listener")).count();
        assert!((10..20).contains(&admitted), "ten at once, and one for each second that this takes: {admitted}");
        assert!((0..1_000).all(|_| log.admits("orchestrator_core::cluster::membership::members")));
    }
}
