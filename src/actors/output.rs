//! Where an engine's tokens go: into the log of the task, as long as that takes them.

use crate::actors::attempt::Attempt;
use crate::actors::record::TaskRecord;
use crate::actors::replica::ReplicaShared;
use crate::core::id::Epoch;
use crate::core::task::Refusal;
use crate::core::trace::TraceKind;
use crate::gpu::engine::{Stopped, TokenOutput};

/// Where an engine's tokens go: into the log, as long as it takes them.
pub(super) struct LogOutput<'a> {
    attempt: &'a Attempt,
    place: &'a ReplicaShared,
    record: &'a TaskRecord,
    epoch: Epoch,
    /// Tokens of earlier attempts that this one goes on behind: its engine does not count them.
    behind: u32,
    /// Index of the token that was not the log's.
    pub(super) diverged: Option<u32>,
    /// It has given a token.
    has_token: bool,
}

impl<'a> LogOutput<'a> {
    /// The output of an attempt that goes on behind so many tokens of earlier ones without repeating them.
    pub(super) fn new(attempt: &'a Attempt, (record, epoch): (&'a TaskRecord, Epoch), behind: u32) -> Self {
        LogOutput { attempt, place: attempt.place(), record, epoch, behind, diverged: None, has_token: false }
    }

    /// Its engine works: one that was left out may be used more.
    #[cold]
    fn note_first_token(&mut self) {
        self.has_token = true;
        if self.place.note_well(self.attempt.pool.env.now(), false) {
            self.attempt.pool.nudge_manager();
        }
    }
}

impl TokenOutput for LogOutput<'_> {
    fn push(&mut self, text: &str) -> Result<(), Stopped> {
        if text.is_empty() {
            return Ok(());
        }
        let env = &self.attempt.pool.env;
        let now = env.now();
        self.place.outlier.note_alive(now);
        if !self.has_token && self.place.outlier.is_in_trouble() {
            self.note_first_token();
        }
        let index = self.record.append(self.epoch, now, text).map_err(|refusal| {
            if let Refusal::Diverged(index) = refusal {
                self.diverged = Some(index);
            }
            Stopped
        })?;
        env.trace(|| TraceKind::Token { seq: self.record.seq, index });
        Ok(())
    }

    fn is_alive(&mut self) {
        let now = self.attempt.pool.env.now();
        self.place.outlier.note_alive(now);
        self.record.note_alive(self.epoch, now);
    }

    fn counted(&mut self, tokens: u32) {
        self.record.note_counted(self.behind.saturating_add(tokens));
    }
}
