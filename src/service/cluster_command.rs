//! `orchestratord cluster`: certificates for a first cluster, and a look at a node.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

use crate::core::hash::hex;
use crate::core::node::NodeName;
use crate::service::cli::say;
use crate::service::folder::Folder;
use crate::service::remote::Remote;

/// Bytes of a new cookie, before they are written in hexadecimal.
const COOKIE_BYTES: usize = 32;
/// How often a drain is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make an authority, a cookie, and for each node a certificate and a configuration to begin with.
    Init(InitArguments),
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

/// What a first cluster is made of.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArguments {
    /// The folder to make; it must not be there.
    folder: PathBuf,
    /// The nodes, by commas: `NAME` or `NAME=ADDRESS:PORT`. Without an address they are on this machine, from port 7711 on.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    nodes: Vec<String>,
}

/// Does what is asked.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) async fn run(command: ClusterCommand) -> Result<(), String> {
    match command {
        ClusterCommand::Init(arguments) => init(&arguments),
        ClusterCommand::Status { remote, json } => status(&remote, json).await,
        ClusterCommand::Drain { remote } => drain(&remote).await,
    }
}

/// First port of nodes without an address, and of their HTTP APIs.
const PORTS: (u16, u16) = (7711, 7701);

fn init(arguments: &InitArguments) -> Result<(), String> {
    let mut nodes: Vec<(NodeName, String)> = Vec::new();
    for (index, text) in arguments.nodes.iter().enumerate() {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (name, address.to_owned()),
            None => (text.as_str(), format!("127.0.0.1:{}", PORTS.0 + index as u16)),
        };
        let name = NodeName::parse(name).map_err(|error| format!("--nodes: {error}"))?;
        if nodes.iter().any(|(known, _)| *known == name) {
            return Err(format!("--nodes: {name} is named twice"));
        }
        nodes.push((name, address));
    }
    let folder = Folder::make(&arguments.folder)?;
    let mut secret = [0; COOKIE_BYTES];
    getrandom::fill(&mut secret).map_err(|error| format!("the system has no chance for us: {error}"))?;
    write_secret(&folder, "cookie", &hex(&secret))?;
    let ca_key = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
    let mut ca = rcgen::CertificateParams::new(Vec::new()).map_err(|error| error.to_string())?;
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "orchestratord cluster");
    let certificate = ca.self_signed(&ca_key).map_err(|error| error.to_string())?;
    write(&folder, "ca.pem", &certificate.pem())?;
    write_secret(&folder, "ca.key", &ca_key.serialize_pem())?;
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for (index, (name, address)) in nodes.iter().enumerate() {
        let params = rcgen::CertificateParams::new(vec![name.to_string()]).map_err(|error| error.to_string())?;
        let key = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
        let certificate = params.signed_by(&key, &issuer).map_err(|error| error.to_string())?;
        write(&folder, &format!("{name}.pem"), &certificate.pem())?;
        write_secret(&folder, &format!("{name}.key"), &key.serialize_pem())?;
        let peers: String = nodes
            .iter()
            .filter(|(peer, _)| peer != name)
            .map(|(peer, address)| format!("    {peer}: \"{address}\"\n"))
            .collect();
        let at = |file: &str| folder.path(OsStr::new(file)).display().to_string();
        let text = format!(
            "# Node {name}. The pool is simulated: put your own in its place.\nhttp:\n  listen: 127.0.0.1:{}\ncluster:\n  name: {name}\n  \
             listen: {address}\n  peers:\n{peers}  tls:\n    ca_file: {}\n    certificate_file: {}\n    key_file: {}\n  cookie_file: {}\n\
             pools:\n  - id: demo\n    engine: sim\n    model: tiny\n    slots: 2\n",
            PORTS.1 + index as u16,
            at("ca.pem"),
            at(&format!("{name}.pem")),
            at(&format!("{name}.key")),
            at("cookie"),
        );
        write(&folder, &format!("{name}.yaml"), &text)?;
    }
    let at = |file: &str| folder.path(OsStr::new(file)).display().to_string();
    say(&format!("{}: an authority, a cookie, and for each node a certificate and a configuration", at("")));
    for (name, _) in &nodes {
        say(&format!("  orchestratord serve --config {}", at(&format!("{name}.yaml"))));
    }
    say("keep ca.key where no node is: whoever has it can make nodes");
    Ok(())
}

/// A file for everybody, by the umask.
fn write(folder: &Folder, name: &str, text: &str) -> Result<(), String> {
    let written = folder.create(OsStr::new(name), 0o644).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{}: {error}", folder.path(OsStr::new(name)).display()))
}

/// A file that only its owner reads, from its first moment.
fn write_secret(folder: &Folder, name: &str, text: &str) -> Result<(), String> {
    let written = folder.create(OsStr::new(name), 0o600).and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(0o600))?; // Whatever the umask is.
        file.write_all(text.as_bytes())
    });
    written.map_err(|error| format!("{}: {error}", folder.path(OsStr::new(name)).display()))
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
        "node {} (life {}{draining}): {} guests here, {} taken in, {} lost, {} leases expired",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_cluster_has_secrets_that_their_owner_alone_reads_in_a_directory_that_was_not_there() {
        let folder = std::env::temp_dir().join(format!("oc-cluster-init-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder); // Of an earlier run.
        let arguments = InitArguments { folder: folder.clone(), nodes: vec!["a".into(), "b".into()] };
        init(&arguments).unwrap();
        let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        for secret in ["cookie", "ca.key", "a.key", "b.key"] {
            assert_eq!(mode(secret), 0o600, "{secret}");
        }
        assert_eq!(mode("") & 0o022, 0);
        let text = std::fs::read_to_string(folder.join("b.yaml")).unwrap();
        assert!(text.contains(&folder.canonicalize().unwrap().join("b.key").display().to_string()), "{text}");
        let error = init(&arguments).unwrap_err();
        assert!(error.contains("File exists"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
