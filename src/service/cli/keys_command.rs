//! `orchestratord key`: makes, lists and revokes API keys in the file that the service reads.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::core::id::{ClientId, PoolId};
use crate::service::access::keys::{ClientTerms, Key, KeyFile, Scope};
use crate::service::access::keys_lock;
use crate::service::access::unix_s;
use crate::service::cli::output;
use crate::service::cli::output::{say, tell};
use crate::service::host::file_write::Place;

/// What to do with the keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key. It is shown once.
    New(NewKey),
    /// List the keys, without their secrets.
    List {
        /// The file of keys.
        #[arg(long, env = "ORCHESTRATORD_KEYS")]
        file: PathBuf,
    },
    /// Revoke a key: within a second it opens nothing more.
    Revoke {
        /// The key's id: what stands between the two underscores.
        id: String,
        /// The file of keys.
        #[arg(long, env = "ORCHESTRATORD_KEYS")]
        file: PathBuf,
    },
}

/// A key to be made.
#[derive(Debug, clap::Args)]
pub(crate) struct NewKey {
    /// The file of keys; made when it is not there.
    #[arg(long, env = "ORCHESTRATORD_KEYS")]
    file: PathBuf,
    /// Whose tasks it submits.
    #[arg(long)]
    client: String,
    /// What it allows; several by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "submit")]
    scopes: Vec<Scope>,
    /// The only pools that it may use, by commas; left out, all that its client may.
    #[arg(long, value_delimiter = ',')]
    pools: Option<Vec<String>>,
    /// When it ends, from now: `90d`, `12h`, `30m`, `45s`. Left out, never.
    #[arg(long)]
    expires: Option<String>,
    /// The client's weight, for all its keys.
    #[arg(long)]
    weight: Option<u32>,
    /// Tasks of the client that may run at once, for all its keys.
    #[arg(long)]
    quota_running: Option<u32>,
    /// Tasks of the client that may wait, for all its keys.
    #[arg(long)]
    quota_queued: Option<u32>,
    /// Tasks a second that the client may send, for all its keys.
    #[arg(long)]
    requests_per_s: Option<f64>,
}

/// Does what is asked.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) fn run(command: KeyCommand) -> Result<(), String> {
    match command {
        KeyCommand::New(new) => make(new),
        KeyCommand::List { file } => {
            let keys = KeyFile::read(&file)?.keys;
            if keys.is_empty() {
                say(&format!("{} has no keys; make one with: orchestratord key new --client NAME", file.display()));
            }
            keys.iter().for_each(|key| say(&line(key, unix_s())));
            Ok(())
        }
        KeyCommand::Revoke { id, file } => revoke(&id, &file),
    }
}

fn make(new: NewKey) -> Result<(), String> {
    ClientId::parse(&new.client).map_err(|error| format!("--client: {error}"))?;
    for pool in new.pools.iter().flatten() {
        PoolId::parse(pool).map_err(|error| format!("--pools: {error}"))?;
    }
    let (mut scopes, now) = (new.scopes.clone(), unix_s());
    scopes.sort();
    scopes.dedup();
    let expires_at = new.expires.as_deref().map(seconds).transpose()?.map(|seconds| now.saturating_add(seconds));
    let terms = terms(&new)?;
    if output::leads_nowhere() {
        return Err("standard output is /dev/null, and the key is shown there and nowhere else".into());
    }
    let place = Place::find(&new.file)?;
    let _held = keys_lock::hold(&place)?;
    let before = KeyFile::read_at(&place)?;
    let mut keys = before.clone().unwrap_or_default();
    let text = keys.add(&new.client, scopes, now, expires_at)?;
    if let Some(key) = keys.keys.last_mut() {
        key.pools = new.pools.clone();
    }
    set_terms(&mut keys, &new.client, terms);
    keys.write(&place)?;
    if let Err(error) = output::try_print(&format!("{text}\n")) {
        let lost = format!("standard output cannot be written to: {error}; nobody has seen the key");
        return Err(match take_back(&place, before) {
            Ok(()) => format!("{lost}, and it was taken back"),
            Err(fault) => format!("{lost}, and it cannot be taken back: {fault}; revoke the newest one"),
        });
    }
    tell("This is the only time that it is shown; the file has its SHA-256.");
    Ok(())
}

/// What is said of the client, if the service takes it.
fn terms(new: &NewKey) -> Result<ClientTerms, String> {
    let terms = ClientTerms {
        weight: new.weight,
        running: new.quota_running,
        queued: new.quota_queued,
        requests_per_s: new.requests_per_s,
    };
    match terms.faults().first() {
        None => Ok(terms),
        Some(fault) => Err(format!("{}: {}", option(&fault.path), fault.message)),
    }
}

/// The option that a field is given by.
fn option(field: &str) -> &str {
    match field {
        "weight" => "--weight",
        "running" => "--quota-running",
        "queued" => "--quota-queued",
        "requests_per_s" => "--requests-per-s",
        other => other,
    }
}

/// Puts what is said of the client into the file.
fn set_terms(keys: &mut KeyFile, client: &str, terms: ClientTerms) {
    if terms != ClientTerms::default() {
        let client = keys.clients.entry(client.to_owned()).or_default();
        client.weight = terms.weight.or(client.weight);
        client.running = terms.running.or(client.running);
        client.queued = terms.queued.or(client.queued);
        client.requests_per_s = terms.requests_per_s.or(client.requests_per_s);
    }
}

/// Gives the file what it had before; one that was not there goes again.
fn take_back(place: &Place, before: Option<KeyFile>) -> Result<(), String> {
    match before {
        Some(keys) => keys.write(place),
        None => place.remove(),
    }
}

fn revoke(id: &str, file: &Path) -> Result<(), String> {
    let id = id.strip_prefix("oc_").unwrap_or(id).split('_').next().unwrap_or_default().to_owned();
    let place = Place::find(file)?;
    let _held = keys_lock::hold(&place)?;
    let mut keys = KeyFile::read_at(&place)?.unwrap_or_default();
    let known = keys.keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>().join(", ");
    let key = keys.keys.iter_mut().find(|key| key.id == id);
    let key = key.ok_or_else(|| format!("there is no key {id:?}; there is {known}"))?;
    key.revoked_at.get_or_insert(unix_s());
    keys.write(&place)?;
    say(&format!("revoked {id}; a running service refuses it within a second"));
    Ok(())
}

/// A span of time in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("--expires: {text:?} is no span of time such as 90d, 12h, 30m or 45s");
    let unit = match text.chars().last() {
        Some('d') => 86_400,
        Some('h') => 3_600,
        Some('m') => 60,
        Some('s') => 1,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

/// A key in one line.
fn line(key: &Key, now: u64) -> String {
    let days = |seconds: u64| format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600);
    let stands = match key {
        Key { revoked_at: Some(at), .. } => format!("revoked {} ago", days(now.saturating_sub(*at))),
        Key { expires_at: Some(at), .. } if *at <= now => format!("expired {} ago", days(now - at)),
        Key { expires_at: Some(at), .. } => format!("expires in {}", days(at - now)),
        _ => "does not expire".to_owned(),
    };
    let scopes = key.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",");
    let pools = key.pools.as_ref().map_or("all pools".to_owned(), |pools| format!("pools {}", pools.join(",")));
    format!("{}  {}  {scopes}  {pools}  {stands}", key.id, key.client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read() {
        assert_eq!(
            [seconds("2d"), seconds("3h"), seconds("1m"), seconds("9s")],
            [Ok(172_800), Ok(10_800), Ok(60), Ok(9)]
        );
        assert!(["", "d", "5", "-1d", "0d", "1.5h", "99999999999999999d"].iter().all(|wrong| seconds(wrong).is_err()));
    }
}
