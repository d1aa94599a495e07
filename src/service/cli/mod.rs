//! The command line of `orchestratord`.

pub(in crate::service) mod arguments;
#[cfg(feature = "cluster")]
pub(in crate::service) mod cluster_authority;
#[cfg(feature = "cluster")]
pub(in crate::service) mod cluster_command;
pub(in crate::service) mod config_command;
pub(in crate::service) mod doctor;
pub(in crate::service) mod keys_command;
pub(in crate::service) mod output;
pub(in crate::service) mod plain_text;
pub mod reference;
pub(in crate::service) mod remote;
pub(in crate::service) mod submit;

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::service::cli::arguments::{ServeArguments, SubmitArguments};
use crate::service::cli::config_command::ConfigCommand;
use crate::service::cli::doctor::DoctorArguments;
use crate::service::cli::keys_command::KeyCommand;
use crate::service::cli::output::{say, tell};
use crate::service::config::config_file;
use crate::service::host::borders;
use crate::service::host::devices;
use crate::service::run::serve;
use crate::service::run::top::{self, TopArguments};
use crate::service::telemetry::log_writer::FlushAtEnd;

/// Keeps GPUs busy, fair and honest for LLM inference.
#[derive(Debug, Parser)]
#[command(name = "orchestratord", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP API. Without a configuration: one pool of the simulated engine.
    Serve(ServeArguments),
    /// Submit a prompt to a running service and stream its tokens.
    Submit(SubmitArguments),
    /// Check a configuration file against its schema and this host's devices, and say what is wrong with it.
    Check {
        /// The YAML file.
        file: PathBuf,
    },
    /// Look at a running service in the terminal: pools, queues, latency, objectives, failures.
    Top(TopArguments),
    /// Look at the host and the configuration, and say what to do about what is wrong.
    Doctor(DoctorArguments),
    /// Look at and change the configuration of a running service.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the JSON Schema of the configuration file, for editors.
    Schema,
    /// Print what completes commands in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make a first cluster, and look at its nodes.
    #[cfg(feature = "cluster")]
    #[command(subcommand)]
    Cluster(crate::service::cli::cluster_command::ClusterCommand),
    /// List the devices of this host.
    Devices {
        /// Where NVIDIA's management library lies, if not where the system finds it.
        #[arg(long)]
        library: Option<String>,
    },
}

/// Runs the command. What goes wrong is told on standard error; the exit code says so too.
pub fn run() -> ExitCode {
    let _flush = FlushAtEnd;
    let command = match Arguments::try_parse() {
        Ok(arguments) => arguments.command,
        Err(error) => return refuse(&error),
    };
    let outcome = match (execute(command), output::finish()) {
        (Ok(()), finished) => finished,
        (failed, Ok(())) => failed,
        (Err(text), Err(lost)) => Err(format!("{text}\n{lost}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            tell(&text);
            ExitCode::FAILURE
        }
    }
}

/// What a wrong command line gets, and what `--help` and `--version` do.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        tell(error.render().to_string().trim_end()); // It quotes what was typed.
        return ExitCode::from(2);
    }
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(fault) if fault.kind() != ErrorKind::BrokenPipe => {
            tell(&format!("standard output cannot be written to: {fault}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn execute(command: Command) -> Result<(), String> {
    match command {
        Command::Serve(arguments) => {
            let not_done = borders::draw(arguments.dumpable);
            block_on(serve::run(arguments, not_done))
        }
        Command::Submit(arguments) => block_on(submit::run(arguments)),
        Command::Check { file } => check(&file),
        Command::Devices { library } => devices::list(library),
        Command::Key(command) => keys_command::run(command),
        Command::Top(arguments) => block_on(top::run(arguments)),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Config(command) => block_on(config_command::run(command)),
        #[cfg(feature = "cluster")]
        Command::Cluster(command) => block_on(crate::service::cli::cluster_command::run(command)),
        Command::Schema => {
            say(config_file::schema().trim_end());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "orchestratord", &mut text);
            output::print(&String::from_utf8_lossy(&text));
            Ok(())
        }
        Command::Man => man(),
    }
}

/// Every command on one page, in roff.
fn man() -> Result<(), String> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(Arguments::command());
    page.render(&mut text).map_err(|error| error.to_string())?;
    for command in Arguments::command().get_subcommands().filter(|command| command.get_name() != "help") {
        let page = clap_mangen::Man::new(command.clone());
        let named = format!(".SH \"ORCHESTRATORD {}\"\n", command.get_name().to_uppercase());
        text.extend_from_slice(named.as_bytes());
        let part = page.render_description_section(&mut text).and_then(|()| page.render_options_section(&mut text));
        part.map_err(|error| error.to_string())?;
    }
    text.extend_from_slice(EXIT_CODES.as_bytes());
    output::print(&String::from_utf8_lossy(&text));
    Ok(())
}

/// What the exit codes mean, for the manual page.
const EXIT_CODES: &str = ".SH \"EXIT STATUS\"\n.TP\n0\nDone; for serve, drained and stopped.\n.TP\n1\nWhat was wrong is said on standard error; output that could not be written is an error too.\n.TP\n2\nThe command line is wrong.\n.TP\n101\nA bug of ours: please report what standard error says.\n";

fn block_on(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?.block_on(work)
}

fn check(file: &std::path::Path) -> Result<(), String> {
    let config = config_file::load(file).map_err(|faults| faults.to_string())?;
    let faults = devices::faults(&config).map_err(|fault| format!("{}: {fault}", file.display()))?;
    if !faults.is_empty() {
        let lines = faults.iter().map(|fault| format!("{}: {fault}", file.display()));
        return Err(lines.collect::<Vec<_>>().join("\n"));
    }
    let replicas: usize = config.pools.iter().map(|pool| pool.replicas.len()).sum();
    say(&format!("{}: valid, {} pools with {replicas} replicas", file.display(), config.pools.len()));
    Ok(())
}
