//! What a pool serves, and the reload that changes it (ORCH-3031): the facts, which outlive the pool's supervisor that
//! acts on them. `core::pool::reload` says which step is next.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::actors::pool::replica::ReplicaShared;
use crate::actors::pool::revision::{ReloadProgress, ReloadState, ReloadView, Revision};
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::config::CTX_DEFAULT;
use crate::core::pool::lifecycle::Intent;
use crate::core::pool::model::ModelChange;
use crate::core::pool::reload::{Seen, Step, next};
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::trace::TraceKind;
use crate::core::text::line::{Message, Name};
use crate::core::units::Timestamp;
use crate::planted::seeded_bug;

impl ReplicaShared {
    /// The model that it has, or is loading.
    pub(crate) fn revision(&self) -> Arc<Revision> {
        self.part.revision.lock().clone()
    }

    fn seen(&self) -> Seen {
        Seen {
            generation: self.revision().generation,
            is_loaded: self.is_loaded(),
            in_service: self.part.in_service.load(SeqCst),
            is_busy: self.capacity.slots.used() > 0,
        }
    }
}

/// What the supervisor is to do for a reload.
pub(crate) struct Plan {
    pub(crate) step: Step,
    pub(crate) goal: Arc<Revision>,
    /// The reload's number: should another have begun since, this plan is void.
    pub(crate) of: u64,
    pub(crate) is_way_back: bool,
    /// Whether replicas with the goal may be given tasks.
    pub(crate) is_served: bool,
}

impl PoolShared {
    /// What the pool serves now. A short lock, taken once for each task at admission; the supervisor holds it for
    /// moments.
    pub(crate) fn revision(&self) -> Arc<Revision> {
        self.model.reloads.lock().serving.clone()
    }

    /// Whether this identity is what the pool serves, as far as its own engines have said what that is.
    pub(crate) fn serves_the_same_as(&self, identity: &ReplicaIdentity) -> bool {
        let pinned = self.model.pinned.lock().clone();
        let same = |pinned: &(Name, Name)| pinned.0 == identity.engine_version && pinned.1 == identity.model_digest;
        pinned.is_none_or(|pinned| same(&pinned)) && self.revision().spec == identity.spec
    }

    /// Begins a reload.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a change that cannot be, `POOL_UNAVAILABLE` for a pool that drains, has stopped, or is
    /// being reloaded.
    pub(crate) fn begin_reload(&self, change: &ModelChange) -> Result<(), TaskError> {
        let out = |text: String| TaskError::new(ErrorCode::PoolUnavailable, text).engine(&self.config.engine);
        let invalid = |text: String| TaskError::new(ErrorCode::InvalidParams, text);
        let mut reloads = self.model.reloads.lock();
        if self.intent() != Intent::Serve {
            return Err(out(format!("pool {} takes no reload: it is {}", self.id, self.state().as_str())));
        }
        if let Some(roll) = reloads.roll.as_ref().filter(|roll| roll.failed.is_none()) {
            return Err(out(format!(
                "pool {} is being reloaded to {:?}; wait for its end",
                self.id, roll.to.spec.model
            )));
        }
        // One on its way back is taken up where it stands: what it goes back to may be what is broken.
        let back = reloads.roll.as_ref().map(|roll| roll.from.clone());
        let from = back.unwrap_or_else(|| reloads.serving.clone());
        let spec = change.apply(&from.spec, reloads.before.as_deref()).map_err(invalid)?;
        if let Some(why) = self.config.cannot_serve(&spec, &from.spec) {
            return Err(invalid(format!("field 'model': pool {}: {why}", self.id)));
        }
        let config = self.config.with_model(&spec);
        if let Some(fault) = config.faults("").into_iter().next() {
            return Err(invalid(format!("field '{}': {}", fault.path.trim_start_matches('.'), fault.message)));
        }
        if let Some(roll) = reloads.roll.take() {
            self.figures.counters.reloads[1].fetch_add(1, SeqCst);
            reloads.last = Some(roll.view(ReloadState::Undone, self.env.now()));
        }
        reloads.newest += 1;
        let to = Revision { generation: reloads.newest, spec: Arc::new(spec), config: Arc::new(config) };
        let now = self.env.now();
        tracing::info!(pool_id = %self.id, from = %from.spec.model, to = %to.spec.model, "a reload begins");
        reloads.roll = Some(ReloadProgress { from, to: Arc::new(to), failed: None, began_at: now, progress_at: now });
        Ok(())
    }

    /// The reload that is under way, else the last that ended.
    pub(crate) fn reload_view(&self) -> Option<ReloadView> {
        let reloads = self.model.reloads.lock();
        let state =
            |roll: &ReloadProgress| if roll.failed.is_some() { ReloadState::RollingBack } else { ReloadState::Rolling };
        let under_way = reloads.roll.as_ref().map(|roll| roll.view(state(roll), self.env.now()));
        under_way.or_else(|| reloads.last.clone())
    }

    /// Whether a reload is under way. One that a pool's end has overtaken is not.
    pub(crate) fn is_reloading(&self) -> bool {
        self.model.reloads.lock().roll.is_some() && self.intent() != Intent::Stop
    }

    /// Whether this is what a reload under way is to load.
    pub(crate) fn is_being_tried(&self, generation: u64) -> bool {
        let reloads = self.model.reloads.lock();
        reloads.roll.as_ref().is_some_and(|roll| roll.failed.is_none() && roll.to.generation == generation)
    }

    /// The next step of the reload that is under way. `is_ending` says which replicas' workers have been told to end.
    pub(crate) fn reload_plan(&self, is_ending: impl Fn(u16) -> bool) -> Option<Plan> {
        let (goal, of, is_way_back, serving) = {
            let reloads = self.model.reloads.lock();
            let roll = reloads.roll.as_ref()?;
            (roll.goal().clone(), roll.to.generation, roll.failed.is_some(), reloads.serving.generation)
        };
        let seen = (0u16..).zip(&self.replicas).map(|(index, replica)| match replica.seen() {
            seen if is_ending(index) => Seen { is_loaded: false, in_service: true, ..seen },
            seen => seen,
        });
        let seen: Vec<Seen> = seen.collect();
        let ending = (0..seen.len() as u16).find(|index| is_ending(*index));
        let step = match (next(goal.generation, serving, is_way_back, &seen), ending) {
            // Its next life is put back into service first: else nobody would, should the supervisor die before that.
            (Step::Done, Some(ending)) => Step::WaitForLoad(ending),
            (step, _) => step,
        };
        let is_served = serving == goal.generation;
        let step = if seeded_bug!(HalfReload) && is_served { Step::Done } else { step };
        Some(Plan { step, goal, of, is_way_back, is_served })
    }

    /// Notes that the reload came a step further.
    pub(crate) fn note_reload_step(&self) {
        if let Some(roll) = &mut self.model.reloads.lock().roll {
            roll.progress_at = self.env.now();
        }
    }

    /// When the reload last came a step further.
    pub(crate) fn reload_progress_at(&self) -> Timestamp {
        self.model.reloads.lock().roll.as_ref().map_or_else(|| self.env.now(), |roll| roll.progress_at)
    }

    /// The new model has not proved itself: from here on the reload walks back.
    pub(crate) fn fail_reload(&self, of: u64, reason: String) {
        self.fail_reload_with(of, &reason, reason.as_str().into());
    }

    /// The same, with words of an engine that are not for the log.
    pub(crate) fn fail_reload_with(&self, of: u64, reason: &str, whole: Message) {
        if let Some(roll) = self.model.reloads.lock().roll.as_mut().filter(|roll| roll.to.generation == of) {
            tracing::warn!(pool_id = %self.id, to = %roll.to.spec.model, %reason, "a reload failed and is undone");
            roll.failed.get_or_insert(whole);
            roll.progress_at = self.env.now();
        }
    }

    /// A reload that has just begun is not wanted after all: it walks back, which takes no step.
    pub(crate) fn give_up_reload(&self, why: &str) {
        let of = self.model.reloads.lock().roll.as_ref().map(|roll| roll.to.generation);
        if let Some(of) = of {
            self.fail_reload(of, why.to_owned());
        }
    }

    /// The pool has stopped: a reload under way comes to nothing.
    pub(crate) fn abandon_reload(&self) {
        let of = self.model.reloads.lock().roll.as_ref().map(|roll| roll.to.generation);
        if let Some(of) = of {
            self.fail_reload(of, "the pool has been stopped".to_owned());
            self.end_reload(of);
        }
    }

    /// The reload is over.
    pub(crate) fn end_reload(&self, of: u64) {
        let mut reloads = self.model.reloads.lock();
        let Some(roll) = reloads.roll.take_if(|roll| roll.to.generation == of) else { return };
        let (state, counter) = match roll.failed {
            None => (ReloadState::Done, 0),
            Some(_) => (ReloadState::Undone, 1),
        };
        if state == ReloadState::Done {
            reloads.before = Some(roll.from.spec.clone());
        }
        let view = roll.view(state, self.env.now());
        tracing::info!(pool_id = %self.id, took_ms = view.took_ms, model = %reloads.serving.spec.model, "a reload has ended");
        reloads.last = Some(view);
        drop(reloads);
        self.figures.counters.reloads[counter].fetch_add(1, SeqCst);
        self.life.state_changed.notify_waiters();
    }

    /// From here on the pool serves `goal`. No two replicas with different models are in service at any moment.
    pub(crate) fn change_over(&self, goal: &Arc<Revision>) {
        let has_goal = |replica: &&ReplicaShared| replica.revision().generation == goal.generation;
        let identity = self.replicas.iter().filter(has_goal).find_map(|replica| replica.loaded.identity.lock().clone());
        *self.model.pinned.lock() = None; // Peers lend nothing until it is known what they would lend to.
        for replica in self.replicas.iter().filter(|replica| !has_goal(replica) && !seeded_bug!(TwoModels)) {
            replica.part.in_service.store(false, SeqCst);
        }
        self.model.reloads.lock().serving = goal.clone();
        self.model.family.store(goal.family(), SeqCst);
        self.env.trace(|| TraceKind::ChangedOver { pool: self.position, generation: goal.generation });
        if let Some(identity) = identity {
            let ctx = goal.spec.ctx.or(identity.ctx).unwrap_or(CTX_DEFAULT);
            self.model.ctx.store(ctx, SeqCst);
            *self.model.pinned.lock() =
                Some(Arc::new((identity.engine_version.clone(), identity.model_digest.clone())));
        }
        for replica in self.replicas.iter().filter(has_goal) {
            replica.part.in_service.store(true, SeqCst);
        }
        tracing::info!(pool_id = %self.id, model = %goal.spec.model, "the pool serves another model from now on");
        self.nudge_manager();
        self.life.state_changed.notify_waiters();
    }

    /// Gives tasks to a replica, or gives it no more.
    pub(crate) fn set_in_service(&self, index: u16, in_service: bool) {
        self.replicas[index as usize].part.in_service.store(in_service, SeqCst);
        self.nudge_manager();
        self.life.state_changed.notify_waiters();
    }
}
