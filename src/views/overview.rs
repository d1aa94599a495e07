//! Everything that a person on call looks at, in one value: what the dashboard and `orchestratord top` show.

use serde::Serialize;

use crate::actors::metrics::view::{Quantiles, Stage};
use crate::core::id::{ClientId, PoolId, TaskId};
use crate::core::slo::objectives::{SloView, Tally, Window, attained};
use crate::core::task::Priority;
use crate::core::task::error::ErrorCode;
#[cfg(feature = "service")]
use crate::core::task::error::hidden;
use crate::core::task::failure::Cause;
use crate::core::text::line::Message;
use crate::core::units::millis_ceil;
use crate::orchestrator::Orchestrator;
use crate::views::{DevicesView, PoolView, RuntimeView};

/// Clients that are shown of a pool, the busiest first.
const CLIENTS_SHOWN: usize = 32;

/// The runtime at a glance.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OverviewView {
    /// Milliseconds since the runtime's start.
    pub uptime_ms: u64,
    /// The runtime as a whole.
    pub tasks: RuntimeView,
    /// Each pool.
    pub pools: Vec<PoolOverview>,
    /// Each device.
    pub devices: DevicesView,
    /// How far the objectives are met, by class and window.
    pub slo: Vec<SloView>,
    /// The newest failures of accepted tasks, newest first; at most 32.
    pub failures: Vec<FailureView>,
    /// The configuration that is in force.
    pub config: ConfigGeneration,
}

/// The configuration that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConfigGeneration {
    /// 1 at the start; each change counts.
    pub generation: u64,
}

/// One pool, with its percentiles and clients.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolOverview {
    /// The pool.
    #[serde(flatten)]
    pub pool: PoolView,
    /// Why it is not Ready, when it is not and somebody has said why.
    pub reason: Option<String>,
    /// Tokens a second that were generated over the last minute.
    pub tokens_per_s: f64,
    /// Percentiles; those without a sample are left out.
    pub latency: Vec<LatencyRow>,
    /// Its clients, the busiest first; at most 32.
    pub clients: Vec<ClientView>,
}

/// Percentiles of one kind of duration.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct LatencyRow {
    /// The class.
    pub priority: Priority,
    /// `1m`, `10m`, or `all` since the start.
    pub window: &'static str,
    /// What was measured.
    pub stage: &'static str,
    /// In milliseconds.
    #[serde(flatten)]
    pub quantiles: Quantiles,
}

/// One client in one pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClientView {
    /// Who.
    pub client_id: ClientId,
    /// Its weight.
    pub weight: u32,
    /// Tasks that wait: interactive, batch.
    pub waiting: [u32; 2],
    /// Tasks that have been sent to a worker and have not ended.
    pub running: u32,
    /// Its part of the weighted tokens that were given in the last minute, 0 to 1.
    pub share: f64,
    /// The part that its weight entitles it to, among the clients shown.
    pub fair_share: f64,
    /// Weighted tokens that it was given in the last minute.
    pub tokens: u64,
}

/// A task that failed.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FailureView {
    /// Which.
    pub task_id: TaskId,
    /// Whose.
    pub client_id: ClientId,
    /// In which pool.
    pub pool_id: Option<PoolId>,
    /// How.
    pub code: ErrorCode,
    /// In words.
    pub message: Message,
    /// What the engine failed of whose words the message has.
    #[serde(skip)]
    pub quotes: Option<Cause>,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

impl OverviewView {
    /// The same without what engines said: for whoever may not see what is in tasks.
    #[cfg(feature = "service")]
    pub(crate) fn hide_words(&mut self) {
        for pool in &mut self.pools {
            pool.pool.hide_words();
            pool.reason = pool.pool.reason();
        }
        for failure in &mut self.failures {
            if let Some(cause) = failure.quotes {
                failure.message = hidden(cause);
            }
        }
    }
}

impl PoolView {
    /// Percentiles that rest on at least one sample, since the start and in each window.
    pub fn latency_rows(&self) -> Vec<LatencyRow> {
        let mut rows = Vec::new();
        for priority in Priority::ALL {
            for (stage, view) in Stage::ALL.iter().zip(&self.latency.stages[priority.index()]) {
                let windows = Window::ALL.iter().map(|window| window.as_str()).zip(view.windows);
                for (window, quantiles) in windows.chain([("all", view.quantiles)]) {
                    if quantiles.count > 0 {
                        rows.push(LatencyRow { priority, window, stage: stage.as_str(), quantiles });
                    }
                }
            }
        }
        rows
    }

    /// Why no replica is Ready, in words: what an engine was last heard to say, else what the last one died of.
    fn reason(&self) -> Option<String> {
        if self.replicas.iter().any(|replica| replica.state.is_ready()) {
            return None;
        }
        if let Some((replica, heard)) =
            self.replicas.iter().find_map(|replica| Some((replica, replica.last_error.as_ref()?)))
        {
            return Some(format!("replica {}: not ready yet: {heard}", replica.replica_id));
        }
        let died = self.replicas.iter().filter_map(|replica| Some((replica, replica.last_death.as_ref()?)));
        let newest = died.min_by_key(|(_, death)| death.ago_ms);
        newest.map(|(replica, death)| format!("replica {}: {}", replica.replica_id, death.message))
    }
}

impl Orchestrator {
    /// How far the objectives are met, by class and window, over all pools (ORCH-3041).
    pub fn objectives(&self) -> Vec<SloView> {
        slo(&self.pools(), self)
    }

    /// The same by views that were taken already.
    #[cfg(feature = "metrics")]
    pub(crate) fn objectives_of(&self, pools: &[PoolView]) -> Vec<SloView> {
        slo(pools, self)
    }

    /// Everything at a glance.
    pub fn overview(&self) -> OverviewView {
        let (pools, shared) = (self.pools(), self.shared());
        let now = shared.env.now();
        let slo = slo(&pools, self);
        let failure = |failed: crate::actors::ledger::failures::FailedTask| FailureView {
            task_id: failed.task_id,
            client_id: failed.client_id,
            pool_id: failed.pool_id,
            code: failed.error.code,
            message: failed.error.message,
            quotes: failed.error.quotes,
            ago_ms: millis_ceil(now.since(failed.at)),
        };
        OverviewView {
            uptime_ms: now.as_micros() / 1000,
            tasks: self.view(),
            devices: self.devices(),
            slo,
            failures: shared.ledger.failures.newest().into_iter().map(failure).collect(),
            config: ConfigGeneration { generation: self.config_generation() },
            pools: pools.into_iter().map(|pool| self.pool_overview(pool)).collect(),
        }
    }

    fn pool_overview(&self, pool: PoolView) -> PoolOverview {
        PoolOverview {
            reason: pool.reason(),
            tokens_per_s: pool.latency.tokens_per_s,
            latency: pool.latency_rows(),
            clients: self.clients_of(&pool),
            pool,
        }
    }

    fn clients_of(&self, pool: &PoolView) -> Vec<ClientView> {
        let given = &pool.latency.given;
        let standing = self.pool_shared(&pool.pool_id).map(|pool| pool.busy_clients()).unwrap_or_default();
        let mut clients: Vec<ClientView> = standing
            .into_iter()
            .map(|(client_id, weight, waiting, running)| ClientView {
                tokens: given.clients.get(&client_id).copied().unwrap_or(0),
                client_id,
                weight,
                waiting,
                running,
                share: 0.0,
                fair_share: 0.0,
            })
            .collect();
        for (client_id, tokens) in &given.clients {
            if !clients.iter().any(|client| client.client_id == *client_id) {
                let (waiting, running, weight) = ([0; 2], 0, self.shared().clients.get(client_id).policy().weight);
                let client_id = client_id.clone();
                let (share, fair_share, tokens) = (0.0, 0.0, *tokens);
                clients.push(ClientView { client_id, weight, waiting, running, share, fair_share, tokens });
            }
        }
        let busy = |client: &ClientView| u64::from(client.waiting[0] + client.waiting[1] + client.running);
        clients
            .sort_by(|a, b| (b.tokens, busy(b)).cmp(&(a.tokens, busy(a))).then_with(|| a.client_id.cmp(&b.client_id)));
        clients.truncate(CLIENTS_SHOWN);
        let weights: f64 = clients.iter().map(|client| f64::from(client.weight)).sum();
        for client in &mut clients {
            client.share = client.tokens as f64 / given.weighted.max(1) as f64;
            client.fair_share = f64::from(client.weight) / weights.max(1.0);
        }
        clients
    }
}

fn slo(pools: &[PoolView], orchestrator: &Orchestrator) -> Vec<SloView> {
    let wanted = orchestrator.config().objectives.wanted();
    let of = |priority: Priority, index: usize, window| {
        let mut sum = Tally::default();
        pools.iter().for_each(|pool| sum += pool.latency.tallies[priority.index()][index]);
        attained(priority, window, &sum, &wanted)
    };
    let windows = |priority| Window::ALL.into_iter().enumerate().map(move |(index, window)| (priority, index, window));
    Priority::ALL.into_iter().flat_map(windows).map(|(priority, index, window)| of(priority, index, window)).collect()
}
