//! The event log of one task: append-only, sealed by its one terminal event, read by any number of cursors.
//!
//! Token text lies end to end in one string and an entry is 16 bytes, so a token costs no allocation of its own.
//! Nothing is ever removed or changed: a reader that knows an index can resume from it (`Last-Event-ID`). This file
//! knows no lock and no clock; `TaskRecord` puts one lock around appending and sealing.

pub(crate) mod replay;

use std::sync::Arc;

use serde::Serialize;

use crate::core::id::ReplicaId;
use crate::core::pool::model::ModelSpec;
use crate::core::task::FinishReason;
use crate::core::task::error::TaskError;
use crate::core::text::line::Name;
use crate::core::units::Tokens;

/// Text of one visit, which is made under the record's lock: an event may have half a mebibyte (an embedding), and a
/// visit hundreds of events.
const VISIT_BYTES: usize = 64 * 1024;

/// Who serves: the identity that makes output repeatable, shared by all tasks of a worker's life (ORCH-3032).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaIdentity {
    /// The worker's place.
    pub replica: ReplicaId,
    /// Name of the engine.
    pub engine: String,
    /// Version that the engine reports.
    pub engine_version: Name,
    /// Digest of its model.
    pub model_digest: Name,
    /// The engine's process, when the worker started one.
    pub process_id: Option<u32>,
    /// What it serves, as the configuration or a reload names it.
    pub spec: Arc<ModelSpec>,
    /// Longest context of one task by the engine's word, in tokens.
    pub ctx: Option<u32>,
    /// The pool's revision that it has.
    pub(crate) generation: u64,
}

impl ReplicaIdentity {
    /// Whether the two give the same tokens for the same task, as far as anybody says (ORCH-3046).
    pub(crate) fn is_same_source(&self, other: &ReplicaIdentity) -> bool {
        std::ptr::eq(self, other)
            || self.engine == other.engine
                && self.engine_version == other.engine_version
                && self.model_digest == other.model_digest
                && self.spec == other.spec
    }
}

/// A worker has begun the task. There is one such event for each attempt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Started {
    /// Tasks that were ahead when the task was accepted (ORCH-3029).
    pub queue_position: u64,
    /// Predicted time from acceptance to start, in milliseconds.
    pub predicted_start_ms: u64,
    /// Who serves.
    pub identity: Arc<ReplicaIdentity>,
    /// The seed that the task runs with.
    pub seed: u64,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Whether the replica served the task's session last, so that its KV cache may be warm.
    pub kv_warmth: bool,
    /// Tokens of earlier attempts that this one goes on behind without having repeated them (`on_loss: continue`).
    pub continues_behind: Option<u32>,
}

/// The task has ended as it should, or as its client wished.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct End {
    /// Prompt tokens: the engine's count, or our estimate.
    pub tokens_in: Tokens,
    /// Tokens that were computed: the engine's count, up to the budget; without one, those of this log.
    pub tokens_out: u32,
    /// Time in the queue, in milliseconds.
    pub queue_ms: f64,
    /// Time from submission to the first token, in milliseconds; `None` without a token.
    pub first_token_ms: Option<f64>,
    /// Time from the first token to the end, in milliseconds.
    pub decode_ms: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it before its budget was used up, if that is neither the model nor the client: `context`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_by: Option<&'static str>,
    /// Attempts that were begun.
    pub attempts: u32,
}

/// One event, as a reader gets it.
///
/// It serialises as the `data` that the service sends for it; [`Event::name`] is the service's `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Event {
    /// A worker has begun the task.
    Started(Started),
    /// A token.
    Token {
        /// Its text.
        #[serde(rename = "t")]
        text: String,
        /// Its index among the tokens, from 0.
        #[serde(rename = "i")]
        index: u32,
    },
    /// The end.
    End(End),
    /// The end, by a failure.
    Error(TaskError),
}

impl Serialize for Started {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let identity = &self.identity;
        let mut fields = serializer.serialize_struct("Started", 11)?;
        fields.serialize_field("queue_position", &self.queue_position)?;
        fields.serialize_field("predicted_start_ms", &self.predicted_start_ms)?;
        fields.serialize_field("engine", &identity.engine)?;
        fields.serialize_field("engine_version", &identity.engine_version)?;
        fields.serialize_field("model_digest", &identity.model_digest)?;
        fields.serialize_field("pool_id", &identity.replica.pool)?;
        fields.serialize_field("replica_id", &identity.replica)?;
        fields.serialize_field("seed", &self.seed)?;
        fields.serialize_field("attempt", &self.attempt)?;
        fields.serialize_field("kv_warmth", &self.kv_warmth)?;
        match &self.continues_behind {
            Some(tokens) => fields.serialize_field("continues_behind", tokens)?,
            None => fields.skip_field("continues_behind")?,
        }
        fields.end()
    }
}

impl Event {
    /// What the service calls it: `started`, `token`, `end`, `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Started(_) => "started",
            Event::Token { .. } => "token",
            Event::End(_) => "end",
            Event::Error(_) => "error",
        }
    }

    /// Whether nothing follows.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Event::End(_) | Event::Error(_))
    }
}

/// One event, borrowed from the log while it is visited.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EventRef<'a> {
    /// A worker has begun the task.
    Started(&'a Started),
    /// A token.
    Token {
        /// Its text.
        text: &'a str,
        /// Its index among the tokens, from 0.
        index: u32,
    },
    /// The end.
    End(&'a End),
    /// The end, by a failure.
    Error(&'a TaskError),
}

impl EventRef<'_> {
    /// A copy that outlives the visit.
    pub fn to_owned(self) -> Event {
        match self {
            EventRef::Started(started) => Event::Started(started.clone()),
            EventRef::Token { text, index } => Event::Token { text: text.to_owned(), index },
            EventRef::End(end) => Event::End(end.clone()),
            EventRef::Error(error) => Event::Error(error.clone()),
        }
    }
}

#[derive(Debug)]
pub(in crate::actors) enum Entry {
    Started(Box<Started>),
    /// Text of token `index` ends at `end`; it begins where the one before it ended.
    Token {
        index: u32,
        end: u32,
    },
    End(Box<End>),
    Error(Box<TaskError>),
}

/// The events of one task.
#[derive(Debug, Default)]
pub struct EventLog {
    pub(in crate::actors) entries: Vec<Entry>,
    pub(in crate::actors) text: String,
    pub(in crate::actors) tokens: u32,
    /// Invariant: the last entry is terminal exactly when this is set.
    sealed: bool,
}

/// The log has its terminal event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed;

/// Longest text of all tokens of one task, in bytes: entries hold 32-bit ends.
pub const TEXT_BYTES_MAX: usize = 256 * 1024 * 1024;

impl EventLog {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Text of all tokens.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether nothing may follow.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Memory behind the log, in bytes, for the bound on what is remembered.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.text.capacity()
    }

    fn push(&mut self, entry: Entry) -> Result<(), Sealed> {
        if self.sealed {
            return Err(Sealed);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Appends the begin of an attempt.
    ///
    /// # Errors
    /// [`Sealed`] when the task is over; nothing was appended.
    pub fn append_started(&mut self, started: Started) -> Result<(), Sealed> {
        self.push(Entry::Started(Box::new(started)))
    }

    /// What must never happen: a token behind the end.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn append_behind_end(&mut self, text: &str) -> Result<u32, Sealed> {
        self.sealed = false;
        let index = self.append_token(text);
        self.sealed = true;
        index
    }

    /// Appends a token and returns its index.
    ///
    /// # Errors
    /// [`Sealed`] when the task is over, or its text would exceed [`TEXT_BYTES_MAX`]; nothing was appended.
    pub fn append_token(&mut self, text: &str) -> Result<u32, Sealed> {
        if self.sealed || self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(Sealed);
        }
        self.text.push_str(text);
        let index = self.tokens;
        self.tokens += 1;
        self.push(Entry::Token { index, end: self.text.len() as u32 })?;
        Ok(index)
    }

    /// Appends the terminal event.
    ///
    /// # Errors
    /// [`Sealed`] when there is one already; nothing was appended.
    pub fn seal(&mut self, terminal: Result<End, TaskError>) -> Result<(), Sealed> {
        self.push(match terminal {
            Ok(end) => Entry::End(Box::new(end)),
            Err(error) => Entry::Error(Box::new(error)),
        })?;
        self.sealed = true;
        Ok(())
    }

    /// Visits at most `most` events from index `from` on, in order, and no more behind 64 KiB of text; returns the
    /// index behind the last.
    pub fn visit(&self, from: usize, most: usize, mut visitor: impl FnMut(usize, EventRef<'_>)) -> usize {
        let from = from.min(self.entries.len());
        let mut begin = self.text_begin(from);
        let end = from.saturating_add(most).min(self.entries.len());
        let enough = begin.saturating_add(VISIT_BYTES);
        for (position, entry) in self.entries[..end].iter().enumerate().skip(from) {
            if begin >= enough {
                return position;
            }
            visitor(
                position,
                match entry {
                    Entry::Started(started) => EventRef::Started(started),
                    Entry::Token { index, end } => {
                        let text = &self.text[begin..*end as usize];
                        begin = *end as usize;
                        EventRef::Token { text, index: *index }
                    }
                    Entry::End(end) => EventRef::End(end),
                    Entry::Error(error) => EventRef::Error(error),
                },
            );
        }
        end
    }

    /// Where the text of the first token at or behind `from` begins. Looks back over at most the attempts' begins.
    fn text_begin(&self, from: usize) -> usize {
        let before = self.entries[..from].iter().rev();
        let end =
            before.filter_map(|entry| if let Entry::Token { end, .. } = entry { Some(*end) } else { None }).next();
        end.unwrap_or(0) as usize
    }

    /// The terminal event, if there is one.
    pub fn terminal(&self) -> Option<EventRef<'_>> {
        match self.entries.last()? {
            Entry::End(end) => Some(EventRef::End(end)),
            Entry::Error(error) => Some(EventRef::Error(error)),
            Entry::Started(_) | Entry::Token { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::task::error::ErrorCode;

    fn read(log: &EventLog, from: usize) -> Vec<String> {
        let mut seen = Vec::new();
        log.visit(from, usize::MAX, |_, event| {
            seen.push(match event {
                EventRef::Token { text, index } => format!("{index}:{text}"),
                EventRef::Error(error) => error.code.to_string(),
                other => format!("{other:?}"),
            });
        });
        seen
    }

    fn failure() -> Result<End, TaskError> {
        Err(TaskError::new(ErrorCode::WorkerReset, "gone"))
    }

    #[test]
    fn nothing_follows_the_terminal_event() {
        let mut log = EventLog::default();
        log.append_token("a").expect("open");
        log.seal(failure()).expect("open");
        assert_eq!(log.append_token("b"), Err(Sealed));
        assert_eq!(log.seal(failure()), Err(Sealed));
        assert_eq!((log.len(), log.text()), (2, "a"));
    }

    #[test]
    fn a_reader_resumes_from_any_index() {
        let mut log = EventLog::default();
        for text in ["a", "", "ß", "cd"] {
            log.append_token(text).expect("open");
        }
        log.seal(failure()).expect("open");
        let all = read(&log, 0);
        assert_eq!(all, ["0:a", "1:", "2:ß", "3:cd", "WORKER_RESET"]);
        for from in 0..=all.len() + 1 {
            assert_eq!(read(&log, from), all[from.min(all.len())..], "from {from}");
            let next = log.visit(from, 2, |_, _| ());
            assert_eq!(next, (from + 2).min(all.len()).max(from.min(all.len())), "two at a time");
        }
    }

    #[test]
    fn an_entry_stays_small() {
        assert_eq!(size_of::<Entry>(), 16);
    }
}
