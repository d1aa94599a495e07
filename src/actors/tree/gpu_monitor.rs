//! The GPU monitor: has every device looked at once a period, and tells the workers whose devices have failed.
//!
//! The probe's threads send it what they see; nobody else speaks to it. It waits for no driver: a look without an
//! answer in time is itself something that was seen. What it learns lies in the table of devices, so a monitor that
//! dies is followed by one that goes on.
//!
//! Spec: ORCH-3038, ORCH-3053.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::pool::messages::WorkerMsg;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::GpuMonitorMsg;
use crate::core::device::health::Change;
use crate::core::device::xid::xid;
use crate::core::device::{DeviceSample, Observation};
use crate::core::id::DeviceId;
use crate::core::units::Timestamp;
use crate::gpu::engine::EngineError;

/// The actor.
pub(crate) struct GpuMonitor;

/// Its state.
pub(crate) struct GpuMonitorState {
    runtime: Arc<RuntimeShared>,
    /// Looks without an answer, and since when. Invariant: at most one for each device.
    asked: BTreeMap<DeviceId, Timestamp>,
}

impl Actor for GpuMonitor {
    type Msg = GpuMonitorMsg;
    type State = GpuMonitorState;
    type Arguments = Arc<RuntimeShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<GpuMonitorMsg>,
        runtime: Arc<RuntimeShared>,
    ) -> Result<GpuMonitorState, ActorProcessingErr> {
        if let Some(probe) = &runtime.probe {
            let monitor = myself.clone();
            // Gone: the next monitor attaches itself.
            probe.attach(Arc::new(move |device, what| drop(monitor.cast(GpuMonitorMsg::Seen { device, what }))));
            myself.cast(GpuMonitorMsg::Tick)?;
        }
        Ok(GpuMonitorState { runtime, asked: BTreeMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<GpuMonitorMsg>,
        message: GpuMonitorMsg,
        state: &mut GpuMonitorState,
    ) -> Result<(), ActorProcessingErr> {
        state.runtime.env.fault_point("gpu_monitor");
        match message {
            GpuMonitorMsg::Seen { device, what } => on_seen(state, &device, &what),
            GpuMonitorMsg::Tick => on_tick(state, &myself),
        }
        Ok(())
    }
}

fn on_tick(state: &mut GpuMonitorState, myself: &ActorRef<GpuMonitorMsg>) {
    let (runtime, now) = (state.runtime.clone(), state.runtime.env.now());
    let Some(probe) = &runtime.probe else { return };
    let limit = Duration::from_millis(runtime.config().gpu.answer_ms);
    for device in runtime.devices.all().iter() {
        let id = &device.info.id;
        match state.asked.get(id).copied() {
            None => {
                state.asked.insert(id.clone(), now); // First: a simulated device answers at once.
                probe.look(id);
            }
            // Not asked again while the driver has not come back: that would only make one more thread wait.
            Some(asked_at) if now.since(asked_at) >= limit => {
                state.asked.insert(id.clone(), now);
                take_up(state, id, &Observation::Late);
            }
            Some(_) => {}
        }
    }
    myself.send_after(Duration::from_millis(runtime.config().gpu.poll_ms), || GpuMonitorMsg::Tick);
}

fn on_seen(state: &mut GpuMonitorState, device: &DeviceId, what: &Observation) {
    if !matches!(what, Observation::Xid(_)) {
        state.asked.remove(device);
    }
    take_up(state, device, what);
}

/// Notes what was seen, and tells the workers what that means for them.
fn take_up(state: &GpuMonitorState, device: &DeviceId, what: &Observation) {
    if let Observation::Xid(number) = what {
        let rule = xid(*number);
        tracing::warn!(%device, xid = number, meaning = rule.meaning, effect = ?rule.effect, "the driver reports an XID");
    }
    if let Observation::Sample(DeviceSample { reset_pending: true, .. }) = what {
        tracing::debug!(%device, "memory waits for a reset to be retired");
    }
    for (device, change) in state.runtime.devices.observe(device, what) {
        match change {
            Change::None => {}
            Change::Up => tracing::info!(%device, "a device may be used again"),
            Change::Suspect(number) => {
                let text = format!("XID {number} on device {device}: {}", xid(number).meaning);
                tell(state, &device, || WorkerMsg::EngineSuspected(EngineError::Lost(text.clone().into())));
            }
            Change::Down(failure) => {
                tracing::error!(%device, %failure, driver_reset_events = 1, "a device has failed");
                let text = format!("device {device}: {failure}");
                tell(state, &device, || WorkerMsg::EngineFailed(EngineError::DeviceLost(text.clone().into())));
            }
        }
    }
}

/// Tells every worker that uses the device. Who is not there looks at the table when it comes.
fn tell(state: &GpuMonitorState, device: &DeviceId, message: impl Fn() -> WorkerMsg) {
    let table = state.runtime.pools.table();
    for place in table.every().flat_map(|pool| &pool.replicas) {
        if place.placement.mask.devices().contains(device) {
            place.life.worker.cast(message());
        }
    }
}
