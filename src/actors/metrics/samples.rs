//! What the end of a task says about latency, objectives and shares, on its way to its pool's latency actor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;

use crate::actors::pool::messages::LatencyMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::SealedTask;
use crate::core::fairness::Served;
use crate::core::id::ClientId;
use crate::core::slo::objectives::{Outcome, TOKENS_AWAITED, counts_as_failure};
use crate::core::task::trace::TraceKind;
use crate::core::task::{FinishReason, Priority};

/// Most samples that wait to be collected; beyond it the newest are counted as lost. Some 400 KiB. The actor takes all
/// at once, a few hundred nanoseconds each, so they gather only while it is dead or the machine is stopped.
const SAMPLES_MAX: usize = 4096;

/// Durations of a task that ran to an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) queue: Duration,
    /// How far the start was from its prediction, early or late.
    pub(crate) start_error: Duration,
    pub(crate) first_token: Duration,
    /// Mean time from one token to the next; `None` with fewer than two tokens.
    pub(crate) per_token: Option<Duration>,
    pub(crate) decode: Duration,
    pub(crate) total: Duration,
    /// The longest silence between a lost attempt and the next token; `None` when none was lost.
    pub(crate) resume_gap: Option<Duration>,
}

/// One task's end.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) class: Priority,
    pub(crate) client: ClientId,
    /// Weighted tokens and generated tokens that it was given.
    pub(crate) weighted: u64,
    pub(crate) output: u32,
    /// `None` when it did not run to an end.
    pub(crate) run: Option<Run>,
    /// `None` when its client ended it, or it failed through no fault of ours.
    pub(crate) outcome: Option<Outcome>,
}

/// Samples on their way to the latency actor.
#[derive(Default)]
pub(crate) struct Samples {
    pub(in crate::actors) waiting: Mutex<Vec<Sample>>,
    /// The actor has been told and has not collected yet.
    pub(in crate::actors) collect_requested: AtomicBool,
    pub(crate) lost: AtomicU64,
}

impl PoolShared {
    /// Hands a sample to the latency actor. One short lock for each task that ends.
    pub(in crate::actors) fn record_sample(&self, sample: Sample) {
        {
            let mut waiting = self.figures.samples.waiting.lock();
            if waiting.len() == SAMPLES_MAX {
                self.figures.samples.lost.fetch_add(1, Relaxed);
                return;
            }
            waiting.push(sample);
        }
        if !self.figures.samples.collect_requested.swap(true, SeqCst) && !self.actors.latency.cast(LatencyMsg::Collect)
        {
            self.figures.samples.collect_requested.store(false, SeqCst); // Nobody there: the next sample knocks again.
        }
    }
}

/// Notes an accepted task's end where it ran, or where it waited.
pub(in crate::actors) fn note_end(record: &TaskRecord, sealed: &SealedTask, kind: &TraceKind) {
    let Some(pool) = sealed.ran_in.as_ref().or(sealed.pool.as_ref()).filter(|_| sealed.was.is_accepted()) else {
        return;
    };
    let (completed, failed) = match kind {
        TraceKind::Ended { reason: FinishReason::Canceled, .. } => (false, None),
        TraceKind::Ended { .. } => (true, Some(false)),
        TraceKind::Failed { code, .. } => (false, counts_as_failure(*code).then_some(true)),
        _ => return,
    };
    let timing = sealed.timing;
    let gaps = sealed.tokens_out.saturating_sub(1);
    let per_token = (gaps > 0).then(|| timing.decode / gaps);
    let run = timing.first_token.filter(|_| completed).map(|first_token| Run {
        queue: timing.queue,
        start_error: timing.queue.abs_diff(record.promise().1),
        first_token,
        per_token,
        decode: timing.decode,
        total: timing.total,
        resume_gap: sealed.resume_gap,
    });
    let outcome = failed.map(|failed| {
        // The 64th token itself is not timed: tokens come at the task's own mean pace.
        let awaited = sealed.tokens_out.min(TOKENS_AWAITED).saturating_sub(1);
        let until = per_token.zip(timing.first_token).map(|(pace, first)| first + pace * awaited);
        // Of one without a token its end is all there is to wait for.
        Outcome {
            first_token: timing.first_token.or(Some(timing.total)),
            tokens_64: until.unwrap_or(timing.total),
            failed,
        }
    });
    let (prompt, output) = match sealed.served {
        Served::Nothing => (crate::core::Tokens(0), crate::core::Tokens(0)),
        Served::Part { prompt, output } | Served::Whole { prompt, output } => (prompt, output),
    };
    pool.record_sample(Sample {
        class: record.priority(),
        client: record.request.client_id.clone(),
        weighted: pool.config.cost.weights().cost(prompt, output),
        output: output.0,
        run,
        outcome,
    });
}
