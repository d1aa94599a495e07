//! One load of an engine: what must be so before it is begun, and what it must show before it gets a task.
//!
//! Spec: ORCH-3003, ORCH-3011, ORCH-3037, ORCH-3049.

use std::time::Duration;

use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::revision::Revision;
use crate::actors::pool::shared::PoolShared;
use crate::actors::worker::self_test::self_test;
use crate::core::pool::memory::Need;
use crate::env::timeout_awake;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, EngineInfo};
use crate::gpu::process::host;

/// How long the last engine's processes may take to be gone behind their SIGKILL.
const LAST_END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long memory that the last engine held may take to be free.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// A load.
pub(crate) struct Load<'a> {
    pub(crate) pool: &'a PoolShared,
    pub(crate) index: u16,
    pub(crate) revision: &'a Revision,
    pub(crate) engine: &'a dyn DynEngine,
}

impl Load<'_> {
    fn place(&self) -> &ReplicaShared {
        &self.pool.replicas[self.index as usize]
    }

    /// Loads the engine, and lets it show what it can.
    ///
    /// # Errors
    /// [`EngineError`]: it cannot be on these devices, its files are not what they should be, there is no room for it,
    /// it does not load, it is seen on other devices, or it fails the self-test.
    pub(crate) async fn run(&self) -> Result<EngineInfo, EngineError> {
        let place = self.place();
        if let Some(fault) = &place.placement.fault {
            return Err(EngineError::Preload(fault.clone().into()));
        }
        // A large file takes its time, which is none of the engine's.
        let digest = host::digest(&self.revision.config.model_files, &place.id).await?;
        let limit = Duration::from_millis(self.pool.config.timeouts.preload_ms);
        let late = || EngineError::Preload(format!("the engine was not ready within {limit:?}").into());
        timeout_awake(limit, self.load(digest)).await.unwrap_or_else(|| Err(late()))
    }

    async fn load(&self, digest: Option<String>) -> Result<EngineInfo, EngineError> {
        let place = self.place();
        // It may still have the memory that this one needs.
        let term = Duration::from_millis(self.pool.config.timeouts.term_ms);
        place.loaded.site.until_clear(term + LAST_END_TIMEOUT).await;
        self.check_room().await?;
        let mut info = self.engine.preload().await.map_err(|error| match error {
            EngineError::Other(other) => EngineError::Preload(other.to_string().into()),
            error => error,
        })?;
        *place.loaded.last_processes.lock() = info.process_id.map(host::group_of).unwrap_or_default();
        self.check_place(&info)?;
        if let Some(digest) = digest {
            info.model_digest = digest.into();
        }
        // A reload goes by the self-test, whether or not the pool asks for one at its start.
        if self.pool.config.self_test || self.revision.generation > 0 {
            let shown = self_test(self.engine, &self.pool.env, &self.pool.config, info.repeats).await?;
            if !shown.repeats_alone {
                let replica_id = &place.id;
                tracing::warn!(%replica_id, "the same seed gave other tokens: a lost attempt could not be resumed here");
            }
            *place.loaded.self_test.lock() = Some(shown);
        }
        self.check_place(&info)?; // By now it has computed something, and has all its processes.
        *place.loaded.last_processes.lock() = info.process_id.map(host::group_of).unwrap_or_default();
        Ok(info)
    }

    /// Host and device memory, before anything is started (ORCH-3003).
    async fn check_room(&self) -> Result<(), EngineError> {
        let (config, place) = (&self.revision.config, self.place());
        if let Some(wanted) = config.memory.host_bytes {
            host::check_memory(wanted)?;
        }
        let shares = config.replicas[self.index as usize].shares();
        let last = place.loaded.last_processes.lock().clone();
        self.pool.devices.until_room(&place.placement.mask, (self.need(), &shares), &last, ROOM_TIMEOUT).await
    }

    /// What the load needs, for as many slots as its devices are good for.
    fn need(&self) -> Option<Need> {
        let config = &self.revision.config;
        let mut sized = (**config).clone();
        sized.slots = self.place().capacity.slots.limit();
        sized.memory.model_bytes = config.memory.model_bytes.or_else(|| host::size(&config.model_files));
        sized.need()
    }

    /// What its processes are seen on must be inside the mask (ORCH-3011): what an engine was told is not always what
    /// it does.
    fn check_place(&self, info: &EngineInfo) -> Result<(), EngineError> {
        let Some(pid) = info.process_id else { return Ok(()) };
        let (place, processes) = (self.place(), host::group_of(pid));
        match self.pool.devices.strays(&place.placement.mask, &processes) {
            Some((stray, device)) => {
                let text = format!(
                    "process {stray} of {} uses device {device}, outside its mask {}",
                    place.id, place.placement.mask
                );
                Err(EngineError::Preload(text.into()))
            }
            None => Ok(()),
        }
    }
}
