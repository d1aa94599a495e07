//! The latency actor: owns a pool's histograms, its tally of objectives and its clients' shares, and computes its
//! percentiles.
//!
//! Whoever seals a task puts a sample into [`Samples`](crate::actors::metrics::samples::Samples) and knocks once; the
//! actor takes all that are there. So at most one message is under way however many tasks end, and what is not
//! collected yet is bounded. Percentiles walk through whole histograms, so they are computed a few times a second at
//! most, whatever the rate of tasks. While something is in a window the actor looks every ten seconds whether it has
//! left; an idle pool costs nothing. A restart begins with empty histograms.
//!
//! Spec: ORCH-3028, ORCH-3041.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use histogram::{Histogram, Quantile, SampleQuantiles};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::actors::metrics::samples::{Run, Sample};
use crate::actors::metrics::view::{BUCKETS_MS, LatencyView, Quantiles, Stage, StageView};
use crate::actors::pool::messages::LatencyMsg;
use crate::actors::pool::shared::PoolShared;
use crate::core::fairness::usage::Shares;
use crate::core::slo::objectives::{Tallies, Window};
use crate::core::slo::rolling::{BUCKETS, Rolling, VALUE_US_MAX, middle_us};
use crate::core::task::Priority;
use crate::core::units::Timestamp;

/// How long percentiles may lag behind what has been collected.
const PUBLISH_DELAY: Duration = Duration::from_millis(250);
/// How long what has left a window may still be shown.
const AGE_PERIOD: Duration = Duration::from_secs(10);
/// Ten minutes in few slices: the oldest two minutes leave together. A busy histogram takes 9 KiB for each.
const TEN_MINUTES: (Duration, u64) = (Duration::from_secs(120), 5);
const ONE_MINUTE: (Duration, u64) = (Duration::from_secs(10), 6);

/// The actor.
pub(crate) struct Latency;

/// One kind of duration of one class, in microseconds.
struct Row {
    whole: Histogram,
    sum: u64,
    windows: [Rolling; 2],
}

/// Its state.
pub(crate) struct LatencyState {
    pool: Arc<PoolShared>,
    /// By class, then by stage.
    rows: [Vec<Row>; 2],
    tallies: [Tallies; 2],
    shares: Shares,
    /// When this life began, for rates over less than a minute.
    began_at: Timestamp,
    /// A `Publish` is under way.
    armed: bool,
    /// An `Age` is under way.
    ages: bool,
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
        let rows = [rows(), rows()];
        myself.cast(LatencyMsg::Collect)?; // What was asked of a dead actor is done now.
        let (tallies, shares, began_at) = (Default::default(), Shares::default(), pool.env.now());
        Ok(LatencyState { pool, rows, tallies, shares, began_at, armed: false, ages: false })
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
            LatencyMsg::Age => on_age(state, &myself),
        }
        Ok(())
    }
}

fn rows() -> Vec<Row> {
    let windows = || [ONE_MINUTE, TEN_MINUTES].map(|(slice, slices)| Rolling::new(slice, slices));
    let row = |_| Row { whole: Histogram::with_config(&BUCKETS), sum: 0, windows: windows() };
    Stage::ALL.iter().map(row).collect()
}

fn on_collect(state: &mut LatencyState, myself: &ActorRef<LatencyMsg>) {
    state.pool.env.fault_point("latency");
    state.pool.figures.samples.collect_requested.store(false, SeqCst); // First: a sample that comes now knocks again.
    let samples = std::mem::take(&mut *state.pool.figures.samples.waiting.lock());
    if samples.is_empty() {
        return;
    }
    let (now, wanted) = (state.pool.env.now(), *state.pool.figures.objectives.lock());
    for sample in samples {
        let Sample { class, client, weighted, output, run, outcome } = sample;
        if let Some(run) = run {
            note_run(&mut state.rows[class.index()], now, &run);
        }
        if let Some(outcome) = outcome {
            state.tallies[class.index()].count(now, class, &outcome, &wanted);
        }
        if weighted > 0 {
            state.shares.note(now, &client, weighted, output);
        }
    }
    if !std::mem::replace(&mut state.armed, true) {
        myself.send_after(PUBLISH_DELAY, || LatencyMsg::Publish);
    }
    if !std::mem::replace(&mut state.ages, true) {
        myself.send_after(AGE_PERIOD, || LatencyMsg::Age);
    }
}

fn note_run(rows: &mut [Row], now: Timestamp, run: &Run) {
    let durations = [
        Some(run.queue),
        Some(run.first_token),
        run.per_token,
        Some(run.decode),
        Some(run.total),
        Some(run.start_error),
        run.resume_gap,
    ];
    for (row, duration) in rows.iter_mut().zip(durations) {
        let Some(duration) = duration else { continue };
        let micros = (duration.as_micros() as u64).clamp(1, VALUE_US_MAX);
        let _ = row.whole.increment(micros); // Within the buckets, which reach beyond a day.
        row.sum = row.sum.saturating_add(micros);
        row.windows.iter_mut().for_each(|window| window.record(now, micros));
    }
}

fn on_publish(state: &mut LatencyState) {
    state.armed = false;
    look_at_slots(state);
    *state.pool.figures.latency_view.lock() = Arc::new(observe(state));
}

fn on_age(state: &mut LatencyState, myself: &ActorRef<LatencyMsg>) {
    let now = state.pool.env.now();
    let rows = state.rows.iter_mut().flatten();
    rows.flat_map(|row| &mut row.windows).for_each(|window| window.advance(now));
    state.tallies.iter_mut().for_each(|tallies| tallies.advance(now));
    state.shares.advance(now);
    let quiet = state.rows.iter().flatten().flat_map(|row| &row.windows).all(Rolling::is_empty);
    state.ages = !(quiet && state.tallies.iter().all(Tallies::is_empty) && state.shares.is_empty());
    if state.ages {
        myself.send_after(AGE_PERIOD, || LatencyMsg::Age);
    }
    on_publish(state);
}

/// While batch tasks wait, every slot should be in use.
fn look_at_slots(state: &mut LatencyState) {
    let (pool, batch) = (&state.pool, Priority::Batch.index());
    if pool.waiting.depth[batch].load(Relaxed) > 0 {
        let total = pool.replicas.iter().map(|replica| replica.capacity.slots.total()).sum();
        state.tallies[batch].look(pool.env.now(), pool.slots_used(), total);
    }
}

fn observe(state: &LatencyState) -> LatencyView {
    let now = state.pool.env.now();
    let stages = state.rows.each_ref().map(|rows| std::array::from_fn(|stage| stage_view(&rows[stage])));
    let tallies = state.tallies.each_ref().map(|tallies| Window::ALL.map(|window| tallies.of(now, window)));
    let given = state.shares.given();
    let seconds = now.since(state.began_at).as_secs_f64().clamp(1.0, 60.0);
    let tokens_per_s = given.output as f64 / seconds;
    LatencyView { stages, tallies, given, tokens_per_s }
}

fn quantiles(histogram: &impl SampleQuantiles, sum: u64) -> Quantiles {
    let parts = [0.5, 0.95, 0.99];
    let Ok(Some(found)) = histogram.quantiles(&parts) else { return Quantiles::default() };
    let bucket = |part| Quantile::new(part).ok().and_then(|part| found.get(&part));
    let [p50, p95, p99] = parts.map(|part| bucket(part).map_or(0.0, middle_us) / 1000.0);
    Quantiles { count: found.total_count() as u64, p50, p95, p99, sum: sum as f64 / 1000.0 }
}

fn stage_view(row: &Row) -> StageView {
    // One walk for all buckets; counting up to each bound would be one for each.
    let mut buckets = [0; BUCKETS_MS.len()];
    for filled in row.whole.iter().filter(|bucket| bucket.count() > 0) {
        let fitting =
            buckets.iter_mut().zip(BUCKETS_MS).filter(|(_, bound)| middle_us(&filled) <= (bound * 1000) as f64);
        fitting.for_each(|(count, _)| *count += filled.count());
    }
    let window = |window: &Rolling| window.merged().map(|(histogram, sum)| quantiles(&histogram, sum));
    let windows = row.windows.each_ref().map(|rolling| window(rolling).unwrap_or_default());
    StageView { quantiles: quantiles(&row.whole, row.sum), windows, buckets }
}
