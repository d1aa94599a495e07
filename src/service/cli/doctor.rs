//! `orchestratord doctor`: looks at the host and the configuration, and says what to do about each thing that is not as
//! it should be.

use std::path::PathBuf;

use crate::config::{Config, PoolConfig};
use crate::core::device::Origin;
use crate::gpu::http::server::api_key;
use crate::gpu::http::{HttpClient, HttpError};
use crate::gpu::process::account::{Account, may_change_user};
use crate::service::cli::output::say;
use crate::service::config::config_file;
use crate::service::config::engines;
use crate::service::host::borders;
use crate::service::host::devices;

/// What to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArguments {
    /// The configuration; without one, what `serve` does without one.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// How long a server may take to say whether it is ready.
const SERVER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// What one look has found.
enum Finding {
    Well(String),
    /// Serves, but not as well as it could.
    Note(String, &'static str),
    /// Will not serve.
    Wrong(String, &'static str),
}

use Finding::{Note, Well, Wrong};

/// Looks at everything.
///
/// # Errors
/// One line that counts what is wrong.
pub(crate) fn run(arguments: &DoctorArguments) -> Result<(), String> {
    let mut findings = Vec::new();
    let config = configuration(arguments, &mut findings);
    driver(&config, &mut findings);
    programs(&config, &mut findings);
    servers(&config, &mut findings);
    ports(&config, &mut findings);
    limits(&config, &mut findings);
    clock(&mut findings);
    keys(&config, &mut findings);
    certificates(&config, &mut findings);
    engines_user(arguments, &config, &mut findings);
    let mut wrong = 0;
    for finding in &findings {
        match finding {
            Well(text) => say(&format!("ok     {text}")),
            Note(text, advice) => say(&format!("note   {text}\n       {advice}")),
            Wrong(text, advice) => {
                wrong += 1;
                say(&format!("WRONG  {text}\n       {advice}"));
            }
        }
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {} things are wrong", findings.len())) }
}

fn configuration(arguments: &DoctorArguments, findings: &mut Vec<Finding>) -> Config {
    let Some(file) = &arguments.config else {
        findings
            .push(Note("no configuration is named".into(), "name one with --config; this looks at the simulated demo"));
        return engines::demo();
    };
    match config_file::load(file) {
        Ok(config) => {
            findings.push(Well(format!("{}: valid, {} pools", file.display(), config.pools.len())));
            config
        }
        Err(faults) => {
            findings.push(Wrong(faults.to_string(), "mend the file; `orchestratord schema` gives editors its shape"));
            engines::demo()
        }
    }
}

fn driver(config: &Config, findings: &mut Vec<Finding>) {
    match devices::probe(&config.gpu) {
        Ok(Ok(probe)) => {
            let inventory = probe.inventory();
            let version = match &inventory.origin {
                Origin::Driver { version } => version.clone(),
                Origin::Simulated { .. } => "none".into(),
            };
            findings.push(Well(format!("driver {version}, {} devices", inventory.devices.len())));
            let faults = crate::config::resolve(config, &inventory).faults;
            let wrong = |fault: &crate::config::ConfigError| {
                Wrong(fault.to_string(), "change the devices, the memory or the slots of this pool")
            };
            findings.extend(faults.iter().map(wrong));
        }
        Ok(Err(why)) => findings.push(Note(
            format!("{why}: devices are simulated"),
            "on a host with NVIDIA devices install the driver, or name its library with gpu.library; `nvidia-smi` must work",
        )),
        Err(fault) => findings.push(Wrong(fault, "install the driver, or set gpu.driver to auto")),
    }
}

/// The programs that start engines.
fn programs(config: &Config, findings: &mut Vec<Finding>) {
    for pool in &config.pools {
        let Some(program) = pool.command.as_ref().and_then(|command| command.first()) else { continue };
        let found = if program.contains('/') {
            Some(PathBuf::from(program)).filter(|path| path.is_file())
        } else {
            let own = pool.process.env.get("PATH").map(std::ffi::OsString::from);
            let paths = own.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
            std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.is_file())
        };
        findings.push(match found {
            Some(path) => Well(format!("pool {}: {} is there", pool.id, path.display())),
            None => Wrong(
                format!("pool {}: there is no program {program:?}", pool.id),
                "install the engine, or give its whole path in `command`",
            ),
        });
        for file in &pool.model_files {
            if !std::path::Path::new(&file.path).is_file() {
                let text = format!("pool {}: there is no file {:?}", pool.id, file.path);
                findings.push(Wrong(text, "fetch the model, or correct `model_files`"));
            }
        }
    }
}

/// The servers that run elsewhere already.
fn servers(config: &Config, findings: &mut Vec<Finding>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime.inspect_err(|error| findings.push(Wrong(error.to_string(), "end what uses up the host")))
    else {
        return;
    };
    for pool in &config.pools {
        let (Some(url), Some(path)) = (&pool.url, engines::ready_path(pool)) else { continue };
        let key = match api_key(pool) {
            Ok(key) => key,
            Err(error) => {
                findings.push(Wrong(format!("pool {}: {error}", pool.id), "set the variable that api_key_env names"));
                continue;
            }
        };
        for index in 0..pool.replicas.len() {
            let client = HttpClient::new(&url.replace("{index}", &index.to_string()), key.clone());
            let name = format!("pool {}, replica {index}", pool.id);
            findings.push(match runtime.block_on(client.get(&path, SERVER_TIMEOUT)) {
                Ok(_) => Well(format!("{name}: {path} is answered")),
                Err(error @ HttpError::Status { .. }) => Wrong(
                    format!("{name}: {path}: {error}"),
                    "401 and 403: mend the key; 404: `url` is what stands before the engine's own paths; a redirect: name its target",
                ),
                Err(error) => Note(format!("{name}: {path}: {error}"), "start the engine, or correct `url`"),
            });
        }
    }
}

fn ports(config: &Config, findings: &mut Vec<Finding>) {
    for address in [Some(&config.http.listen), config.http.admin_listen.as_ref()].into_iter().flatten() {
        findings.push(match std::net::TcpListener::bind(address) {
            Ok(_) => Well(format!("{address} is free")),
            Err(error) => Wrong(
                format!("{address}: {error}"),
                "end what listens there (`ss -ltnp`), or choose another address with http.listen",
            ),
        });
    }
}

fn limits(config: &Config, findings: &mut Vec<Finding>) {
    use rustix::process::{Resource, getrlimit};
    let (wanted, most) = (u64::from(config.http.connections_max) + 1024, getrlimit(Resource::Nofile).maximum);
    findings.push(match most {
        Some(most) if most < wanted => Note(
            format!("{most} files may be open, and http.connections_max asks for {wanted}"),
            "raise it: LimitNOFILE= of the unit, or `ulimit -Hn`",
        ),
        _ => Well(format!("enough files may be open for {} connections", config.http.connections_max)),
    });
    memory(config, findings);
}

/// Host memory that loads ask for.
fn memory(config: &Config, findings: &mut Vec<Finding>) {
    use crate::gpu::process::host::{check_memory, never_fits};
    let asked: Vec<(&str, u64)> =
        config.pools.iter().filter_map(|pool| Some((pool.id.as_str(), pool.memory.host_bytes?))).collect();
    let never = asked.iter().filter_map(|(pool, wanted)| {
        let text = format!("pool {pool}: memory.host_bytes: {}", never_fits(*wanted)?);
        Some(Wrong(
            text,
            "raise the limit (MemoryMax= of the unit, --memory of the container), or lower it in the pool",
        ))
    });
    let never: Vec<Finding> = never.collect();
    let wanted = asked.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if never.is_empty() && wanted > 0 {
        findings.push(match check_memory(wanted) {
            Ok(()) => Well(format!("there are the {wanted} bytes of host memory that the pools ask for")),
            Err(error) => Note(
                error.to_string(),
                "pools may have to wait for memory; end what else uses it, or lower memory.host_bytes",
            ),
        });
    }
    findings.extend(never);
}

/// Keys end by the wall clock.
fn clock(findings: &mut Vec<Finding>) {
    /// The first day of 2025.
    const EARLIEST: u64 = 1_735_689_600;
    let now = crate::service::access::unix_s();
    findings.push(if now < EARLIEST {
        Wrong(format!("the clock says {now} seconds since 1970, which is long past"), "set the clock; NTP keeps it")
    } else {
        Well("the clock is set".into())
    });
}

fn keys(config: &Config, findings: &mut Vec<Finding>) {
    use std::os::unix::fs::PermissionsExt;
    let Some(file) = &config.access.keys_file else { return };
    match crate::service::access::keys::KeyFile::load(file.as_ref()) {
        Ok(keys) if keys.keys.is_empty() => {
            findings.push(Wrong(
                format!("{file} has no keys: nobody gets in"),
                "make one: orchestratord key new --client NAME --file FILE",
            ));
        }
        Ok(keys) => findings.push(Well(format!("{file}: {} keys", keys.keys.len()))),
        Err(error) => findings.push(Wrong(error, "mend the file or make a new one")),
    }
    let mode = std::fs::metadata(file).map(|about| about.permissions().mode());
    // A group that may read it is how a service reads what is root's.
    if mode.is_ok_and(|mode| mode & 0o027 != 0) {
        findings.push(Note(
            format!("{file} can be read by others, or written by its group"),
            "chmod 600 it, or 640 where it is root's; it has no secrets, but it says who is who",
        ));
    }
}

fn certificates(config: &Config, findings: &mut Vec<Finding>) {
    if let Some(tls) = &config.http.tls {
        findings.push(match crate::service::http::listener::tls::Tls::load(tls.clone()) {
            Ok(_) => Well(format!("{}: a certificate and its key", tls.certificate_file)),
            Err(error) => Wrong(error, "correct http.tls"),
        });
    }
}

/// As whom engines run, and what of the service they may write.
fn engines_user(arguments: &DoctorArguments, config: &Config, findings: &mut Vec<Finding>) {
    if let Some(borders::Exposed { files, pools }) = borders::exposed(config, arguments.config.as_deref()) {
        findings.push(Note(
            format!("{}: the engines of {} run as this user, who may write it", files.join(", "), pools.join(", ")),
            "give it and its folder to root, readable for the service's group, or set process.user of the pools",
        ));
    }
    let named = |pool: &PoolConfig| Some((pool.id.clone(), pool.process.user.clone()?));
    for (pool, user) in config.pools.iter().filter(|pool| pool.command.is_some()).filter_map(named) {
        findings.push(match (Account::named(&user), may_change_user()) {
            (Err(text), _) => Wrong(format!("pool {pool}: {text}"), "make the user, or correct process.user"),
            (Ok(_), Err(text)) => Note(
                format!("pool {pool}: {text}"),
                "look as the service runs; its unit has to allow it (docs/access.md)",
            ),
            (Ok(account), Ok(())) => {
                Well(format!("pool {pool}: engines run as {}, user {}", account.name, account.uid))
            }
        });
    }
}
