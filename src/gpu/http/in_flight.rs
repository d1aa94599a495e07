//! Which runs an engine without numbered slots is at work on, by our own knowledge: what its counters are held against
//! when a run is stopped.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::sleep;

use crate::env::Env;
use crate::gpu::engine::{EngineContext, EngineError, Finish};

/// Time between two looks at an engine's counters while a run is being left.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// Good looks in a row after which a run counts as left. More for one that was dropped before its answer had begun: the
/// engine may still have had to take it up.
const LOOKS: u32 = 2;
const LOOKS_UNANSWERED: u32 = 10;

/// How long an engine may take to count a run that it has been sent, in microseconds.
const TAKEN_UP_US: u64 = 1_000_000;

const IDLE: u8 = 0;
/// Sent; the engine may or may not count it.
const SENT: u8 = 1;
/// It has given text, so the engine counts it.
const SHOWN: u8 = 2;

/// The runs by slot.
pub(crate) struct InFlight {
    env: Env,
    /// What runs now, and since when in microseconds.
    now: Vec<AtomicU8>,
    since: Vec<AtomicU64>,
    /// How the slot's last run stood when it was dropped; [`IDLE`] when it ended by itself.
    dropped: Vec<AtomicU8>,
}

impl InFlight {
    pub(crate) fn new(context: &EngineContext) -> Self {
        let slots = context.pool.slots;
        let places = || (0..slots).map(|_| AtomicU8::new(IDLE)).collect();
        let since = (0..slots).map(|_| AtomicU64::new(0)).collect();
        InFlight { env: context.env.clone(), now: places(), since, dropped: places() }
    }

    /// A run begins in this slot.
    pub(crate) fn begin(&self, slot: u32) -> Run<'_> {
        let slot = slot as usize;
        self.dropped[slot].store(IDLE, SeqCst);
        self.since[slot].store(self.env.now().as_micros(), SeqCst);
        self.now[slot].store(SENT, SeqCst);
        Run { runs: self, slot, over: false }
    }

    /// Whether nothing runs, and every dropped run has been left.
    pub(crate) fn is_idle(&self) -> bool {
        self.now.iter().chain(&self.dropped).all(|run| run.load(SeqCst) == IDLE)
    }

    /// Runs that the engine is sure to count: those that have given text, and those that it must have taken up by
    /// now.
    pub(crate) fn counted(&self) -> u32 {
        let taken_up = self.env.now().as_micros().saturating_sub(TAKEN_UP_US);
        let is_counted = |(run, since): &(&AtomicU8, &AtomicU64)| match run.load(SeqCst) {
            SHOWN => true,
            SENT => since.load(SeqCst) <= taken_up,
            _ => false,
        };
        self.now.iter().zip(&self.since).filter(is_counted).count() as u32
    }

    /// Returns when the run that was dropped in `slot` computes nothing any more: when the engine, several times in a
    /// row, counts no more runs than those of ours that it is sure to count. `busy` asks it.
    pub(crate) async fn until_stopped<F: Future<Output = Busy>>(&self, slot: u32, busy: impl Fn() -> F) {
        let mut looks_left = match self.dropped[slot as usize].load(SeqCst) {
            IDLE => return,
            SENT => LOOKS_UNANSWERED,
            _ => LOOKS,
        };
        let all = looks_left;
        loop {
            let counted = self.counted(); // Before the look: what comes meanwhile would be counted on one side only.
            looks_left = match busy().await {
                Busy::Gone => 0,
                Busy::InFlight(runs) if runs <= counted => looks_left - 1,
                Busy::InFlight(_) | Busy::Unknown => all,
            };
            if looks_left == 0 {
                break;
            }
            sleep(LOOK_PERIOD).await;
        }
        self.dropped[slot as usize].store(IDLE, SeqCst);
    }
}

/// What an engine says of its runs.
pub(crate) enum Busy {
    /// It computes this many, waiting ones included.
    InFlight(u32),
    /// It does not say.
    Unknown,
    /// It is gone, and computes nothing anywhere.
    Gone,
}

/// One run, as long as it is polled.
pub(crate) struct Run<'a> {
    runs: &'a InFlight,
    slot: usize,
    over: bool,
}

impl Run<'_> {
    /// The engine has given text.
    pub(crate) fn show(&self) {
        self.runs.now[self.slot].store(SHOWN, SeqCst);
    }

    /// It came to this. Else, and where it was stopped or its connection broke, the engine may still be at work on it.
    pub(crate) fn conclude(mut self, result: &Result<Finish, EngineError>) {
        self.over = matches!(
            result,
            Ok(_) | Err(EngineError::Refused(_) | EngineError::Unreachable(_) | EngineError::Busy { .. })
        );
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let stood = self.runs.now[self.slot].swap(IDLE, SeqCst);
        if !self.over {
            self.runs.dropped[self.slot].store(stood, SeqCst);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::config::PoolConfig;
    use crate::core::id::{DeviceMask, PoolId, ReplicaId};
    use crate::gpu::engine::Teardown;

    /// What a worker of a pool with so many slots is told.
    pub(crate) fn context(slots: u32) -> EngineContext {
        let pool = PoolConfig { slots, ..PoolConfig::new("p", "e", "m") };
        EngineContext {
            replica: ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 },
            mask: DeviceMask::default(),
            pool: Arc::new(pool),
            env: Env::real(),
            site: Teardown::default(),
            cpus: Arc::default(),
            slots,
        }
    }

    /// Runs of such a pool.
    pub(crate) fn runs(slots: u32) -> InFlight {
        InFlight::new(&context(slots))
    }

    async fn looks(runs: &InFlight, slot: u32, counts: &[u32]) -> u32 {
        let looks = AtomicU32::new(0);
        runs.until_stopped(slot, || {
            let look = looks.fetch_add(1, SeqCst) as usize;
            std::future::ready(Busy::InFlight(counts.get(look).copied().unwrap_or(0)))
        })
        .await;
        looks.load(SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_run_is_left_when_the_engine_counts_no_more_than_the_others() {
        let runs = runs(3);
        let other = runs.begin(0);
        other.show();
        let run = runs.begin(1);
        run.show();
        drop(run);
        assert_eq!(looks(&runs, 1, &[2, 2, 1, 2, 1, 1]).await, 6, "twice in a row no more than the other");
        assert_eq!(looks(&runs, 1, &[9]).await, 0, "it has been left");
        runs.begin(2).conclude(&Err(EngineError::Refused("no".into())));
        assert_eq!(looks(&runs, 2, &[9]).await, 0, "it ended by itself");
        drop(runs.begin(2));
        assert_eq!(looks(&runs, 2, &[1]).await, LOOKS_UNANSWERED, "it may still be taken up");
        let _waiting = runs.begin(2);
        drop(other);
        assert_eq!(looks(&runs, 0, &[1; 9]).await, 11, "one that is new may be the one that is counted");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let third = runs.begin(1);
        third.show();
        drop(third);
        assert_eq!(looks(&runs, 1, &[1, 1]).await, 2, "by now it is counted");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_gone_has_left_everything() {
        let runs = runs(1);
        drop(runs.begin(0));
        runs.until_stopped(0, || std::future::ready(Busy::Gone)).await;
    }
}
