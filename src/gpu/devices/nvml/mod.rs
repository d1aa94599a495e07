//! Real devices, through NVIDIA's management library, which is looked for at run time.
//!
//! Its calls block in the driver and know no deadline. So each device has a thread of its own that does nothing else,
//! and one more waits for the driver's XID events; whoever asks for a look never waits. A thread that is stuck in the
//! driver stays there and takes no further question; the process goes on without it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};
use parking_lot::Mutex;

use crate::core::device::{Inventory, Mig, Observation};
use crate::core::id::DeviceId;
use crate::gpu::devices::{DeviceProbe, DeviceSink};
use crate::gpu::threads;

mod read;

/// How long the driver may be waited for at once for an event. Each wait that ends without one is a wake-up.
const EVENT_WAIT_MS: u32 = 1_000;
/// Waits for an event with a set that lacks a device, before all are asked anew.
const WAITS_INCOMPLETE: u32 = 10;
/// How long the event thread waits before it tries again when the driver lets it wait for nothing.
const EVENT_RETRY: Duration = Duration::from_secs(1);

/// Why there are no real devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDriver {
    /// NVIDIA's library is not there.
    #[error("no NVIDIA driver found ({0})")]
    Missing(String),
    /// It is there and does not work.
    #[error("the NVIDIA driver does not work: {0}")]
    Broken(String),
    /// It did not answer in time.
    #[error("the NVIDIA driver did not answer within {0:?}")]
    Late(Duration),
}

/// Opens NVIDIA's library at this path, or where the system finds it, and lists the devices. Blocks for `limit` at
/// most.
///
/// # Errors
/// [`NoDriver`]; a host without GPUs is none.
pub fn open(library: Option<&OsStr>, limit: Duration) -> Result<Arc<dyn DeviceProbe>, NoDriver> {
    let library = library.map(OsStr::to_owned);
    let (sender, receiver) = channel();
    threads::start("nvml-open", move || drop(sender.send(list(library.as_deref())))); // Unheard: it took too long.
    match receiver.recv_timeout(limit) {
        Ok(result) => result.map(|(nvml, inventory)| NvmlProbe::start(nvml, inventory) as Arc<dyn DeviceProbe>),
        Err(RecvTimeoutError::Timeout) => Err(NoDriver::Late(limit)),
        Err(RecvTimeoutError::Disconnected) => Err(NoDriver::Broken("it ended the thread that asked it".into())),
    }
}

fn list(library: Option<&OsStr>) -> Result<(Arc<Nvml>, Inventory), NoDriver> {
    let mut builder = Nvml::builder();
    if let Some(path) = library {
        builder.lib_path(path);
    }
    let nvml = builder.init().map_err(|error| match error {
        NvmlError::LibloadingError(error) => NoDriver::Missing(one_line(&error)),
        NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded => NoDriver::Missing(one_line(&error)),
        other => NoDriver::Broken(one_line(&other)),
    })?;
    let inventory = read::inventory(&nvml).map_err(|error| NoDriver::Broken(one_line(&error)))?;
    Ok((Arc::new(nvml), inventory))
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

type Sink = Arc<Mutex<Option<DeviceSink>>>;

/// The probe: a thread for each device, and one for events. They end with it, when the driver lets them.
struct NvmlProbe {
    inventory: Inventory,
    sink: Sink,
    /// Where each device's thread is asked for a look. One question fits; a second one is dropped.
    asked: BTreeMap<DeviceId, SyncSender<()>>,
    is_over: Arc<AtomicBool>,
}

impl NvmlProbe {
    fn start(nvml: Arc<Nvml>, inventory: Inventory) -> Arc<Self> {
        let sink = Sink::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let mut asked = BTreeMap::new();
        for device in &inventory.devices {
            let (sender, questions) = sync_channel(1);
            let (nvml, id, sink) = (nvml.clone(), device.id.clone(), sink.clone());
            threads::start(&format!("nvml-{}", device.id), move || answer(&nvml, &id, &questions, &sink));
            asked.insert(device.id.clone(), sender);
        }
        // Events are registered for whole devices; what befalls one befalls its parts.
        let whole = inventory.devices.iter().filter(|device| !matches!(device.mig, Mig::PartOf(_)));
        let whole: Vec<DeviceId> = whole.map(|device| device.id.clone()).collect();
        let (to, over) = (sink.clone(), is_over.clone());
        threads::start("nvml-events", move || watch(&nvml, &whole, &to, &over));
        Arc::new(NvmlProbe { inventory, sink, asked, is_over })
    }
}

impl DeviceProbe for NvmlProbe {
    fn inventory(&self) -> Inventory {
        self.inventory.clone()
    }

    fn attach(&self, sink: DeviceSink) {
        *self.sink.lock() = Some(sink);
    }

    fn look(&self, device: &DeviceId) {
        let Some(thread) = self.asked.get(device) else { return };
        match thread.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {} // It has not answered the last question yet.
            Err(TrySendError::Disconnected(())) => {
                tracing::error!(%device, "the thread that looks at a device has ended")
            }
        }
    }
}

impl Drop for NvmlProbe {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst); // The devices' threads end with their questions.
    }
}

fn send(sink: &Sink, device: &DeviceId, seen: Observation) {
    let to = sink.lock().clone();
    if let Some(to) = to {
        to(device.clone(), seen);
    }
}

/// Looks at one device whenever it is asked to.
fn answer(nvml: &Nvml, id: &DeviceId, questions: &Receiver<()>, sink: &Sink) {
    while questions.recv().is_ok() {
        send(sink, id, read::observe(nvml, id));
    }
}

/// Passes the driver's XID events on. Without a driver that has events it only tries again now and then.
fn watch(nvml: &Nvml, devices: &[DeviceId], sink: &Sink, is_over: &AtomicBool) {
    let (_never, pause) = channel::<()>();
    while !is_over.load(SeqCst) {
        let Some((events, is_whole)) = register(nvml, devices) else {
            let _ = pause.recv_timeout(EVENT_RETRY); // Only time passes.
            continue;
        };
        for waits in 0_u32.. {
            if is_over.load(SeqCst) {
                return;
            }
            if waits >= WAITS_INCOMPLETE && !is_whole {
                break; // Those that were left out may be willing by now.
            }
            match events.wait(EVENT_WAIT_MS) {
                Ok(event) => {
                    let number = match event.event_data {
                        Some(XidError::Value(number)) => number,
                        Some(XidError::Unknown) | None => continue,
                    };
                    // A device that is gone may not tell its name any more: then looks at it say the rest.
                    let device = event.device.uuid().ok().and_then(|uuid| DeviceId::parse(&uuid).ok());
                    if let Some(device) = device {
                        send(sink, &device, Observation::Xid(number));
                    }
                }
                Err(NvmlError::Timeout) => {}
                Err(error) => {
                    tracing::debug!(%error, "the driver's events cannot be waited for");
                    let _ = pause.recv_timeout(EVENT_RETRY);
                    break;
                }
            }
        }
    }
}

/// An event set with every device that has events, and whether those are all; `None` when none has. A device that is
/// refused takes the whole set along, so it is left out and the others are registered anew.
fn register<'a>(nvml: &'a Nvml, devices: &[DeviceId]) -> Option<(EventSet<'a>, bool)> {
    let mut willing: Vec<&DeviceId> = devices.iter().collect();
    'anew: while !willing.is_empty() {
        let mut events = nvml.create_event_set().ok()?;
        for (at, id) in willing.iter().enumerate() {
            let registered = match nvml.device_by_uuid(id.as_str()) {
                Ok(device) => device.register_events(EventTypes::CRITICAL_XID_ERROR, events).ok(),
                Err(_) => None,
            };
            match registered {
                Some(set) => events = set,
                None => {
                    tracing::debug!(device = %id, "the driver has no events for a device");
                    willing.remove(at);
                    continue 'anew;
                }
            }
        }
        let is_whole = willing.len() == devices.len();
        return Some((events, is_whole));
    }
    None
}
