//! Guests: attempts that other nodes' gateways have sent here. Each is a task of this runtime, in the one order of its
//! pool, whose tokens go back over the link. An attempt lives under its link's lease: when the link is over, or its
//! gateway is silent, it is stopped.
//!
//! Spec: ORCH-3007, ORCH-3026.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cluster::link::links::{InboundAttempt, LinkShared};
use crate::cluster::link::protocol::{
    AttemptEnd, AttemptId, AttemptTask, CREDIT_BYTES, CREDIT_TOKENS, ENVELOPE_BYTES_FULL, LinkMessage, PoolCapacity,
};
use crate::cluster::shared::ClusterShared;
use crate::cluster::sharing::anti_affinity::is_closed_to;
use crate::core::id::PoolId;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::{Phase, TaskRequest};
use crate::core::text::line::Message;
use crate::core::units::Timestamp;
use crate::orchestrator::Submitted;
use crate::orchestrator::fabric::Cut;
use crate::orchestrator::fabric::TaskStream;
use crate::orchestrator::fabric::{End, EventRef};
use crate::planted::seeded_bug;

/// Most attempts of one link: more than any peer has slots for here.
const INBOUND_MAX: usize = 16_384;

/// Takes an attempt in, or says why not.
///
/// # Errors
/// The peer gives a number twice, or sends far more than it may.
pub(crate) fn take_in(
    shared: &Arc<ClusterShared>,
    link: &Arc<LinkShared>,
    number: AttemptId,
    task: AttemptTask,
) -> Result<(), String> {
    let attempt = Arc::new(InboundAttempt {
        pool: task.pool.clone(),
        credit: Mutex::new((CREDIT_TOKENS, CREDIT_BYTES)),
        more_credit: Notify::new(),
        record: Mutex::new(None),
        is_stopped: AtomicBool::new(false),
    });
    {
        let mut attempts = link.attempts.lock();
        if attempts.len() >= INBOUND_MAX {
            return Err(format!("{INBOUND_MAX} attempts are enough"));
        }
        if attempts.insert(number, attempt.clone()).is_some() {
            return Err(format!("attempt {} came twice", number.0));
        }
    }
    shared.inbound.guests_taken.fetch_add(1, Relaxed);
    let forwarder = TokenForwarder { shared: shared.clone(), link: link.clone(), number, attempt };
    // Not aborted by anybody: it ends with its task, which ends with the attempt, which ends with the link.
    drop(tokio::spawn(async move { forwarder.carry(task).await }));
    Ok(())
}

/// The gateway has taken up tokens.
pub(crate) fn on_credit(link: &LinkShared, number: AttemptId, tokens: u32, bytes: u32) {
    let attempt = link.attempts.lock().get(&number).cloned();
    if let Some(attempt) = attempt.filter(|_| !seeded_bug!(ForgetCredit)) {
        let mut credit = attempt.credit.lock();
        *credit =
            (credit.0.saturating_add(tokens).min(CREDIT_TOKENS), credit.1.saturating_add(bytes).min(CREDIT_BYTES));
        drop(credit);
        attempt.more_credit.notify_waiters();
    }
}

/// The gateway wants no more of an attempt.
pub(crate) fn stop(shared: &ClusterShared, link: &LinkShared, number: AttemptId) {
    let attempt = link.attempts.lock().remove(&number);
    link.must_say_limits.store(true, Relaxed);
    if let Some(attempt) = attempt.filter(|_| !seeded_bug!(RunStopped)) {
        end(shared, &attempt);
    }
}

/// Stops every attempt of a link, and says so.
pub(crate) fn stop_all(shared: &ClusterShared, link: &LinkShared, why: &str) {
    if seeded_bug!(KeepLease) {
        return;
    }
    let attempts = std::mem::take(&mut *link.attempts.lock());
    if attempts.is_empty() {
        return;
    }
    tracing::warn!(peer = %link.peer, attempts = attempts.len(), %why, "a gateway's attempts are stopped");
    for (attempt, entry) in attempts {
        shared.inbound.leases_expired.fetch_add(1, Relaxed);
        end(shared, &entry);
        let end = AttemptEnd::Failed { code: ErrorCode::WorkerReset, message: why.into() };
        link.say(LinkMessage::End { attempt, end });
    }
}

/// Stops the attempts in pools that keep away from their gateway: the law may be younger than they.
pub(crate) fn stop_closed(shared: &ClusterShared, link: &LinkShared) {
    let mut attempts = link.attempts.lock();
    let pools: BTreeSet<PoolId> = attempts.values().map(|attempt| attempt.pool.clone()).collect();
    let closed: Vec<PoolId> = pools.into_iter().filter(|pool| is_closed_to(shared, pool, link)).collect();
    let is_closed = |attempt: &InboundAttempt| closed.contains(&attempt.pool);
    let leaving: Vec<AttemptId> =
        attempts.iter().filter(|(_, attempt)| is_closed(attempt)).map(|(number, _)| *number).collect();
    let leaving: Vec<_> = leaving.into_iter().filter_map(|number| Some((number, attempts.remove(&number)?))).collect();
    drop(attempts);
    for (attempt, entry) in leaving {
        end(shared, &entry);
        let message = format!("pool {} keeps away from this node", entry.pool);
        link.say(LinkMessage::End { attempt, end: failed(ErrorCode::PoolUnavailable, message) });
    }
}

fn end(shared: &ClusterShared, attempt: &InboundAttempt) {
    attempt.is_stopped.store(true, SeqCst);
    // Whoever comes first finds the other: the record is noted before the look at `is_stopped`.
    let record = attempt.record.lock().clone();
    if let Some(record) = record {
        shared.orchestrator.cancel_record(&record);
    }
    attempt.more_credit.notify_waiters();
}

/// Speaks of the attempts that have not begun, and of those that have made progress since, with a token or without:
/// their gateways count time by what they hear.
pub(crate) fn say_who_waits(link: &LinkShared, since: Timestamp) {
    let waits = |attempt: &InboundAttempt| {
        let record = attempt.record.lock();
        record.as_ref().is_none_or(|record| {
            matches!(record.phase(), Phase::Submitted | Phase::Queued | Phase::Assigned) || record.progress_at() > since
        })
    };
    let waiting: Vec<AttemptId> =
        link.attempts.lock().iter().filter(|(_, attempt)| waits(attempt)).map(|(number, _)| *number).collect();
    if !waiting.is_empty() {
        link.say(LinkMessage::Queued(waiting));
    }
}

/// Counts an attempt as long as its task may compute.
struct Open<'a>(&'a ClusterShared);

impl<'a> Open<'a> {
    fn new(shared: &'a ClusterShared) -> Self {
        shared.inbound.guests_open.fetch_add(1, Relaxed);
        Open(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.inbound.guests_open.fetch_sub(1, Relaxed);
    }
}

/// Brings an attempt's tokens on their way.
struct TokenForwarder {
    shared: Arc<ClusterShared>,
    link: Arc<LinkShared>,
    number: AttemptId,
    attempt: Arc<InboundAttempt>,
}

impl TokenForwarder {
    async fn submit(&self, request: TaskRequest) -> Result<Submitted, TaskError> {
        let note = |seq| self.shared.served.note_inbound(seq, self.link.peer.clone());
        self.shared.orchestrator.submit_inbound(request, note).await
    }

    async fn carry(self, task: AttemptTask) {
        let name = task.task_id.clone();
        let _open = Open::new(&self.shared);
        let end = match task.request() {
            Err(message) => failed(ErrorCode::InvalidParams, message),
            Ok(_) if is_closed_to(&self.shared, &self.attempt.pool, &self.link) => {
                failed(ErrorCode::PoolUnavailable, format!("pool {} keeps away from this node", self.attempt.pool))
            }
            Ok(_) if self.shared.is_draining() => failed(ErrorCode::PoolUnavailable, "the node is drained"),
            Ok(request) => match self.submit(request).await {
                Err(error) => {
                    // What it was told of free places is not so any more.
                    let room = PoolCapacity { pool: self.attempt.pool.clone(), attempts: 0, is_full: true };
                    self.link.say(LinkMessage::Capacity(vec![room]));
                    self.link.must_say_limits.store(true, Relaxed);
                    failed(error.code, error.message)
                }
                Ok(submitted) => {
                    tracing::debug!(task_id = %name, as_task = %submitted.task_id, peer = %self.link.peer, "an attempt");
                    *self.attempt.record.lock() = Some(submitted.record().clone());
                    if self.attempt.is_stopped.load(SeqCst) {
                        self.shared.orchestrator.cancel_record(submitted.record());
                    }
                    self.link.say(LinkMessage::Queued(vec![self.number]));
                    self.tokens(submitted.stream()).await
                }
            },
        };
        // Whoever takes the attempt out says its end.
        if self.link.attempts.lock().remove(&self.number).is_some() {
            if !matches!(end, AttemptEnd::Done { .. }) {
                self.shared.inbound.guests_lost.fetch_add(1, Relaxed);
            }
            self.link.say(LinkMessage::End { attempt: self.number, end });
            self.link.must_say_limits.store(true, Relaxed);
        }
    }

    /// Sends tokens as they come and as the gateway takes them; returns how it ended.
    async fn tokens(&self, mut stream: TaskStream) -> AttemptEnd {
        loop {
            let most = self.until_credit().await;
            let (mut texts, mut end) = (Vec::new(), None);
            let goes_on = stream
                .visit_next(most as usize, |_, event| match event {
                    EventRef::Token { text, .. } => texts.push(text.to_owned()),
                    EventRef::End(ended) => end = Some(done(ended)),
                    EventRef::Error(error) => end = Some(failed(error.code, error.message.clone())),
                    EventRef::Started(_) => {
                        self.link.say(LinkMessage::Started(self.number));
                        self.link.must_say_limits.store(true, Relaxed);
                    }
                })
                .await;
            self.send(texts);
            match (end, goes_on) {
                (Some(end), _) => return end,
                (None, Ok(true)) => {}
                (None, Ok(false)) => return failed(ErrorCode::Internal, "the task has no end"),
                (None, Err(Cut)) => return failed(ErrorCode::Internal, Cut::WHY),
            }
        }
    }

    /// Sends tokens, no more at once than fits into one envelope.
    fn send(&self, texts: Vec<String>) {
        let (mut batch, mut size) = (Vec::new(), 0);
        for text in texts {
            let bytes = text.len() as u32;
            let mut credit = self.attempt.credit.lock();
            *credit = (credit.0.saturating_sub(1), credit.1.saturating_sub(bytes));
            drop(credit);
            if size + text.len() > ENVELOPE_BYTES_FULL && !batch.is_empty() {
                self.link.say(LinkMessage::Tokens { attempt: self.number, texts: std::mem::take(&mut batch) });
                size = 0;
            }
            size += text.len();
            batch.push(text);
        }
        if seeded_bug!(SayTwice) {
            self.link.say(LinkMessage::Tokens { attempt: self.number, texts: batch.clone() });
        }
        if !batch.is_empty() && !seeded_bug!(LoseTokens) {
            self.link.say(LinkMessage::Tokens { attempt: self.number, texts: batch });
        }
    }

    /// Waits until something may be sent; returns how many tokens. What they have in bytes is not known before: the
    /// last ones may exceed the credit.
    async fn until_credit(&self) -> u32 {
        loop {
            let more = self.attempt.more_credit.notified();
            tokio::pin!(more);
            more.as_mut().enable(); // Before the look, so that no credit is missed.
            let credit = *self.attempt.credit.lock();
            let is_over = self.link.is_over() || self.attempt.is_stopped.load(SeqCst);
            if credit.0 > 0 && credit.1 > 0 || is_over {
                return credit.0.max(1);
            }
            more.await;
        }
    }
}

fn done(end: &End) -> AttemptEnd {
    AttemptEnd::Done { reason: end.finish_reason, tokens_in: end.tokens_in.0 }
}

fn failed(code: ErrorCode, message: impl Into<Message>) -> AttemptEnd {
    let message = message.into();
    AttemptEnd::Failed { code, message }
}
