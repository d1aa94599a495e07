//! What the end of a task gives to its pool's latency actor.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::actors::metrics::samples::{Run, Sample};
use crate::actors::pool::messages::LatencyMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::SealedTask;
use crate::core::fairness::Served;
use crate::core::slo::objectives::{Outcome, TOKENS_AWAITED, counts_as_failure};
use crate::core::task::FinishReason;
use crate::core::task::trace::TraceKind;

/// Most samples that wait to be collected; beyond it the newest are counted as lost. Some 400 KiB. The actor takes all
/// at once, a few hundred nanoseconds each, so they gather only while it is dead or the machine is stopped.
const SAMPLES_MAX: usize = 4096;

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
    let home = sealed.ran_in.as_deref().or(sealed.pool.as_deref()).filter(|_| sealed.was.is_accepted());
    let Some(pool) = home.and_then(PoolShared::at) else {
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
