//! The devices of this host, as all actors see them: a table that the GPU monitor writes and outlives it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::core::device::health::{Change, Condition, Failure, Health};
use crate::core::device::{DeviceInfo, DeviceSample, Inventory, Mig, Observation, Origin};
use crate::core::id::{DeviceId, DeviceMask};
use crate::core::pool::memory::Need;
use crate::core::pool::restart::RestartPolicy;
use crate::core::units::Timestamp;
use crate::env::Env;
use crate::gpu::engine::EngineError;

/// Every device.
pub(crate) struct Devices {
    env: Env,
    pub(crate) origin: Origin,
    policy: RestartPolicy,
    /// Only ever longer: simulated devices that a new configuration names.
    table: RwLock<Arc<Vec<Arc<DeviceShared>>>>,
    /// Something was seen of a device.
    seen: Notify,
}

/// One device.
pub(crate) struct DeviceShared {
    pub(crate) info: DeviceInfo,
    state: Mutex<DeviceState>,
    /// Times that it failed.
    pub(crate) failures: AtomicU64,
}

/// What is known of it. Written by the GPU monitor.
struct DeviceState {
    health: Health,
    /// What the last look gave, and when.
    sample: Option<(Timestamp, Arc<DeviceSample>)>,
    /// XIDs by number.
    xids: BTreeMap<u64, u64>,
}

/// Distinct XID numbers that are counted for one device; the driver has fewer.
const XIDS_MAX: usize = 256;

impl Devices {
    /// The devices of an inventory; of a simulated one, those that `named` says.
    pub(crate) fn new(inventory: &Inventory, named: &DeviceMask, policy: RestartPolicy, env: Env) -> Self {
        let mut infos = inventory.devices.clone();
        if !inventory.is_real() {
            let unknown = named.devices().iter().filter(|id| inventory.get(id).is_none());
            infos.extend(unknown.map(|id| DeviceInfo::unknown(id.clone())));
        }
        let table = infos.into_iter().map(|info| DeviceShared::new(info, policy)).collect();
        let (origin, table) = (inventory.origin.clone(), RwLock::new(Arc::new(table)));
        Devices { env, origin, policy, table, seen: Notify::new() }
    }

    /// A new configuration names these: simulated devices are there as soon as somebody names them.
    pub(crate) fn learn(&self, masks: &[DeviceMask]) {
        if matches!(self.origin, Origin::Driver { .. }) {
            return;
        }
        let mut table = self.table.write();
        for id in masks.iter().flat_map(|mask| mask.devices()) {
            if !table.iter().any(|device| device.info.id == *id) {
                Arc::make_mut(&mut table).push(DeviceShared::new(DeviceInfo::unknown(id.clone()), self.policy));
            }
        }
    }

    /// Each of them.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<DeviceShared>>> {
        self.table.read().clone()
    }

    fn of(&self, mask: &DeviceMask) -> impl Iterator<Item = Arc<DeviceShared>> {
        let all = self.all();
        let named = |device: &&Arc<DeviceShared>| mask.devices().contains(&device.info.id);
        all.iter().filter(named).cloned().collect::<Vec<_>>().into_iter()
    }

    /// Takes up what was seen of a device, and of the parts that it is divided into; returns what that changes for
    /// each.
    pub(crate) fn observe(&self, id: &DeviceId, seen: &Observation) -> Vec<(DeviceId, Change)> {
        let now = self.env.now();
        let table = self.all();
        let concerned = table.iter().filter(|device| {
            // A look at a whole device says nothing of its parts' memory; what fails fails with all its parts.
            let is_part = device.info.mig == Mig::PartOf(id.clone()) && !matches!(seen, Observation::Sample(_));
            device.info.id == *id || is_part
        });
        let changes = concerned.map(|device| (device.info.id.clone(), device.observe(now, seen)));
        let mut changes: Vec<(DeviceId, Change)> = changes.collect();
        if let (Observation::Sample(_), Some((_, Change::Down(failure)))) = (seen, changes.first().cloned()) {
            // What a look at the whole has found: its parts say nothing of it themselves.
            let parts = table.iter().filter(|device| device.info.mig == Mig::PartOf(id.clone()));
            changes.extend(parts.map(|part| (part.info.id.clone(), part.fail(now, failure))));
        }
        self.seen.notify_waiters();
        changes
    }

    /// The first device of the mask that cannot be used, why, and until when at least.
    pub(crate) fn unusable(&self, mask: &DeviceMask) -> Option<(DeviceId, Failure, Timestamp)> {
        self.of(mask).find_map(|device| match device.condition() {
            Condition::Failed { failure, until } => Some((device.info.id.clone(), failure, until)),
            _ => None,
        })
    }

    /// Waits until every device of the mask can be used.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_usable(&self, mask: &DeviceMask) {
        self.until(|| self.unusable(mask).is_none()).await;
    }

    /// Waits until something is so; looks whenever something was seen of any device.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let seen = self.seen.notified();
            tokio::pin!(seen);
            seen.as_mut().enable(); // Before the look, so that nothing is missed.
            if is_so() {
                return;
            }
            seen.await;
        }
    }

    /// The CPUs that every device of the mask is near to; empty for any.
    pub(crate) fn cpus_near(&self, mask: &DeviceMask) -> Vec<u32> {
        let mut near: Option<Vec<u32>> = None;
        for device in self.of(mask).filter(|device| !device.info.cpus.is_empty()) {
            let cpus = &device.info.cpus;
            near = Some(match near {
                None => cpus.clone(),
                Some(near) => near.into_iter().filter(|cpu| cpus.contains(cpu)).collect(),
            });
        }
        near.unwrap_or_default()
    }

    /// Memory that is free on the fullest device of the mask; `None` when unknown.
    pub(crate) fn vram_free(&self, mask: &DeviceMask) -> Option<u64> {
        let free = |device: &Arc<DeviceShared>| device.sample().and_then(|(_, sample)| sample.memory_free());
        self.of(mask).map(|device| free(&device).map(|free| free.0)).min().flatten()
    }

    /// Which of these processes were seen on devices outside the mask, and on which.
    pub(crate) fn strays(&self, mask: &DeviceMask, processes: &[u32]) -> Option<(u32, DeviceId)> {
        self.all().iter().filter(|device| !self.is_inside(device, mask)).find_map(|device| {
            let (_, sample) = device.sample()?;
            let stray = sample.processes.iter().map(|(pid, _)| *pid).find(|pid| processes.contains(pid))?;
            Some((stray, device.info.id.clone()))
        })
    }

    /// Whether a device is in the mask, or is divided into parts of which one is.
    fn is_inside(&self, device: &DeviceShared, mask: &DeviceMask) -> bool {
        let parts = match &device.info.mig {
            Mig::Divided(parts) => parts.as_slice(),
            Mig::Off | Mig::PartOf(_) => &[],
        };
        let mut names = parts.iter().chain([&device.info.id]);
        names.any(|id| mask.devices().contains(id))
    }

    /// Waits until what a load needs is free on the devices of a mask, by a look that is newer than now, and earlier
    /// processes are seen on none of them. Devices that say nothing of their memory are not waited for.
    ///
    /// # Errors
    /// [`EngineError::OutOfVram`] or [`EngineError::Preload`] when it is not within `limit`: what is short, and by how
    /// much.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub(crate) async fn until_room(
        &self,
        mask: &DeviceMask,
        (need, shares): (Option<Need>, &[f64]),
        last_processes: &[u32],
        limit: Duration,
    ) -> Result<(), EngineError> {
        let begin = self.env.now();
        let is_asked = need.is_some() || !last_processes.is_empty();
        if !matches!(self.origin, Origin::Driver { .. }) || mask.devices().is_empty() || !is_asked {
            return Ok(());
        }
        let table = self.all();
        let shortage = || {
            // By the mask, whose order the shares have.
            mask.devices().iter().zip(shares).find_map(|(id, share)| {
                let device = table.iter().find(|device| device.info.id == *id)?;
                let Some((_, sample)) = device.sample().filter(|(at, _)| *at > begin) else {
                    return Some(EngineError::Preload(format!("device {id} has not been looked at").into()));
                };
                let mut seen = sample.processes.iter().map(|(pid, _)| *pid);
                if let Some(pid) = seen.find(|pid| last_processes.contains(pid)) {
                    let text = format!("device {id} has not been left by process {pid} of the last engine");
                    return Some(EngineError::Preload(text.into()));
                }
                let (wanted, free) = (need?.on_device(*share), sample.memory_free()?);
                let text = || format!("device {id} has {} bytes free, and the load needs {}", free.0, wanted.0);
                (free < wanted).then(|| EngineError::OutOfVram(text().into()))
            })
        };
        let _ = timeout(limit, self.until(|| shortage().is_none())).await; // What is still so is found below.
        shortage().map_or(Ok(()), Err)
    }
}

impl DeviceShared {
    fn new(info: DeviceInfo, policy: RestartPolicy) -> Arc<Self> {
        let state = DeviceState { health: Health::new(policy), sample: None, xids: BTreeMap::new() };
        Arc::new(DeviceShared { info, state: Mutex::new(state), failures: AtomicU64::new(0) })
    }

    fn observe(&self, now: Timestamp, seen: &Observation) -> Change {
        let mut state = self.state.lock();
        match seen {
            Observation::Sample(sample) => state.sample = Some((now, Arc::new(sample.clone()))),
            Observation::Xid(number) if state.xids.len() < XIDS_MAX || state.xids.contains_key(number) => {
                *state.xids.entry(*number).or_default() += 1;
            }
            _ => {}
        }
        let change = state.health.observe(now, seen);
        if matches!(change, Change::Down(_)) {
            self.failures.fetch_add(1, Relaxed);
        }
        change
    }

    fn fail(&self, now: Timestamp, failure: Failure) -> Change {
        let change = self.state.lock().health.fail(now, failure);
        self.failures.fetch_add(u64::from(matches!(change, Change::Down(_))), Relaxed);
        change
    }

    pub(crate) fn condition(&self) -> Condition {
        self.state.lock().health.condition()
    }

    /// What the last look gave, and when.
    pub(crate) fn sample(&self) -> Option<(Timestamp, Arc<DeviceSample>)> {
        self.state.lock().sample.clone()
    }

    /// XIDs by number.
    pub(crate) fn xids(&self) -> BTreeMap<u64, u64> {
        self.state.lock().xids.clone()
    }
}
