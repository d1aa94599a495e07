//! Long runs beside the work, that show of what determinism class an engine is: as long and as crowded as real ones.
//!
//! A few tokens refute a class and show none: servers that repeat sixteen tokens differ behind a hundred. So an idle replica decodes texts
//! of hundreds of tokens twice alone, and once with all its slots in use, and what differed decides. A task that comes goes first: what
//! runs is dropped, and begun again when the replica is idle. All of it is bounded; what it does not come to is not claimed.
//!
//! Spec: ORCH-3045, ORCH-3049.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::actors::lease::SlotLease;
use crate::actors::self_test::{Heard, Subject, generate};
use crate::actors::shared::PoolShared;
use crate::core::lifecycle::Intent;
use crate::core::resume::DeterminismClass;
use crate::core::task::Workload;
use crate::gpu::engine::{AnyEngine, EngineError, Repeats};

/// Tokens of each text.
const TOKENS: u32 = 400;
/// Texts that are compared; in a crowd each slot has one, several the same.
const TEXTS: usize = 8;
/// How long a replica must have been idle before its slots are used.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two looks whether it is idle, or a task has come.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
/// Longest run of all texts of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Steps that may be dropped for tasks before nothing more is tried.
const DROPPED_MAX: u32 = 50;
/// Most slots of a crowd: of an engine with more nothing is claimed beside others.
const CROWD_MAX: u32 = 64;

/// A long study of one engine.
pub(super) struct Study<'a> {
    pub(super) pool: &'a Arc<PoolShared>,
    pub(super) index: u16,
    pub(super) engine: &'a dyn AnyEngine,
    pub(super) repeats: Repeats,
}

impl Study<'_> {
    /// Finds the class, and notes it with the self-test. Ends without one where none can be shown, the replica is never idle for long
    /// enough, or the engine fails.
    ///
    /// # Cancel safety
    /// Dropped, it leaves slots that are confirmed by the worker's next life, as its attempts do.
    pub(super) async fn run(&self) {
        let Repeats::UpTo(most) = self.repeats else { return };
        let config = &self.pool.config;
        let completes = config.workloads.first().copied().unwrap_or_default() == Workload::Completion;
        // Where nobody may wait, a task that finds its slot in use is refused.
        let may_wait = config.queue.capacity > 0;
        let is_open = config.determinism_class.is_none() && self.shown(|shown| shown.repeats_alone);
        if !(completes && may_wait && is_open) {
            return;
        }
        let slots = self.pool.replicas[self.index as usize].slots.limit();
        let one = vec![0_u32];
        let Some(first) = self.texts(&one).await else { return };
        let Some(second) = self.texts(&one).await else { return };
        if first != second {
            return self.note(DeterminismClass::None, false);
        }
        self.note(DeterminismClass::SingleSlot.min(most), true);
        if !(2..=CROWD_MAX).contains(&slots) || most < DeterminismClass::BatchInvariant {
            return;
        }
        let crowd: Vec<u32> = (0..slots).collect();
        let Some(third) = self.texts(&crowd).await else { return };
        let has_repeated = third.iter().enumerate().all(|(at, text)| *text == first[at % TEXTS]);
        self.note(if has_repeated { most } else { DeterminismClass::SingleSlot }, has_repeated);
    }

    fn shown<T: Default>(&self, read: impl Fn(&crate::actors::self_test::SelfTest) -> T) -> T {
        self.pool.replicas[self.index as usize].self_test.lock().as_ref().map_or_else(T::default, read)
    }

    fn note(&self, class: DeterminismClass, has_repeated: bool) {
        let place = &self.pool.replicas[self.index as usize];
        if let Some(shown) = &mut *place.self_test.lock() {
            if !shown.has_diverged {
                shown.determinism_class = class;
            }
            shown.tokens_compared += TEXTS as u64 * u64::from(TOKENS);
        }
        tracing::info!(replica_id = %place.id, ?class, has_repeated, "long runs have shown a determinism class");
    }

    /// All texts, as many at once as there are slots; `None` when it comes to nothing.
    async fn texts(&self, slots: &[u32]) -> Option<Vec<String>> {
        for _ in 0..DROPPED_MAX {
            let leases = self.until_idle(slots.len()).await?;
            let numbers: Vec<u32> = leases.iter().map(|lease| lease.slot).collect();
            let begun = self.pool.env.now();
            let work = timeout(STEP_TIMEOUT, self.decode_all(&numbers));
            let texts = tokio::select! {
                biased;
                texts = work => Some(texts),
                () = self.until_wanted() => None,
            };
            let Some(texts) = texts else {
                // Each slot is held until the engine has left it, as behind any run that is stopped.
                let limit = Duration::from_millis(self.pool.config.timeouts.stop_ms);
                let released = join_all(numbers.iter().map(|slot| self.engine.released(*slot)));
                timeout(limit, released).await.ok()?;
                drop(leases);
                continue;
            };
            self.pool.replicas[self.index as usize].outlier.note_alive(begun);
            return texts.ok()?.ok();
        }
        None
    }

    /// Waits until the replica has been idle for a while, and takes so many of its slots, or as many as may be used.
    async fn until_idle(&self, slots: usize) -> Option<Vec<SlotLease>> {
        let place = &self.pool.replicas[self.index as usize];
        let mut idle_since = None;
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            if self.pool.intent() != Intent::Serve {
                return None;
            }
            let now = self.pool.env.now();
            let is_idle = place.state().is_ready() && place.slots.used() == 0 && !self.is_wanted();
            idle_since = is_idle.then(|| idle_since.unwrap_or(now));
            if idle_since.is_none_or(|since| now.since(since) < IDLE) {
                continue;
            }
            let leases: Vec<SlotLease> = (0..slots).map_while(|_| SlotLease::take(self.pool, self.index, 0)).collect();
            if leases.len() == slots {
                return Some(leases);
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.pool.depth_total() > 0 || self.pool.is_wanted_by_siblings()
    }

    async fn until_wanted(&self) {
        while !self.is_wanted() && self.pool.intent() == Intent::Serve {
            tokio::time::sleep(LOOK_PERIOD / 10).await;
        }
    }

    /// Decodes every text, and in each slot at least one, one after another in each; they come back in order.
    async fn decode_all(&self, slots: &[u32]) -> Result<Vec<String>, EngineError> {
        let lanes = slots.iter().enumerate().map(async |(lane, slot)| {
            let mut said = Vec::new();
            for text in (0..TEXTS.max(slots.len())).filter(|text| text % slots.len() == lane) {
                said.push((text, self.decode(text % TEXTS, *slot).await?));
            }
            Ok::<_, EngineError>(said)
        });
        let mut all: Vec<(usize, String)> = Vec::new();
        for lane in join_all(lanes).await {
            all.extend(lane?);
        }
        all.sort_by_key(|(text, _)| *text);
        Ok(all.into_iter().map(|(_, said)| said).collect())
    }

    async fn decode(&self, text: usize, slot: u32) -> Result<String, EngineError> {
        let mut heard = Heard::up_to(TOKENS);
        // Texts that begin alike meet in prompt caches, and differ in length.
        let prompt = format!("{}number {text}", "the sun is red and the sea is wide ".repeat(1 + text % 3));
        let subject = Subject { engine: self.engine, workload: Workload::Completion };
        generate(subject, (&prompt, slot), TOKENS, &mut heard).await?;
        Ok(heard.text)
    }
}
