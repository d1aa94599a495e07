//! Where an engine's tokens go: into the log of the task, as long as that takes them.

use crate::actors::pool::replica::ReplicaShared;
use crate::actors::task::record::TaskRecord;
use crate::actors::worker::attempt::Attempt;
use crate::core::id::Epoch;
use crate::core::task::trace::TraceKind;
use crate::core::task::{FinishReason, TransitionError};
use crate::gpu::engine::{EngineError, Finish, Stopped, TokenOutput};
use crate::planted::seeded_bug;

/// Where an engine's tokens go: into the log, as long as it takes them.
pub(in crate::actors) struct LogOutput<'a> {
    attempt: &'a Attempt,
    place: &'a ReplicaShared,
    record: &'a TaskRecord,
    epoch: Epoch,
    /// Tokens of earlier attempts that this one goes on behind: its engine does not count them.
    behind: u32,
    /// Why the log took no more, if it has refused a token.
    refused: Option<TransitionError>,
    /// A call of ours is under way: a panic in it is none of the engine's.
    is_within: bool,
    /// It has given a token.
    has_token: bool,
}

impl<'a> LogOutput<'a> {
    /// The output of an attempt that goes on behind so many tokens of earlier ones without repeating them.
    pub(in crate::actors) fn new(attempt: &'a Attempt, (record, epoch): (&'a TaskRecord, Epoch), behind: u32) -> Self {
        LogOutput {
            attempt,
            place: attempt.place(),
            record,
            epoch,
            behind,
            refused: None,
            is_within: false,
            has_token: false,
        }
    }

    /// Whether the log has refused a token beyond the task's budget.
    pub(in crate::actors) fn is_full(&self) -> bool {
        matches!(self.refused, Some(TransitionError::Budget(_)))
    }

    /// How the run ended, by all that is known: an engine cannot say that it was stopped, that its budget is used up,
    /// or that its client has gone, when that is not so.
    ///
    /// # Errors
    /// The index of the token at which it did not repeat an earlier attempt.
    ///
    /// # Panics
    /// With the panic of a call of ours, which only passed through the engine's code.
    pub(in crate::actors) fn judge(
        &self,
        result: Result<Finish, EngineError>,
    ) -> Result<Result<Finish, EngineError>, u32> {
        match (&self.refused, result) {
            (_, Err(EngineError::Panicked { said, .. })) if self.is_within => panic!("in an output: {said}"),
            (Some(TransitionError::Diverged(index)), _) => Err(*index),
            // Whatever it says behind its last token.
            (Some(TransitionError::Budget(_)), Ok(finish)) => Ok(Ok(Finish { reason: FinishReason::Length, ..finish })),
            (Some(TransitionError::Budget(_)), Err(_)) => {
                Ok(Ok(Finish { reason: FinishReason::Length, tokens_in: None }))
            }
            (None, Err(EngineError::Stopped(_))) if !seeded_bug!(TrustStop) => {
                Ok(Err(EngineError::Garbled("it stopped, and nobody had told it to".into())))
            }
            (_, Ok(Finish { reason: FinishReason::Canceled, .. })) => Ok(Err(EngineError::Garbled(
                "it says that the task was cancelled, which is not for an engine to say".into(),
            ))),
            (_, result) => Ok(result),
        }
    }

    fn take(&mut self, text: &str) -> Result<(), TransitionError> {
        let env = &self.attempt.pool.env;
        let now = env.now();
        self.place.outlier.note_alive(now);
        if !self.has_token && self.place.outlier.is_in_trouble() {
            self.note_first_token();
        }
        let index = self.record.append(self.epoch, now, text)?;
        env.trace(|| TraceKind::Token { seq: self.record.seq, index });
        Ok(())
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
        self.is_within = true;
        let taken = self.take(text);
        self.is_within = false;
        taken.map_err(|refusal| {
            self.refused.get_or_insert(refusal);
            Stopped
        })
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
