//! `orchestratord config`: the configuration of a running service from the command line.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

use crate::service::cli::output::say;
use crate::service::cli::remote::Remote;

/// The type of a configuration file; JSON is YAML too.
const YAML: &str = "application/yaml";

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show what is in force.
    Show {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what was in force, and what each change was.
    History {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what a file would change, and change nothing.
    Diff {
        /// The YAML file.
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Put a file in force.
    Apply {
        /// The YAML file.
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Go back to the configuration before, or to an earlier one.
    Rollback {
        /// Its number, as `history` shows it.
        #[arg(long)]
        to: Option<u64>,
        #[command(flatten)]
        remote: Remote,
    },
}

/// Does what is asked.
///
/// # Errors
/// What is wrong with it, a line each.
pub(crate) async fn run(command: ConfigCommand) -> Result<(), String> {
    let read =
        |file: &PathBuf| std::fs::read(file).map_err(|error| format!("{}: it cannot be read: {error}", file.display()));
    match command {
        ConfigCommand::Show { remote } => {
            let value = remote.json(Method::GET, "/v1/config", Vec::new()).await?;
            say(&serde_json::to_string_pretty(&value["config"]).unwrap_or_default());
        }
        ConfigCommand::History { remote } => {
            let value = remote.json(Method::GET, "/v1/config", Vec::new()).await?;
            value["history"].as_array().into_iter().flatten().for_each(entry);
        }
        ConfigCommand::Diff { file, remote } => {
            outcome(&remote.json_for(Method::POST, "/v1/config?dry_run=true", YAML, read(&file)?).await?);
        }
        ConfigCommand::Apply { file, remote } => {
            outcome(&remote.json_for(Method::POST, "/v1/config", YAML, read(&file)?).await?);
        }
        ConfigCommand::Rollback { to, remote } => {
            let body = json!({ "to": to }).to_string().into_bytes();
            outcome(&remote.json(Method::POST, "/v1/config/rollback", body).await?);
        }
    }
    Ok(())
}

fn entry(entry: &Value) {
    say(&format!("{}  from {}", entry["generation"], entry["source"].as_str().unwrap_or("?")));
    differences(entry);
}

fn differences(of: &Value) {
    for one in of["differences"].as_array().into_iter().flatten() {
        let path = one["path"].as_str().unwrap_or("?");
        say(&match (&one["from"], &one["to"]) {
            (Value::Null, new) => format!("  + {path}: {new}"),
            (old, Value::Null) => format!("  - {path}: {old}"),
            (old, new) => format!("  ~ {path}: {old} -> {new}"),
        });
    }
}

fn outcome(outcome: &Value) {
    differences(outcome);
    for (what, text) in [
        ("added", "start"),
        ("removed", "finish and go"),
        ("replaced", "get a successor"),
        ("reloaded", "get another model"),
    ] {
        let pools: Vec<&str> =
            outcome["change"][what].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !pools.is_empty() {
            say(&format!("pools that {text}: {}", pools.join(", ")));
        }
    }
    let generation = &outcome["generation"];
    say(&match (outcome["applied"].as_bool(), outcome["differences"].as_array().is_some_and(Vec::is_empty)) {
        (Some(true), _) => format!("configuration {generation} is in force"),
        (_, true) => format!("nothing differs; configuration {generation} stays in force"),
        _ => format!("nothing was changed; configuration {generation} is in force"),
    });
}
