//! The latency actor: owns a pool's histograms and computes its percentiles.
//!
//! Attempts put samples into [`Samples`] and knock once; the actor takes all that are there. So at most one message is
//! under way however many tasks end, and what is not collected yet is bounded. Percentiles walk through whole histograms,
//! so they are computed a few times a second at most, whatever the rate of tasks. A restart begins with empty histograms.
//!
//! Spec: ORCH-3028.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::Serialize;

use crate::actors::shared::PoolShared;
use crate::core::task::Priority;

/// Most samples that wait to be collected; beyond it the newest are counted as lost. 64 KiB.
const SAMPLES_MAX: usize = 1024;
/// Largest value of a histogram, in microseconds: a day. Larger ones count as a day.
const VALUE_US_MAX: u64 = 24 * 3_600 * 1_000_000;
/// How long percentiles may lag behind what has been collected.
const PUBLISH_DELAY: Duration = Duration::from_millis(250);
/// Significant digits of a histogram: a relative error of at most 1 %, in about 20 KiB each.
const DIGITS: u8 = 2;

/// One task's durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) class: Priority,
    pub(crate) queue: Duration,
    /// How far the start was from its prediction, early or late.
    pub(crate) start_error: Duration,
    pub(crate) first_token: Duration,
    /// Mean time from one token to the next; `None` with fewer than two tokens.
    pub(crate) per_token: Option<Duration>,
    pub(crate) decode: Duration,
    pub(crate) total: Duration,
}

/// Samples on their way to the latency actor.
#[derive(Default)]
pub(crate) struct Samples {
    waiting: Mutex<Vec<Sample>>,
    /// The actor has been told and has not collected yet.
    knocked: AtomicBool,
    pub(crate) lost: AtomicU64,
}

impl PoolShared {
    /// Hands a sample to the latency actor.
    pub(crate) fn record_sample(&self, sample: Sample) {
        {
            let mut waiting = self.samples.waiting.lock();
            if waiting.len() == SAMPLES_MAX {
                self.samples.lost.fetch_add(1, Relaxed);
                return;
            }
            waiting.push(sample);
        }
        if !self.samples.knocked.swap(true, SeqCst) && !self.latency.cast(LatencyMsg::Collect) {
            self.samples.knocked.store(false, SeqCst); // Nobody there: the next sample knocks again.
        }
    }
}

/// Percentiles of one kind of duration, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Samples behind the figures.
    pub count: u64,
    /// Half of all samples are at most this.
    pub p50: f64,
    /// 95 % of all samples are at most this.
    pub p95: f64,
    /// 99 % of all samples are at most this.
    pub p99: f64,
    /// Sum of all samples.
    pub sum: f64,
}

/// Number of durations that are measured.
const STAGES: usize = 6;

/// The durations that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Submission to start.
    Queue,
    /// Submission to the first token.
    FirstToken,
    /// One token to the next.
    PerToken,
    /// First token to the end.
    Decode,
    /// Submission to the end.
    Total,
    /// Between the start and its prediction, early or late (ORCH-3029).
    StartError,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; STAGES] =
        [Stage::Queue, Stage::FirstToken, Stage::PerToken, Stage::Decode, Stage::Total, Stage::StartError];

    /// The stage as it is written in metric names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::FirstToken => "first_token",
            Stage::PerToken => "per_token",
            Stage::Decode => "decode",
            Stage::Total => "total",
            Stage::StartError => "start_prediction_error",
        }
    }
}

/// Upper bounds of the buckets that are exported, in milliseconds.
pub const BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000, 300_000];

/// One kind of duration of one class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageView {
    /// Its percentiles.
    pub quantiles: Quantiles,
    /// Samples at most as long as each of [`BUCKETS_MS`].
    pub buckets: [u64; BUCKETS_MS.len()],
}

/// All percentiles of a pool, as of the newest collection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatencyView {
    /// By class ([`Priority::index`]), then by stage in the order of [`Stage::ALL`].
    pub stages: [[StageView; STAGES]; 2],
}

/// What the actor is told.
#[cfg_attr(feature = "cluster", derive(ractor_cluster_derive::RactorMessage))]
pub(crate) enum LatencyMsg {
    /// Samples wait.
    Collect,
    // ---- from itself
    /// Compute the percentiles and show them.
    Publish,
}

/// The actor.
pub(crate) struct Latency;

/// Its state: a histogram for each class and stage, in microseconds.
pub(crate) struct LatencyState {
    pool: Arc<PoolShared>,
    histograms: [[(Histogram<u64>, u64); STAGES]; 2],
    /// A `Publish` is under way.
    armed: bool,
}

impl Actor for Latency {
    type Msg = LatencyMsg;
    type State = LatencyState;
    type Arguments = Arc<PoolShared>;

    async fn pre_start(
        &self,
        myself: ActorRef<LatencyMsg>,
        pool: Arc<PoolShared>,
    ) -> Result<LatencyState, ActorProcessingErr> {
        let histogram = || Histogram::new_with_bounds(1, VALUE_US_MAX, DIGITS).map(|histogram| (histogram, 0));
        let row = || {
            let row = [histogram()?, histogram()?, histogram()?, histogram()?, histogram()?, histogram()?];
            Ok::<_, hdrhistogram::CreationError>(row)
        };
        let histograms = [row()?, row()?];
        myself.cast(LatencyMsg::Collect)?; // Whoever knocked at a dead actor is heard now.
        Ok(LatencyState { pool, histograms, armed: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<LatencyMsg>,
        message: LatencyMsg,
        state: &mut LatencyState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LatencyMsg::Collect => on_collect(state, &myself),
            LatencyMsg::Publish => on_publish(state),
        }
        Ok(())
    }
}

fn on_collect(state: &mut LatencyState, myself: &ActorRef<LatencyMsg>) {
    state.pool.env.fault_point("latency");
    state.pool.samples.knocked.store(false, SeqCst); // First: a sample that comes now knocks again.
    let samples = std::mem::take(&mut *state.pool.samples.waiting.lock());
    if samples.is_empty() {
        return;
    }
    for sample in samples {
        let row = &mut state.histograms[sample.class.index()];
        let durations = [
            Some(sample.queue),
            Some(sample.first_token),
            sample.per_token,
            Some(sample.decode),
            Some(sample.total),
            Some(sample.start_error),
        ];
        for ((histogram, sum), duration) in row.iter_mut().zip(durations) {
            let Some(duration) = duration else { continue };
            let micros = (duration.as_micros() as u64).clamp(1, VALUE_US_MAX);
            histogram.saturating_record(micros);
            *sum = sum.saturating_add(micros);
        }
    }
    if !std::mem::replace(&mut state.armed, true) {
        myself.send_after(PUBLISH_DELAY, || LatencyMsg::Publish);
    }
}

fn on_publish(state: &mut LatencyState) {
    state.armed = false;
    *state.pool.latency_view.lock() = Arc::new(observe(state));
}

fn observe(state: &LatencyState) -> LatencyView {
    LatencyView { stages: state.histograms.each_ref().map(|row| row.each_ref().map(stage_view)) }
}

fn stage_view((histogram, sum): &(Histogram<u64>, u64)) -> StageView {
    if histogram.is_empty() {
        return StageView::default();
    }
    // One walk for all buckets; counting up to each bound would be one for each.
    let mut buckets = [0; BUCKETS_MS.len()];
    for step in histogram.iter_recorded() {
        let fitting = buckets.iter_mut().zip(BUCKETS_MS).filter(|(_, bound)| step.value_iterated_to() <= bound * 1000);
        fitting.for_each(|(count, _)| *count += step.count_at_value());
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let quantiles =
        Quantiles { count: histogram.len(), p50: at(0.5), p95: at(0.95), p99: at(0.99), sum: *sum as f64 / 1000.0 };
    StageView { quantiles, buckets }
}
