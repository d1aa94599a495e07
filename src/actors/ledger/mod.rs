//! The ledger: every task from submission until it is forgotten. It outlives every actor.
//!
//! It alone knows ids (ORCH-3024), ends tasks, counts and logs their ends, and forgets them by the bounds of
//! [`RetentionConfig`]. A restarted actor finds here what it has lost.

pub(crate) mod failures;
pub(crate) mod rejections;
pub(in crate::actors) mod retained;
pub(in crate::actors) mod sampling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::Mutex;

use crate::actors::kit::gate::Permit;
use crate::actors::ledger::failures::{FailedTask, Failures};
use crate::actors::ledger::retained::{Ended, Retained};
use crate::actors::ledger::sampling::note_end;
use crate::actors::metrics::events::{Events, RuntimeEvent};
use crate::actors::pool::messages::QueueMsg;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::lingering::LingeringRoom;
use crate::actors::task::log;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::SealedTask;
use crate::config::RetentionConfig;
use crate::core::id::{ClientId, Epoch, TaskId, TaskSeq};
use crate::core::pool::lifecycle::Intent;
use crate::core::task::seed::effective_seed;
use crate::core::task::trace::TraceKind;
use crate::core::task::{FinishReason, Phase, TaskRequest, Terminal, TransitionError};
use crate::core::units::Timestamp;
use crate::env::Env;
use crate::planted::seeded_bug;

/// All tasks of one runtime.
pub(crate) struct Ledger {
    env: Env,
    /// Sharded, since every submission and every cancel looks here. Its order of iteration is never used.
    tasks: DashMap<TaskId, Namesakes>,
    next_seq: AtomicU64,
    /// Ended tasks in the order of their ends. One short lock for each end.
    ended: Mutex<Retained>,
    lingering: LingeringRoom,
    pub(crate) failures: Failures,
    /// Whoever wants to hear of ends, and of what else happens.
    pub(crate) events: Events,
    /// Each task's end is a line at `INFO`.
    pub(crate) logs_tasks: bool,
}

/// The tasks of one id, of different clients: an id is its client's own. Nearly always there is one.
struct Namesakes {
    first: Arc<TaskRecord>,
    others: Vec<Arc<TaskRecord>>,
}

impl Namesakes {
    fn all(&self) -> impl Iterator<Item = &Arc<TaskRecord>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn of(&self, client: &ClientId) -> Option<&Arc<TaskRecord>> {
        self.all().find(|record| record.request.client_id == *client)
    }

    /// Takes a task out, unless it is the last.
    fn remove(&mut self, seq: TaskSeq) -> Removed {
        if self.first.seq != seq {
            let other = self.others.iter().position(|other| other.seq == seq);
            return other.map_or(Removed::Nothing, |other| Removed::One(self.others.remove(other)));
        }
        if self.others.is_empty() {
            return Removed::Last;
        }
        let next = self.others.remove(0);
        Removed::One(std::mem::replace(&mut self.first, next))
    }
}

/// What came of taking one of them out.
enum Removed {
    Nothing,
    One(Arc<TaskRecord>),
    /// It is the last, and still there.
    Last,
}

impl Ledger {
    pub(crate) fn new(env: Env, retention: RetentionConfig) -> Self {
        let (tasks, next_seq) = (DashMap::new(), AtomicU64::new(0));
        let (ended, lingering) = (Mutex::new(Retained::new(&retention)), LingeringRoom::new(retention.bytes));
        Ledger {
            env,
            tasks,
            next_seq,
            ended,
            lingering,
            failures: Failures::default(),
            events: Events::default(),
            logs_tasks: false,
        }
    }

    /// The task with this id; where several clients have one, that of the client who used it first.
    pub(crate) fn get(&self, id: &TaskId) -> Option<Arc<TaskRecord>> {
        self.tasks.get(id).map(|namesakes| namesakes.first.clone())
    }

    /// This client's task with this id.
    pub(crate) fn get_of(&self, client: &ClientId, id: &TaskId) -> Option<Arc<TaskRecord>> {
        self.tasks.get(id)?.of(client).cloned()
    }

    /// Every client's task with this id.
    #[cfg(feature = "service")]
    pub(crate) fn every(&self, id: &TaskId) -> Vec<Arc<TaskRecord>> {
        self.tasks.get(id).map(|namesakes| namesakes.all().cloned().collect()).unwrap_or_default()
    }

    /// Opens a record for a task, or returns the one of its client that has its id already.
    pub(crate) fn open(
        &self,
        id: TaskId,
        request: &Arc<TaskRequest>,
        permit: Permit,
        now: Timestamp,
    ) -> Result<Arc<TaskRecord>, Arc<TaskRecord>> {
        let mut place = self.tasks.entry(id);
        if let Entry::Occupied(taken) = &place
            && let Some(known) = taken.get().of(&request.client_id)
        {
            return Err(known.clone());
        }
        let id = place.key().clone();
        let seq = TaskSeq(self.next_seq.fetch_add(1, Relaxed));
        let seed = effective_seed(request.seed, &id);
        let record = Arc::new(TaskRecord::new(id, seq, request.clone(), seed, now, permit));
        match &mut place {
            Entry::Occupied(taken) => taken.get_mut().others.push(record.clone()),
            Entry::Vacant(_) => drop(place.insert(Namesakes { first: record.clone(), others: Vec::new() })),
        }
        self.env.trace(|| TraceKind::Submitted { seq });
        Ok(record)
    }

    /// Ends a task, and does all that follows from an end: counters, log, trace, memory. With `by`, only for that
    /// epoch.
    ///
    /// # Errors
    /// [`TransitionError`] when it has ended already, or that epoch is over; nothing happened.
    pub(crate) fn seal(
        &self,
        record: &TaskRecord,
        by: Option<Epoch>,
        terminal: Terminal,
    ) -> Result<SealedTask, TransitionError> {
        let now = self.env.now();
        let kind = match &terminal {
            Terminal::End { reason, .. } => TraceKind::Ended { seq: record.seq, reason: *reason },
            Terminal::Error(error) => TraceKind::Failed { seq: record.seq, code: error.code },
        };
        let has_failed = matches!(kind, TraceKind::Failed { .. });
        let sealed = record.seal(by, now, terminal)?;
        record.leave_host_span();
        settle(record, &sealed);
        count_end(&sealed, &kind);
        note_end(record, &sealed, &kind);
        log::ended(record, &sealed, &kind, self.logs_tasks);
        self.env.trace(|| kind);
        if sealed.was.is_accepted() {
            if has_failed && let Some(error) = record.view().error {
                let pool_id = sealed.ran_in.as_ref().or(sealed.pool.as_ref()).map(|pool| pool.id().clone());
                let (task_id, client_id) = (record.id.clone(), record.request.client_id.clone());
                self.failures.note(FailedTask { task_id, client_id, pool_id, error, at: now });
            }
            self.events.tell(|| RuntimeEvent::TaskEnded { task: Box::new(record.view()) });
            self.retain(record, now, &sealed);
        } else {
            self.forget(&record.id, record.seq); // Never accepted: its id is free again.
        }
        Ok(sealed)
    }

    /// Takes a task out, and returns it.
    fn forget(&self, id: &TaskId, seq: TaskSeq) -> Option<Arc<TaskRecord>> {
        let is_alone = |namesakes: &Namesakes| namesakes.first.seq == seq && namesakes.others.is_empty();
        if let Some((_, alone)) = self.tasks.remove_if(id, |_, namesakes| is_alone(namesakes)) {
            return Some(alone.first);
        }
        let Entry::Occupied(mut place) = self.tasks.entry(id.clone()) else { return None };
        match place.get_mut().remove(seq) {
            Removed::Last => Some(place.remove().first),
            Removed::One(record) => Some(record),
            Removed::Nothing => None,
        }
    }

    /// Remembers an ended task, and forgets those that exceed a bound.
    fn retain(&self, record: &TaskRecord, at: Timestamp, sealed: &SealedTask) {
        let ended = Ended { id: record.id.clone(), seq: record.seq, at, bytes: sealed.bytes };
        self.ended.lock().push(&record.request.client_id, sealed.weight, ended);
        // One at a time: a record is dropped outside the lock, which every ending task takes.
        loop {
            let Some(ended) = self.ended.lock().pop(at) else { return };
            if let Some(record) = self.forget(&ended.id, ended.seq) {
                record.linger(&self.lingering, ended.bytes as u64);
            }
        }
    }

    /// Tasks of this pool that have not ended, in the order of submission.
    pub(crate) fn unfinished_in(&self, pool: u16) -> Vec<Arc<TaskRecord>> {
        self.select(|phase, place| phase != Phase::Terminal && place == Some(pool))
    }

    /// Every task that has not ended, in the order of submission.
    pub(crate) fn unfinished(&self) -> Vec<Arc<TaskRecord>> {
        self.select(|phase, _| phase != Phase::Terminal)
    }

    /// Sorted, since the map's own order differs from run to run.
    fn select(&self, wanted: impl Fn(Phase, Option<u16>) -> bool) -> Vec<Arc<TaskRecord>> {
        let matches = |record: &Arc<TaskRecord>| {
            let (phase, pool) = record.place();
            wanted(phase, pool)
        };
        let mut found: Vec<_> = Vec::new();
        for namesakes in &self.tasks {
            found.extend(namesakes.all().filter(|record| matches(record)).cloned());
        }
        found.sort_by_key(|record| record.seq);
        found
    }

    /// Number of ids that are known, of ended tasks included.
    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }
}

/// Tells the accounts of the task's pool what was computed for it, if it was out.
fn settle(record: &TaskRecord, sealed: &SealedTask) {
    let is_out = matches!(sealed.was, Phase::Assigned | Phase::Running);
    let home = sealed.pool.as_deref().filter(|_| is_out);
    let Some(pool) = home.and_then(PoolShared::at) else { return };
    if seeded_bug!(ForgetSettlement) {
        return;
    }
    pool.waiting.settlements.lock().push_back((record.seq, sealed.served));
    if pool.intent() != Intent::Serve {
        pool.nudge_manager(); // A peer may have run it: the drain may be complete.
    }
    // Others learn from the next message; but one that waits for its conversation may be all that is there.
    if record.session().is_some() {
        pool.actors.queue.cast(QueueMsg::Settle); // Lost: a new queue settles first of all.
    }
}

fn count_end(sealed: &SealedTask, kind: &TraceKind) {
    let Some(pool) = sealed.pool.as_deref().and_then(PoolShared::at) else { return };
    let counters = &pool.figures.counters;
    let ran_in = sealed.ran_in.as_deref().and_then(PoolShared::at).unwrap_or(pool);
    let replica = sealed.identity.as_ref().and_then(|identity| ran_in.replicas.get(identity.replica.index as usize));
    if let Some(replica) = replica {
        replica.counters.tokens_in.fetch_add(sealed.tokens_in.0.into(), Relaxed);
        replica.counters.tokens_out.fetch_add(sealed.tokens_out.into(), Relaxed);
    }
    match kind {
        _ if !sealed.was.is_accepted() => 0, // Counted as a refusal, if at all.
        TraceKind::Ended { reason: FinishReason::Canceled, .. } if sealed.abandoned => {
            counters.abandoned.fetch_add(1, Relaxed)
        }
        TraceKind::Ended { reason: FinishReason::Canceled, .. } => counters.canceled.fetch_add(1, Relaxed),
        TraceKind::Ended { .. } => counters.completed.fetch_add(1, Relaxed),
        TraceKind::Failed { code, .. } => counters.failed(*code).fetch_add(1, Relaxed),
        _ => 0,
    };
}
