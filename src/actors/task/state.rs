//! What of a task changes, in parts by what it is about. All of it lies under the record's one lock.

use std::sync::Arc;
use std::time::Duration;

use crate::actors::kit::gate::Permit;
use crate::actors::kit::host_span::{self, HostSpan};
use crate::actors::quota::reservation::Reservation;
use crate::actors::task::event_log::replay::Replay;
use crate::actors::task::event_log::{EventLog, ReplicaIdentity};
use crate::actors::task::home::{Home, Route};
use crate::core::id::Epoch;
use crate::core::task::Phase;
use crate::core::units::Timestamp;

/// What of a task changes.
pub(in crate::actors) struct State {
    pub(in crate::actors) phase: Phase,
    pub(in crate::actors) epoch: Epoch,
    /// What its client was told.
    pub(in crate::actors) promise: Promise,
    pub(in crate::actors) attempts: u32,
    /// Its event log, and how far the newest attempt has come in it.
    pub(in crate::actors) output: Output,
    /// Where it goes, and where it runs.
    pub(in crate::actors) routing: Routing,
    /// What it holds until its log is sealed.
    pub(in crate::actors) holdings: Holdings,
    /// Attempts lost to memory, and to a device.
    pub(in crate::actors) lost_to: [u32; 2],
    /// When what of it happened.
    pub(in crate::actors) clock: Clock,
    /// Tokens that had been computed for it when it ended.
    pub(in crate::actors) tokens_at_end: Option<u32>,
    pub(in crate::actors) identity: Option<Arc<ReplicaIdentity>>,
    pub(in crate::actors) kv_warmth: bool,
    /// Who reads it.
    pub(in crate::actors) reading: Readers,
    pub(in crate::actors) host_span: HostSpan,
}

/// Its event log, and how far the newest attempt has come in it.
pub(in crate::actors) struct Output {
    pub(in crate::actors) log: EventLog,
    /// How far the newest attempt has come in the log.
    pub(in crate::actors) replay: Replay,
    /// Pieces that are the rest of one that an earlier attempt had cut elsewhere: no tokens of their own.
    pub(in crate::actors) rests: u32,
}

/// Where it goes, and where it runs.
pub(in crate::actors) struct Routing {
    /// It is an attempt of another node's: its limits are counted there.
    pub(in crate::actors) is_inbound: bool,
    /// Where the task was routed to; `None` before that.
    pub(in crate::actors) route: Option<Route>,
    /// The pool whose worker has the newest attempt: its own, or a peer that was idle.
    pub(in crate::actors) runs_in: Option<Arc<dyn Home>>,
    /// The replica that served the task's session last.
    pub(in crate::actors) affinity: Option<Arc<ReplicaIdentity>>,
    /// It was sent to that replica's pool unasked.
    pub(in crate::actors) was_sent_to_warm: bool,
}

/// When what of it happened.
pub(in crate::actors) struct Clock {
    /// Begin of the first attempt, from which on the task may run for so long.
    pub(in crate::actors) first_begun_at: Option<Timestamp>,
    /// Since when engines turn it away.
    pub(in crate::actors) turned_away_since: Option<Timestamp>,
    /// Begin of the attempt that gave the first token, or of the newest while there is none.
    pub(in crate::actors) begun_at: Option<Timestamp>,
    pub(in crate::actors) first_token_at: Option<Timestamp>,
    /// Begin of the newest attempt, or its newest token.
    pub(in crate::actors) progress_at: Timestamp,
    /// The last token that readers have, of a task whose attempt was lost behind it; until the next new one.
    pub(in crate::actors) silent_since: Option<Timestamp>,
    /// The longest of such silences.
    pub(in crate::actors) resume_gap: Option<Duration>,
    pub(in crate::actors) ended_at: Option<Timestamp>,
}

/// What its client was told.
pub(in crate::actors) struct Promise {
    /// The queue has taken it in at some time: an end was promised.
    pub(in crate::actors) accepted: bool,
    pub(in crate::actors) queue_position: u64,
    pub(in crate::actors) predicted_start: Duration,
}

/// What it holds until its log is sealed.
pub(in crate::actors) struct Holdings {
    /// Its part of its client's limits; settled when the log is sealed.
    pub(in crate::actors) claim: Option<Reservation>,
    /// The place at the intake gate; given back when the log is sealed.
    pub(in crate::actors) permit: Option<Permit>,
}

/// Who reads it.
pub(in crate::actors) struct Readers {
    /// A reader has seen everything and waits on `changed`. Saves waking nobody, once a token.
    pub(in crate::actors) reader_waits: bool,
    /// Readers that are there, and how many there have ever been. Counted only where it matters.
    pub(in crate::actors) readers: u32,
    pub(in crate::actors) visits: u64,
    /// All readers have left for good.
    pub(in crate::actors) abandoned: bool,
}

impl State {
    /// That of a task which has just been submitted.
    pub(in crate::actors) fn new(now: Timestamp, permit: Permit) -> Self {
        State {
            phase: Phase::Submitted,
            epoch: Epoch(0),
            attempts: 0,
            lost_to: [0; 2],
            tokens_at_end: None,
            identity: None,
            kv_warmth: false,
            host_span: host_span::current(),
            output: Output { log: EventLog::default(), replay: Replay::default(), rests: 0 },
            routing: Routing { is_inbound: false, route: None, runs_in: None, affinity: None, was_sent_to_warm: false },
            clock: Clock {
                first_begun_at: None,
                turned_away_since: None,
                begun_at: None,
                first_token_at: None,
                progress_at: now,
                silent_since: None,
                resume_gap: None,
                ended_at: None,
            },
            promise: Promise { accepted: false, queue_position: 0, predicted_start: Duration::ZERO },
            holdings: Holdings { claim: None, permit: Some(permit) },
            reading: Readers { reader_waits: false, readers: 0, visits: 0, abandoned: false },
        }
    }
}
