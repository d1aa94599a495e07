//! `orchestratord cluster`: certificates for a first cluster, and a look at a node.

use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

use crate::service::cli::cluster_authority::{self, InitArguments, RenewArguments, RevokeArguments};
use crate::service::cli::output::say;
use crate::service::cli::remote::Remote;

/// How often a drain is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make an authority, a cookie, and for each node a certificate and a configuration to begin with.
    Init(InitArguments),
    /// Make new certificates and keys for the nodes, by the same authority.
    Renew(RenewArguments),
    /// Put certificates on the authority's revocation list, so that no node lets in who shows them.
    Revoke(RevokeArguments),
    /// Show a node's links.
    Status {
        #[command(flatten)]
        remote: Remote,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Drain a node: it takes nothing new, and finishes what it has. Returns when it has; then it may be stopped.
    Drain {
        #[command(flatten)]
        remote: Remote,
    },
}

/// Does what is asked.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) async fn run(command: ClusterCommand) -> Result<(), String> {
    match command {
        ClusterCommand::Init(arguments) => cluster_authority::init(&arguments),
        ClusterCommand::Renew(arguments) => cluster_authority::renew(&arguments),
        ClusterCommand::Revoke(arguments) => cluster_authority::revoke(&arguments),
        ClusterCommand::Status { remote, json } => status(&remote, json).await,
        ClusterCommand::Drain { remote } => drain(&remote).await,
    }
}

async fn status(remote: &Remote, json: bool) -> Result<(), String> {
    let view = remote.json(Method::GET, "/v1/cluster", Vec::new()).await?;
    if json {
        say(&serde_json::to_string_pretty(&view).map_err(|error| error.to_string())?);
    } else {
        lines(&view).iter().for_each(|line| say(line));
    }
    Ok(())
}

/// A node for people: itself, then a line for each peer.
pub(crate) fn lines(view: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let draining = if view["is_draining"] == true { ", draining" } else { "" };
    let head = format!(
        "node {} (life {}{draining}): {} attempts here, {} taken in, {} lost, {} leases expired",
        text(&view["name"]),
        text(&view["boot_id"]),
        view["guests_open"],
        view["guests_taken"],
        view["guests_lost"],
        view["leases_expired"],
    );
    let columns = format!(
        "{:<16} {:<8} {:>8} {:>6} {:>7} {:>9} {:>11} {:>6}  {}",
        "PEER", "LINK", "RTT ms", "LENT", "GUESTS", "OUTBOX", "ENVELOPES", "LINKS", "POOLS"
    );
    let mut lines = vec![head, columns];
    for peer in view["peers"].as_array().into_iter().flatten() {
        let link = &peer["link"];
        let name = text(&peer["name"]);
        if link.is_null() {
            let why = peer["trouble"].as_str().unwrap_or("it has not come yet");
            lines.push(format!("{name:<16} {:<8} {why}", "none"));
            continue;
        }
        let list = |of: &Value| of.as_array().into_iter().flatten().map(text).collect::<Vec<String>>().join(", ");
        let kept_out = Some(list(&link["kept_out"])).filter(|pools| !pools.is_empty());
        let kept_out = kept_out.map_or(String::new(), |pools| format!(" (kept out: {pools})"));
        lines.push(format!(
            "{name:<16} {:<8} {:>8.2} {:>6} {:>7} {:>9} {:>11} {:>6}  {}{kept_out}",
            text(&link["state"]),
            link["round_trip_ms"].as_f64().unwrap_or_default(),
            link["lent"].to_string(),
            link["guests"].to_string(),
            link["outbox_bytes"].to_string(),
            format!("{}/{}", link["envelopes_in"], link["envelopes_out"]),
            peer["links_made"].to_string(),
            list(&link["pools"]),
        ));
    }
    lines
}

async fn drain(remote: &Remote) -> Result<(), String> {
    remote.json(Method::POST, "/v1/cluster/drain", Vec::new()).await?;
    say("it takes nothing new; waiting for what it has");
    loop {
        let view = remote.json(Method::GET, "/v1/cluster", Vec::new()).await?;
        let pools = remote.json(Method::GET, "/v1/pools", Vec::new()).await?;
        let is_own = |pool: &&Value| pool["node"].is_null();
        let own = pools.as_array().into_iter().flatten().filter(is_own);
        if view["guests_open"] == 0 && own.clone().all(|pool| pool["state"] == "stopped") {
            say("drained: it may be stopped");
            return Ok(());
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}
