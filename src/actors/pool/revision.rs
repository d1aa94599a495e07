//! What a pool serves, and how far the reload to another is.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::config::PoolConfig;
use crate::core::pool::model::ModelSpec;
use crate::core::text::line::Message;
use crate::core::units::{Timestamp, millis_ceil};

/// A model as a pool has it. Each reload makes a new one, with a number of its own.
pub(crate) struct Revision {
    pub(crate) generation: u64,
    pub(crate) spec: Arc<ModelSpec>,
    /// The pool's configuration with this model, for its engines.
    pub(crate) config: Arc<PoolConfig>,
}

impl Revision {
    /// The one that the configuration names.
    pub(crate) fn first(config: &Arc<PoolConfig>) -> Arc<Self> {
        Arc::new(Revision { generation: 0, spec: Arc::new(config.model_spec()), config: config.clone() })
    }

    /// The same for all that give the same tokens, as far as configurations can know.
    pub(crate) fn family(&self) -> u64 {
        let mut hash = Xxh3::new();
        (&self.config.engine, &*self.spec).hash(&mut hash);
        hash.finish()
    }
}

/// Where a reload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReloadState {
    /// Replicas are being replaced.
    Rolling,
    /// It failed, and the replicas get their old model back.
    #[serde(rename = "walking_back")]
    RollingBack,
    /// All replicas have the new model.
    Done,
    /// It failed, and all replicas have their old model.
    Undone,
}

/// A reload as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReloadView {
    /// Its number, from 1.
    pub generation: u64,
    /// Where it stands.
    pub state: ReloadState,
    /// What was served before it.
    pub from: ModelSpec,
    /// What it is to serve.
    pub to: ModelSpec,
    /// Why it failed, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Message>,
    /// How long it took, or takes until now, in milliseconds.
    pub took_ms: u64,
}

/// What a pool serves, and its reload if one is under way.
pub(crate) struct Reloads {
    pub(in crate::actors::pool) serving: Arc<Revision>,
    pub(in crate::actors::pool) roll: Option<ReloadProgress>,
    /// What the last completed reload replaced.
    pub(in crate::actors::pool) before: Option<Arc<ModelSpec>>,
    /// The last that ended.
    pub(in crate::actors::pool) last: Option<ReloadView>,
    pub(in crate::actors::pool) newest: u64,
}

pub(in crate::actors) struct ReloadProgress {
    pub(in crate::actors::pool) from: Arc<Revision>,
    pub(in crate::actors::pool) to: Arc<Revision>,
    pub(in crate::actors::pool) failed: Option<Message>,
    pub(in crate::actors::pool) began_at: Timestamp,
    /// When it last came a step further.
    pub(in crate::actors::pool) progress_at: Timestamp,
}

impl ReloadProgress {
    pub(in crate::actors::pool) fn goal(&self) -> &Arc<Revision> {
        if self.failed.is_some() { &self.from } else { &self.to }
    }

    pub(in crate::actors::pool) fn view(&self, state: ReloadState, now: Timestamp) -> ReloadView {
        ReloadView {
            generation: self.to.generation,
            state,
            from: (*self.from.spec).clone(),
            to: (*self.to.spec).clone(),
            reason: self.failed.clone(),
            took_ms: millis_ceil(now.since(self.began_at)),
        }
    }
}

impl Reloads {
    pub(crate) fn new(serving: Arc<Revision>) -> Self {
        Reloads { serving, roll: None, before: None, last: None, newest: 0 }
    }
}

/// A worker's part in a reload. Written by the pool's supervisor.
pub(crate) struct Part {
    /// The model that it has, or is to load.
    pub(crate) revision: parking_lot::Mutex<Arc<Revision>>,
    /// Whether it may be given tasks.
    pub(crate) in_service: AtomicBool,
}

impl Part {
    pub(crate) fn new(revision: Arc<Revision>) -> Self {
        Part { revision: parking_lot::Mutex::new(revision), in_service: AtomicBool::new(true) }
    }
}
