//! The rollouts actor: owns how rollouts go on. It looks at the new sides once a second, while there is any.
//!
//! The public handle begins and ends rollouts; admission reads which side a task is for. The table outlives the actor;
//! what a restart loses is at most one look. A rollout is gone with the process: the configuration says what is served
//! then.
//!
//! Spec: ORCH-3033.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::pool::shared::PoolShared;
use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::messages::RolloutsMsg;
use crate::core::id::PoolId;
use crate::core::pool::rollout::{NewSide, Rollout, RolloutSpec, RolloutState};
use crate::core::task::Priority;
use crate::core::task::error::{ErrorCode, TaskError};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Most rollouts that are remembered, those that have ended included.
const ROLLOUTS_MAX: usize = 64;

impl RuntimeShared {
    /// Begins a rollout.
    ///
    /// # Errors
    /// `INVALID_PARAMS`: it is none, a pool is not there, or the two serve the same model or have no alias in common.
    pub(crate) fn begin_rollout(&self, spec: RolloutSpec) -> Result<Rollout, TaskError> {
        let invalid = |text: String| TaskError::new(ErrorCode::InvalidParams, text);
        if let Some(fault) = spec.fault() {
            return Err(invalid(fault));
        }
        let pools = self.pools.table();
        let find = |field: &str, id: &PoolId| {
            let found = pools.serving.iter().find(|pool| pool.id == *id);
            found.ok_or_else(|| invalid(format!("field '{field}': there is no pool {id}")))
        };
        let (old, new) = (find("from", &spec.from)?, find("to", &spec.to)?);
        if !old.config.aliases.iter().any(|alias| new.config.aliases.contains(alias)) {
            let text =
                format!("pools {} and {} have no alias in common: give both one in the configuration", old.id, new.id);
            return Err(invalid(text));
        }
        if old.revision().spec == new.revision().spec {
            return Err(invalid(format!("pools {} and {} serve the same model", old.id, new.id)));
        }
        if new.replicas_ready() == 0 {
            return Err(invalid(format!(
                "field 'to': pool {} is {}; wait until it is ready",
                new.id,
                new.state().as_str()
            )));
        }
        let _one_at_a_time = self.rollouts.change.lock();
        let mut table: Vec<Rollout> = (*self.rollouts.all()).clone();
        let is_on = |rollout: &Rollout| matches!(rollout.state, RolloutState::Rolling { .. });
        let concerns = |known: &Rollout| {
            [&known.spec.from, &known.spec.to].into_iter().any(|id| *id == spec.from || *id == spec.to)
        };
        if let Some(other) = table.iter().find(|known| is_on(known) && concerns(known)) {
            let text = format!("a rollout from {} to {} is under way; end it first", other.spec.from, other.spec.to);
            return Err(invalid(text));
        }
        table.retain(|known| !concerns(known));
        if table.len() >= ROLLOUTS_MAX {
            return Err(invalid(format!(
                "{ROLLOUTS_MAX} rollouts are under way or remembered; that is all there may be"
            )));
        }
        let rollout = Rollout::new(spec, self.env.now(), side(new).ended);
        tracing::info!(from = %rollout.spec.from, to = %rollout.spec.to, share = rollout.share(), "a rollout begins");
        table.push(rollout.clone());
        self.rollouts.set(table);
        self.actors.rollouts_watch.cast(RolloutsMsg::Look); // Nobody there: the next one looks when it comes.
        Ok(rollout)
    }

    /// Ends the rollout to this pool; everything goes to the old side. Returns whether there was one.
    pub(crate) fn end_rollout(&self, to: &PoolId) -> bool {
        let _one_at_a_time = self.rollouts.change.lock();
        let mut table: Vec<Rollout> = (*self.rollouts.all()).clone();
        let found = table.iter_mut().find(|rollout| rollout.spec.to == *to).map(Rollout::end).is_some();
        self.rollouts.set(table);
        found
    }
}

/// How a new side does.
fn side(pool: &PoolShared) -> NewSide {
    let view = pool.figures.latency_view.lock().clone();
    let ended = view.stages.iter().map(|stages| stages[0].quantiles.count).sum();
    let tallies = Priority::ALL.map(|class| view.tallies[class.index()][0]);
    NewSide { takes_tasks: pool.state().takes_tasks() && pool.replicas_ready() > 0, ended, tallies }
}

/// The actor.
pub(crate) struct RolloutsWatch;

/// Its state.
pub(crate) struct RolloutsState {
    runtime: Arc<RuntimeShared>,
    /// A `Tick` is under way.
    armed: bool,
}

impl Actor for RolloutsWatch {
    type Msg = RolloutsMsg;
    type State = RolloutsState;
    type Arguments = Arc<RuntimeShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<RolloutsMsg>,
        runtime: Arc<RuntimeShared>,
    ) -> Result<RolloutsState, ActorProcessingErr> {
        myself.cast(RolloutsMsg::Look)?;
        Ok(RolloutsState { runtime, armed: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<RolloutsMsg>,
        message: RolloutsMsg,
        state: &mut RolloutsState,
    ) -> Result<(), ActorProcessingErr> {
        state.runtime.env.fault_point("rollouts");
        match message {
            RolloutsMsg::Look => on_look(state, &myself),
            RolloutsMsg::Tick => {
                state.armed = false;
                on_look(state, &myself);
            }
        }
        Ok(())
    }
}

fn on_look(state: &mut RolloutsState, myself: &ActorRef<RolloutsMsg>) {
    let runtime = state.runtime.clone();
    let (pools, now, wanted) = (runtime.pools.table(), runtime.env.now(), runtime.config().objectives.wanted());
    let _one_at_a_time = runtime.rollouts.change.lock();
    let mut table: Vec<Rollout> = (*runtime.rollouts.all()).clone();
    for rollout in &mut table {
        let new = pools.serving.iter().find(|pool| pool.id == rollout.spec.to);
        let seen = new.map_or(NewSide { takes_tasks: false, ended: 0, tallies: Default::default() }, |pool| side(pool));
        if rollout.look(now, &seen, &wanted) {
            let (from, to, share) = (&rollout.spec.from, &rollout.spec.to, rollout.share());
            match &rollout.state {
                RolloutState::RolledBack { reason } => tracing::error!(%from, %to, %reason, "a rollout is rolled back"),
                _ => tracing::info!(%from, %to, share, "a rollout goes on"),
            }
        }
    }
    let any_on = table.iter().any(|rollout| matches!(rollout.state, RolloutState::Rolling { .. }));
    runtime.rollouts.set(table);
    if any_on && !std::mem::replace(&mut state.armed, true) {
        myself.send_after(PERIOD, || RolloutsMsg::Tick);
    }
}
