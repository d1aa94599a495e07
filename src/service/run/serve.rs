//! `orchestratord serve`: the runtime, the HTTP API around it, and the signals that change or end both.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::Config;
use crate::orchestrator::Orchestrator;
use crate::service::access::Access;
use crate::service::access::keys::KeyFile;
use crate::service::api::overview_cache::OverviewCache;
use crate::service::cli::arguments::ServeArguments;
use crate::service::cli::output;
use crate::service::config::config_file;
use crate::service::config::config_store::{ConfigStore, merged};
use crate::service::config::engines;
use crate::service::config::watch;
use crate::service::host::borders;
use crate::service::host::devices;
use crate::service::host::file_limit;
use crate::service::host::reaper;
use crate::service::http::app::{App, LIMITED, Requests};
use crate::service::http::bodies::Bodies;
use crate::service::http::guard::refusals::Refusals;
use crate::service::http::limits::RequestLimits;
use crate::service::http::listener;
use crate::service::http::listener::connections::Links;
use crate::service::http::listener::tls::Tls;
use crate::service::http::routes::{Audience, router};
use crate::service::run::nodes::Nodes;
use crate::service::run::signals::{SignalAction, Signals};
use crate::service::telemetry::logging;
use crate::service::telemetry::named_counts::NamedCounts;
use crate::service::telemetry::notify::Notifier;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 4_096;
/// How often the runtime is asked whether it lives when a service manager wants to know.
const LIFE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves until a signal comes. SIGTERM and SIGINT drain first; one that comes a second or more behind the first ends
/// at once. SIGHUP reads the configuration again; without one it drains, since the terminal is gone. `not_done` says
/// what of the border to engines could not be drawn.
pub(crate) async fn run(arguments: ServeArguments, not_done: Option<String>) -> Result<(), String> {
    let _telemetry = logging::start(arguments.log_format)?;
    let mut marks = watch::FileFingerprints::default();
    arguments.config.iter().for_each(|file| marks.note(&file.display().to_string()));
    let given = match &arguments.config {
        Some(file) => config_file::load(file).map_err(|faults| faults.to_string())?,
        None => engines::demo(),
    };
    let given = given.with_listeners(arguments.listen.clone(), arguments.admin_listen.clone());
    given.files().for_each(|file| marks.note(file));
    let keys =
        given.access.keys_file.as_ref().map(|file| KeyFile::load(file.as_ref())).transpose()?.unwrap_or_default();
    let config = merged(&given, &keys.clients);
    borders::tell(not_done.as_deref(), borders::exposed(&config, arguments.config.as_deref()).as_ref());
    let tls = config.http.tls.clone().map(Tls::load).transpose()?;
    file_limit::raise();
    let (listener, address) = bind(&config.http.listen, &config, &arguments).await?;
    let (admin, admin_address) = match &config.http.admin_listen {
        Some(address) => bind(address, &config, &arguments).await.map(|(admin, at)| (Some(admin), Some(at)))?,
        None => (None, None),
    };
    let mut signals = Signals::new().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let probe = devices::probe(&config.gpu)?;
    greet(&arguments, &config, probe.as_ref().err(), address, admin_address);
    let builder = engines::builder(config.clone());
    let builder = match probe {
        Ok(probe) => builder.devices(probe),
        Err(_) => builder,
    };
    let orchestrator = builder.start().await.map_err(|error| error.to_string())?;
    let nodes = Nodes::start(config.cluster.as_ref(), &orchestrator).await?;
    let env = orchestrator.env().clone();
    let connections_max = file_limit::connections_max(&config, if admin.is_some() { 2 } else { 1 });
    let links = [(); 2].map(|()| Links::new(env.clone(), connections_max)); // The public ones, and the operators'.
    let app = app(&arguments, &orchestrator, (given, &config, keys), &links, nodes.clone())?;
    let [links, admin_links] = &links;
    // They end with this function.
    let mut work = JoinSet::new();
    let apart = admin.is_some();
    let public = router(app.clone(), move |face| !apart || face == Audience::Public);
    work.spawn(listener::serve(listener, tls.clone(), public, config.http.clone(), links.clone()));
    if let Some(admin) = admin {
        let operators = router(app.clone(), |face| face == Audience::Operator);
        work.spawn(listener::serve(admin, tls.clone(), operators, config.http.clone(), admin_links.clone()));
    }
    let mut beside = JoinSet::new();
    beside.spawn(watch::watch(app.clone(), tls, arguments.watch, marks));
    let notifier = Arc::new(Notifier::from_env());
    beside.spawn(keep_alive(notifier.clone(), orchestrator.clone()));
    beside.spawn(reaper::run());
    notifier.tell("READY=1");
    until_end(&mut signals, &app.store, (&orchestrator, &notifier)).await?;
    let first = env.now();
    tracing::info!("draining; another signal, a second from now or later, ends at once");
    notifier.tell("STOPPING=1");
    drop(app);
    nodes.drain();
    tokio::select! {
        biased;
        () = signals.until_another_end(&env, first) => return Err("ended at once by a second signal".into()),
        () = drain(orchestrator.clone(), [links, admin_links], work) => {}
    }
    if orchestrator.has_failed() {
        return Err("the actors failed while tasks were drained, see the log".into());
    }
    tracing::info!("drained and stopped");
    Ok(())
}

/// What the handlers share.
fn app(
    arguments: &ServeArguments,
    orchestrator: &Orchestrator,
    (given, config, keys): (Config, &Config, KeyFile),
    links: &[Arc<Links>; 2],
    nodes: Nodes,
) -> Result<App, String> {
    let env = orchestrator.env().clone();
    let from = (arguments.config.clone(), [arguments.listen.clone(), arguments.admin_listen.clone()]);
    Ok(App {
        access: Arc::new(Access::new(&config.access, env.clone())?),
        store: Arc::new(ConfigStore::new(orchestrator.clone(), from, given, keys.clients)),
        orchestrator: orchestrator.clone(),
        links: links.to_vec(),
        requests: Arc::new(Requests::default()),
        refusals: Arc::new(Refusals::new(env.clone())),
        request_limits: RequestLimits::new(env.clone(), config.http.requests_per_s),
        bodies: Bodies::new(config.http.bodies_bytes_max),
        operators_bodies: Bodies::new(2 * u64::from(config.http.body_bytes_max)),
        limited: Arc::new(NamedCounts::new(LIMITED)),
        glance: Arc::new(OverviewCache::default()),
        nodes,
    })
}

/// Waits for the signal that ends the service; until then SIGHUP reads the configuration again.
///
/// # Errors
/// One line, when the runtime has ended by itself.
async fn until_end(
    signals: &mut Signals,
    store: &ConfigStore,
    (orchestrator, notifier): (&Orchestrator, &Notifier),
) -> Result<(), String> {
    loop {
        tokio::select! {
            biased;
            wish = signals.next() => match wish {
                SignalAction::Reload if store.file().is_some() => {
                    notifier.tell("RELOADING=1");
                    let _ = store.reload_file(); // What was wrong has been logged.
                    notifier.tell("READY=1");
                }
                SignalAction::Reload | SignalAction::End => return Ok(()),
            },
            () = orchestrator.until_ended() => return Err("the actors failed too often, see the log".into()),
        }
    }
}

/// New tasks are refused at once, streams go on to their ends, then the connections close.
async fn drain(orchestrator: Orchestrator, links: [&Links; 2], mut listeners: JoinSet<()>) {
    orchestrator.stop(std::time::Duration::MAX).await; // Each pool's `drain_ms` bounds it.
    links.iter().for_each(|links| links.stop());
    while listeners.join_next().await.is_some() {}
}

/// Opens a listener, if that is safe.
async fn bind(listen: &str, config: &Config, arguments: &ServeArguments) -> Result<(TcpListener, SocketAddr), String> {
    let unheard = |error: std::io::Error| format!("cannot listen on {listen}: {error}");
    let listener = TcpListener::bind(listen).await.map_err(unheard)?;
    // The library lets 128 wait; whoever is beyond tries again a second later, so a burst of some would cost others a
    // second.
    let _ = rustix::net::listen(&listener, BACKLOG); // As many as the system allows; else what there is.
    let address = listener.local_addr().map_err(unheard)?;
    let is_local = address.ip().is_loopback();
    let is_guarded = config.access.keys_file.is_some() && config.http.tls.is_some();
    if !is_local && !is_guarded && !arguments.insecure {
        return Err(format!(
            "{listen} can be reached by others, and access.keys_file and http.tls are not both set; set them, listen on 127.0.0.1, or \
             say --insecure if something in front of it encrypts and asks for keys"
        ));
    }
    Ok((listener, address))
}

/// Tells the service manager that the runtime lives, as long as it does.
async fn keep_alive(notifier: Arc<Notifier>, orchestrator: Orchestrator) {
    let Some(period) = notifier.watchdog_period() else { return };
    loop {
        // An actor that answers shows that the threads turn and the tree stands.
        if timeout(LIFE_TIMEOUT, orchestrator.is_answering()).await.unwrap_or(false) {
            notifier.tell("WATCHDOG=1");
        }
        tokio::time::sleep(period).await;
    }
}

/// Says what is served and where. Nobody has to read it.
fn greet(
    arguments: &ServeArguments,
    config: &Config,
    no_driver: Option<&String>,
    address: SocketAddr,
    admin: Option<SocketAddr>,
) {
    let mut text = String::new();
    let mut say = |line: &str| text.extend([line, "\n"]);
    if arguments.config.is_none() {
        say("No configuration was given: serving SIMULATED text from two simulated GPUs. No model, no real GPU.");
        say("Serve your own engines with: orchestratord serve --config FILE");
    }
    if let Some(why) = no_driver {
        say(&format!("{why}: devices are simulated"));
    }
    if let Some(cluster) = &config.cluster {
        let peers = cluster.peers.keys().cloned().collect::<Vec<_>>().join(", ");
        say(&format!("node {} of a cluster, on {}; it dials {peers}", cluster.name, cluster.listen));
    }
    for pool in &config.pools {
        let (replicas, slots) = (pool.replicas.len(), pool.slots);
        say(&format!("pool {}: {} serves {}, {replicas} replicas of {slots} slots", pool.id, pool.engine, pool.model));
    }
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    say(&format!("listening on {scheme}://{address}"));
    say(&format!("dashboard: {scheme}://{}/dashboard", admin.unwrap_or(address)));
    let key = if config.access.keys_file.is_some() { " -H 'Authorization: Bearer KEY'" } else { "" };
    say("try:");
    say(&format!(
        "  curl -N {scheme}://{address}/v1/tasks{key} -H 'Content-Type: application/json' \
         -H 'Accept: text/event-stream' -d '{{\"prompt\":\"The sky is\",\"max_tokens\":16}}'"
    ));
    output::greet(text);
}
