//! The end of a task: its log is sealed, its part of every limit given back, and what it amounts to is summed up.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::actors::task::event_log::End;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::state::State;
use crate::actors::task::view::{SealedTask, Timing};
use crate::core::fairness::Served;
use crate::core::id::Epoch;
use crate::core::task::{FinishReason, Phase, Step, Terminal, TransitionError};
use crate::core::units::{Timestamp, Tokens, millis_exact};
use crate::planted::seeded_bug;

impl TaskRecord {
    /// Ends the task: appends the terminal event, after which nothing is taken. With `by`, only for that epoch.
    ///
    /// Called by [`Ledger::seal`](crate::actors::ledger::Ledger::seal) alone, which does what has to follow.
    pub(in crate::actors) fn seal(
        &self,
        by: Option<Epoch>,
        now: Timestamp,
        terminal: Terminal,
    ) -> Result<SealedTask, TransitionError> {
        let mut state = self.state.lock();
        if let Some(epoch) = by {
            state.fence(epoch)?;
        }
        let was = state.phase;
        if !seeded_bug!(EndTwice) || was != Phase::Terminal {
            state.step(Step::Seal)?;
        }
        state.clock.ended_at = Some(now);
        // Once: the engine's count may still rise while its run is being stopped.
        let output = self.tokens_out(&state);
        state.tokens_at_end = Some(output);
        let timing = state.timing(self.submitted_at, now);
        let mut tokens_in = state.routing.route.as_ref().map_or(Tokens(0), |route| route.prompt_tokens);
        let whole = matches!(terminal, Terminal::End { reason, .. } if reason != FinishReason::Canceled);
        let terminal = match terminal {
            Terminal::Error(error) => Err(error),
            Terminal::End { reason, tokens_in: counted } => {
                tokens_in = counted.unwrap_or(tokens_in);
                Ok(state.end(timing, (tokens_in, output), reason))
            }
        };
        let _ = state.output.log.seal(terminal); // A sealed log is Terminal, which the step above refuses.
        let permit = state.holdings.permit.take();
        if seeded_bug!(LeakPermit) && !whole {
            Box::leak(Box::new(permit));
        }
        let output = Tokens(output);
        if let Some(claim) = state.holdings.claim.take() {
            let unused = Tokens(self.request.max_tokens.0.saturating_sub(output.0));
            claim.settle(&self.request.client_id, was.is_accepted(), unused);
        }
        let served = match was {
            Phase::Running if whole => Served::Whole { prompt: tokens_in, output },
            Phase::Running => Served::Part { prompt: tokens_in, output },
            // Out once more, behind tokens that it has.
            Phase::Assigned if output.0 > 0 => Served::Part { prompt: tokens_in, output },
            _ => Served::Nothing,
        };
        let sealed = SealedTask {
            was,
            served,
            pool: state.routing.route.as_ref().map(|route| route.pool.clone()),
            ran_in: state.routing.runs_in.clone(),
            identity: state.identity.clone(),
            kv_warmth: state.kv_warmth,
            lost_to: state.lost_to,
            abandoned: state.reading.abandoned,
            timing,
            resume_gap: state.clock.resume_gap,
            tokens_in,
            tokens_out: output.0,
            weight: state.routing.route.as_ref().map_or(1, |route| route.client.policy().weight),
            bytes: size_of::<TaskRecord>() + self.request.text_bytes() + state.output.log.bytes(),
        };
        self.wake_readers(state);
        self.stopped.notify_waiters();
        Ok(sealed)
    }
}

impl TaskRecord {
    /// Tokens that were computed for it so far: by the engine's count, which may be of several in one piece, up to the
    /// budget; else those that its log has.
    pub(in crate::actors) fn tokens_out(&self, state: &State) -> u32 {
        if let Some(tokens) = state.tokens_at_end {
            return tokens;
        }
        match self.counted.load(Relaxed) {
            // Whoever counts fewer than there were pieces has not stopped at its budget; we did.
            counted if counted > 0 && state.pieces() < self.request.max_tokens.0 => {
                counted.min(self.request.max_tokens.0)
            }
            _ => state.pieces(),
        }
    }
}

impl State {
    fn timing(&self, submitted_at: Timestamp, now: Timestamp) -> Timing {
        Timing {
            queue: self.clock.begun_at.unwrap_or(now).since(submitted_at),
            first_token: self.clock.first_token_at.map(|first| first.since(submitted_at)),
            decode: self.clock.first_token_at.map_or(Duration::ZERO, |first| now.since(first)),
            total: now.since(submitted_at),
        }
    }

    fn end(&self, timing: Timing, (tokens_in, tokens_out): (Tokens, u32), reason: FinishReason) -> End {
        End {
            tokens_in,
            tokens_out,
            queue_ms: millis_exact(timing.queue),
            first_token_ms: timing.first_token.map(millis_exact),
            decode_ms: millis_exact(timing.decode),
            finish_reason: reason,
            cut_by: (reason == FinishReason::Context).then_some("context"),
            attempts: self.attempts,
        }
    }
}
