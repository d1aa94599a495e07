//! What the device layer says of this machine's devices, as lines of JSON; and what each call of the driver that it
//! makes gives and takes.

// It measures real time, which is what it is for.
#![allow(clippy::disallowed_methods)]

mod calls;

use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use orchestrator_core::core::device::Observation;
use orchestrator_core::gpu::nvml;
use serde_json::{Value, json};

/// How long the driver may take to list the devices.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one look may take before it counts as none.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the device layer, and the driver below it.
#[derive(Parser)]
struct Arguments {
    /// NVIDIA's library, if it is not where the system finds it.
    #[arg(long)]
    library: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The devices, as they are listed at the start.
    Inventory,
    /// Looks at every device, one look behind the other.
    Looks {
        /// For so long, in milliseconds; 0 is one look.
        #[arg(long, default_value_t = 0)]
        ms: u64,
        /// So much time from the begin of one look to that of the next, in milliseconds.
        #[arg(long, default_value_t = 5)]
        every_ms: u64,
    },
    /// Each call that the device layer makes, so many times: what it gives, and how long it takes.
    Calls {
        /// How many times.
        #[arg(long, default_value_t = 200)]
        rounds: u32,
    },
    /// XIDs, as they come.
    Events {
        /// For so long, in milliseconds.
        #[arg(long)]
        ms: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let library = arguments.library.as_deref().map(OsStr::new);
    let done = match arguments.what {
        What::Inventory => inventory(library),
        What::Looks { ms, every_ms } => looks(library, Duration::from_millis(ms), Duration::from_millis(every_ms)),
        What::Calls { rounds } => calls::measure(library, rounds).and_then(|measured| say(&measured)),
        What::Events { ms } => events(library, Duration::from_millis(ms)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

/// Writes one line, at once. Whoever closes the pipe has seen enough.
fn say(line: &Value) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.map_err(|error| error.to_string()),
    }
}

/// Milliseconds since 1970, as whoever else writes down the time of this machine.
fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

fn inventory(library: Option<&OsStr>) -> Result<(), String> {
    let began = Instant::now();
    let probe = nvml::open(library, OPEN_TIMEOUT).map_err(|error| error.to_string())?;
    let took = began.elapsed().as_secs_f64() * 1000.0;
    say(&json!({ "open_ms": took, "inventory": probe.inventory() }))
}

fn looks(library: Option<&OsStr>, length: Duration, every: Duration) -> Result<(), String> {
    let probe = nvml::open(library, OPEN_TIMEOUT).map_err(|error| error.to_string())?;
    let (sender, receiver) = channel();
    probe.attach(Arc::new(move |device, seen| drop(sender.send((device, seen)))));
    let devices: Vec<_> = probe.inventory().devices.into_iter().map(|device| device.id).collect();
    let began = Instant::now();
    loop {
        let round = Instant::now();
        for device in &devices {
            let asked = Instant::now();
            probe.look(device);
            let seen = loop {
                match receiver.recv_timeout(LOOK_TIMEOUT) {
                    Ok((from, seen)) if from == *device && !matches!(seen, Observation::Xid(_)) => break seen,
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break Observation::Late,
                }
            };
            let took = asked.elapsed().as_secs_f64() * 1_000_000.0;
            let (sample, state) = match seen {
                Observation::Sample(sample) => (json!(sample), "sample"),
                Observation::Late => (Value::Null, "late"),
                Observation::Lost => (Value::Null, "lost"),
                Observation::ResetRequired => (Value::Null, "reset_required"),
                Observation::Missing => (Value::Null, "missing"),
                Observation::Xid(_) => continue,
            };
            say(&json!({ "at_ms": now_ms(), "device": device, "took_us": took, "seen": state, "sample": sample }))?;
        }
        if began.elapsed() >= length {
            return Ok(());
        }
        let (_never, pause) = channel::<()>();
        let _ = pause.recv_timeout(every.saturating_sub(round.elapsed())); // Only time passes.
    }
}

fn events(library: Option<&OsStr>, length: Duration) -> Result<(), String> {
    let probe = nvml::open(library, OPEN_TIMEOUT).map_err(|error| error.to_string())?;
    let (sender, receiver) = channel();
    probe.attach(Arc::new(move |device, seen| drop(sender.send((device, seen)))));
    say(&json!({ "at_ms": now_ms(), "listens": true }))?;
    let until = Instant::now() + length;
    while let Ok((device, seen)) = receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if let Observation::Xid(number) = seen {
            say(&json!({ "at_ms": now_ms(), "device": device, "xid": number }))?;
        }
    }
    Ok(())
}
