//! What the commands that stay are told on the command line.

use std::path::PathBuf;

use crate::service::cli::remote::Remote;
use crate::service::telemetry::log_writer::LogFormat;

/// How to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArguments {
    /// The YAML file that names the pools.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Address and port to listen on; port 0 takes a free one. [default: 127.0.0.1:7700]
    #[arg(long)]
    pub(crate) listen: Option<String>,
    /// Address and port for operators, apart from the one for tasks.
    #[arg(long)]
    pub(crate) admin_listen: Option<String>,
    /// Put the configuration file in force whenever it changes.
    #[arg(long, requires = "config")]
    pub(crate) watch: bool,
    /// Listen where others can reach it without keys or without TLS.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Let debuggers of the same user attach, and core files be written. Engines of that user can then read its memory.
    #[arg(long)]
    pub(crate) dumpable: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
}

/// What to submit, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArguments {
    /// The text to go on from.
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Most tokens to generate.
    #[arg(long)]
    pub(crate) max_tokens: Option<u32>,
    /// The seed; derived from the task's id when left out.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// `interactive` or `batch`.
    #[arg(long)]
    pub(crate) priority: Option<String>,
    /// The model; may be left out where one is served.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Who submits, while the service has no authentication.
    #[arg(long)]
    pub(crate) client: Option<String>,
}
