//! `orchestratord serve`: the runtime, the HTTP API around it, and the signals that end both.

use std::io::IsTerminal;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::orchestrator::Orchestrator;
use crate::service::cli::{LogFormat, ServeArguments, say};
use crate::service::{config_file, devices, engines, http};

/// How long clients may take to close their connections when everything has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until a signal comes. SIGTERM, SIGINT and SIGHUP drain first; a second signal ends at once.
pub(crate) async fn run(arguments: ServeArguments) -> Result<(), String> {
    log_to_stderr(arguments.log_format);
    let config = match &arguments.config {
        Some(file) => config_file::load(file).map_err(|faults| faults.to_string())?,
        None => engines::demo(),
    };
    let listen = arguments.listen.unwrap_or_else(|| config.http.listen.clone());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let mut signals = Signals::new().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let probe = devices::probe(&config.gpu)?;
    greet(arguments.config.is_none(), &config, probe.as_ref().err(), address);
    let builder = engines::builder(config);
    let builder = match probe {
        Ok(probe) => builder.devices(probe),
        Err(_) => builder,
    };
    let orchestrator = builder.start().await.map_err(|error| error.to_string())?;

    let (stop, stopped) = oneshot::channel::<()>();
    // Tokens are small: without this they wait for the other side's acknowledgement of the last one.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let server = axum::serve(listener, http::router(orchestrator.clone())).with_graceful_shutdown(async move {
        let _ = stopped.await; // Dropped: stop as well.
    });
    let server = tokio::spawn(server.into_future());
    tokio::select! {
        biased;
        () = signals.next() => tracing::info!("draining; a second signal ends at once"),
        () = orchestrator.until_ended() => return Err("the actors failed too often, see the log".into()),
    }
    tokio::select! {
        biased;
        () = signals.next() => return Err("ended at once by a second signal".into()),
        () = drain(orchestrator, stop, server) => {}
    }
    tracing::info!("drained and stopped");
    Ok(())
}

/// New tasks are refused at once, streams go on to their ends, then the connections close.
async fn drain(
    orchestrator: Orchestrator,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
) {
    orchestrator.stop().await;
    let _ = stop.send(()); // The server is gone: it has stopped.
    match timeout(CLOSE_TIMEOUT, server).await {
        Ok(Ok(Err(error))) => tracing::error!(%error, "the server failed"),
        Ok(_) => {}
        Err(_) => tracing::warn!("some clients did not close their connections in time"),
    }
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())?, hangup: signal(SignalKind::hangup())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {} // The terminal is gone; the engines must not stay behind.
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal(); // Colours are for people, not for files.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // A second runtime in one process keeps the first one's log.
    let _ = match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

fn greet(demo: bool, config: &Config, no_driver: Option<&String>, address: std::net::SocketAddr) {
    if demo {
        say("No configuration was given: serving SIMULATED text from two simulated GPUs. No model, no real GPU.");
        say("Serve your own engines with: orchestratord serve --config FILE");
    }
    if let Some(why) = no_driver {
        say(&format!("{why}: devices are simulated"));
    }
    for pool in &config.pools {
        let (replicas, slots) = (pool.replicas.len(), pool.slots);
        say(&format!("pool {}: {} serves {}, {replicas} replicas of {slots} slots", pool.id, pool.engine, pool.model));
    }
    say(&format!("listening on http://{address}"));
    say("try:");
    say(&format!(
        "  curl -N http://{address}/v1/tasks -H 'Accept: text/event-stream' -d '{{\"prompt\":\"The sky is\",\"max_tokens\":16}}'"
    ));
}
