//! A task's record as those see it who watch over its attempts: how many there were, and when the newest last went on.

use std::sync::atomic::Ordering::Relaxed;

use crate::actors::task::record::TaskRecord;
use crate::core::id::Epoch;
use crate::core::units::Timestamp;
use crate::planted::seeded_bug;

impl TaskRecord {
    /// The attempt of this epoch was none: nothing of it has run. Returns whether it is the newest.
    pub(crate) fn forget_attempt(&self, epoch: Epoch) -> bool {
        let mut state = self.state.lock();
        let is_newest = state.fence(epoch).is_ok();
        state.attempts -= u32::from(is_newest && state.attempts > 0);
        if is_newest && state.attempts == 0 {
            state.clock.first_begun_at = None; // It has not run yet: nothing counts against its time.
        }
        is_newest
    }

    /// An engine has turned it away. Returns since when that happens to it, without a token in between.
    pub(crate) fn note_turned_away(&self, now: Timestamp) -> Timestamp {
        let mut state = self.state.lock();
        let has_gone_on = state
            .clock
            .first_token_at
            .is_some_and(|first| state.clock.turned_away_since.is_none_or(|since| since < first));
        if has_gone_on {
            state.clock.turned_away_since = None;
        }
        *state.clock.turned_away_since.get_or_insert(now)
    }

    /// The attempt of this epoch goes on, though it has no token yet.
    pub(crate) fn note_alive(&self, epoch: Epoch, now: Timestamp) {
        let mut state = self.state.lock();
        if state.fence(epoch).is_ok() {
            state.clock.progress_at = now;
        }
    }

    /// The engine counts so many tokens of the task so far. The highest count stays: one attempt writes at a time.
    pub(crate) fn note_counted(&self, tokens: u32) {
        if tokens > self.counted.load(Relaxed) {
            self.counted.store(tokens, Relaxed);
        }
    }

    /// The engines' highest count of its tokens; 0 while none has counted them.
    pub(in crate::actors) fn counted(&self) -> u32 {
        self.counted.load(Relaxed)
    }

    /// Whether the task, having lost this attempt, has another one: by its own pool's rule, since it may have run in a
    /// peer.
    pub(crate) fn runs_again(&self) -> bool {
        let (attempts, tokens) = self.progress();
        let attempts = if seeded_bug!(NoAttemptBound) { 0 } else { attempts };
        self.home().map(|home| home.loss_rule(&self.request)).is_some_and(|rule| rule.runs_again(attempts, tokens))
    }

    /// Whether the task, had it another attempt, could run again: it has no token yet, or its rule says so.
    pub(crate) fn may_begin_again(&self) -> bool {
        let (_, tokens) = self.progress();
        tokens == 0 || self.home().is_some_and(|home| home.loss_rule(&self.request).runs_again(0, tokens))
    }

    /// When the newest attempt last made progress.
    pub(crate) fn progress_at(&self) -> Timestamp {
        self.state.lock().clock.progress_at
    }

    /// Begin of the first attempt.
    pub(crate) fn first_begun_at(&self) -> Option<Timestamp> {
        self.state.lock().clock.first_begun_at
    }

    /// Attempts that were begun, and tokens that they gave.
    pub(crate) fn progress(&self) -> (u32, u32) {
        let state = self.state.lock();
        (state.attempts, state.output.log.tokens())
    }
}
