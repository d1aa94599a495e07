//! The log of tasks: an event with target `orchestrator_core::task` for each step of a task's life, each with the
//! fields of ORCH-3027.
//!
//! All are logged at `DEBUG`. The service has the last step at `INFO`: one line a task is what a log can bear under
//! load. Prompts and tokens are in none of them.

use std::time::Duration;

use tracing::Level;
use tracing::dispatcher::has_been_set;

use crate::actors::kit::host_span::HostSpan;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::SealedTask;
use crate::core::task::FinishReason;
use crate::core::task::trace::TraceKind;
use crate::core::units::millis_exact;

/// Writes one line. A macro, since an event's level and fields are fixed where it stands.
macro_rules! line {
    ($level:expr, $record:expr, $facts:expr, $step:expr, $outcome:expr) => {{
        let (record, facts, place) = ($record, $facts, Place::of($record));
        let [oom_events, driver_reset_events] = facts.lost_to;
        tracing::event!(
            target: "orchestrator_core::task",
            $level,
            job_id = %record.id,
            session_id = record.request.session_id.as_ref().map_or("", |id| id.as_str()),
            client_id = %record.request.client_id,
            engine = place.engine,
            pool_id = place.pool_id,
            replica_id = place.replica_id,
            model_id = place.model_id,
            quant = place.quant,
            ctx = place.ctx,
            tensor_split = place.tensor_split,
            engine_version = place.engine_version,
            sampler_profile_version = place.sampler_profile_version,
            kv_warmth = facts.kv_warmth,
            queue_time_ms = millis_exact(facts.queue),
            decode_time_ms = millis_exact(facts.decode),
            tokens_in = facts.tokens_in,
            tokens_out = facts.tokens_out,
            eviction_events = facts.evictions,
            oom_events,
            driver_reset_events,
            trace_id = record.request.traceparent.as_ref().map_or("", |parent| parent.trace_id()),
            step = $step,
            outcome = $outcome,
            "task {}", $step
        );
    }};
}

/// What a line says beside what the record knows.
#[derive(Default)]
struct Facts {
    kv_warmth: bool,
    queue: Duration,
    decode: Duration,
    tokens_in: u32,
    tokens_out: u32,
    evictions: u32,
    /// Attempts lost to memory, and to a device.
    lost_to: [u32; 2],
}

/// A task has come a step further: `accepted`, `started`, `returned`.
pub(in crate::actors) fn step(record: &TaskRecord, step: &'static str) {
    if !tracing::enabled!(target: "orchestrator_core::task", Level::DEBUG) {
        return;
    }
    let (view, lost_to, since) = record.glance();
    let facts = Facts {
        kv_warmth: view.kv_warmth,
        queue: since.unwrap_or_default(),
        tokens_out: view.tokens_out,
        lost_to,
        ..Facts::default()
    };
    line!(Level::DEBUG, record, facts, step, "");
}

/// The same as spans, for whoever exports them; else it costs one comparison.
fn spans(record: &TaskRecord, sealed: &SealedTask, outcome: &str) {
    if !tracing::enabled!(target: "orchestrator_core::task_span", Level::TRACE) {
        return;
    }
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let (timing, place) = (sealed.timing, Place::of(record));
    tracing::event!(
        target: "orchestrator_core::task_span",
        Level::TRACE,
        traceparent = record.request.traceparent.as_ref().map_or("", |parent| parent.as_str()),
        span = record.id.stable_hash(),
        job_id = %record.id,
        client_id = %record.request.client_id,
        engine = place.engine,
        pool_id = place.pool_id,
        replica_id = place.replica_id,
        model_id = place.model_id,
        tokens_in = sealed.tokens_in.0,
        tokens_out = sealed.tokens_out,
        queue_us = micros(timing.queue),
        first_token_us = timing.first_token.map_or(0, micros),
        total_us = micros(timing.total),
        outcome,
    );
}

/// A task has ended.
pub(in crate::actors) fn ended(record: &TaskRecord, sealed: &SealedTask, kind: &TraceKind, is_loud: bool) {
    let (outcome, evictions) = match kind {
        TraceKind::Ended { reason: FinishReason::Canceled, .. } => ("canceled", 0),
        TraceKind::Ended { .. } => ("completed", 0),
        TraceKind::Failed { code, .. } => (code.as_str(), u32::from(code.as_str() == "QUEUE_FULL_DROP_LRU")),
        _ => ("", 0),
    };
    spans(record, sealed, outcome);
    let is_wanted = match is_loud {
        true => tracing::enabled!(target: "orchestrator_core::task", Level::INFO),
        false => tracing::enabled!(target: "orchestrator_core::task", Level::DEBUG),
    };
    if !is_wanted {
        return;
    }
    let facts = Facts {
        kv_warmth: sealed.kv_warmth,
        queue: sealed.timing.queue,
        decode: sealed.timing.decode,
        tokens_in: sealed.tokens_in.0,
        tokens_out: sealed.tokens_out,
        evictions,
        lost_to: sealed.lost_to,
    };
    match (sealed.was.is_accepted(), is_loud) {
        (true, true) => line!(Level::INFO, record, facts, "ended", outcome),
        (true, false) => line!(Level::DEBUG, record, facts, "ended", outcome),
        // Its caller knows; a flood of them must not fill the log.
        (false, _) => line!(Level::DEBUG, record, facts, "refused", outcome),
    }
}

/// The parts of a line that need a look at the task's pool: `None` is none yet.
struct Place {
    engine: String,
    pool_id: String,
    replica_id: String,
    model_id: String,
    quant: String,
    ctx: u32,
    tensor_split: String,
    engine_version: String,
    sampler_profile_version: String,
}

impl Place {
    fn of(record: &TaskRecord) -> Self {
        let (pool, identity) = record.whereabouts();
        let pool = pool.as_deref();
        let served = pool.map(|pool| pool.spec());
        let spec = identity.as_ref().map(|identity| identity.spec.clone()).or(served);
        let replica = pool.zip(identity.as_ref());
        let replica = replica.and_then(|(pool, it)| pool.config().replicas.get(usize::from(it.replica.index)));
        let split = replica.filter(|replica| replica.tensor_split.is_some()).map(|replica| replica.shares());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Place {
            engine: text(pool.map(|pool| pool.config().engine.as_str())),
            pool_id: text(pool.map(|pool| pool.id().as_str())),
            replica_id: identity.as_ref().map_or_else(String::new, |identity| identity.replica.to_string()),
            model_id: text(spec.as_ref().map(|spec| spec.model.as_str())),
            quant: text(spec.as_ref().map(|spec| spec.quant.as_str())),
            ctx: pool.map_or(0, |pool| pool.ctx()),
            tensor_split: split.map_or_else(|| "none".to_owned(), |shares| format!("{shares:?}")),
            engine_version: text(identity.as_ref().map(|identity| identity.engine_version.as_str())),
            sampler_profile_version: text(spec.as_ref().map(|spec| spec.sampler_profile_version.as_str())),
        }
    }
}

impl TaskRecord {
    pub(in crate::actors) fn host_span(&self) -> HostSpan {
        if has_been_set() { self.state.lock().host_span.clone() } else { None }
    }

    pub(in crate::actors) fn leave_host_span(&self) {
        if has_been_set() {
            let span = self.state.lock().host_span.take();
            drop(span); // Outside the lock: its subscriber is told.
        }
    }
}
