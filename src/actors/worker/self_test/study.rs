//! Long runs beside the work, that show of what determinism class an engine is: as long and as crowded as real ones.
//!
//! A few tokens refute a class and show none: servers that repeat sixteen tokens differ behind a hundred. So an idle
//! replica decodes texts of hundreds of tokens twice alone, and once with all its slots in use, and what differed
//! decides. A task that comes goes first: what runs is dropped, and begun again when the replica is idle. All of it is
//! bounded; what it does not come to is not claimed, and an engine whose texts end early has shown nothing.
//!
//! Spec: ORCH-3045, ORCH-3049.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::actors::pool::lease::SlotLease;
use crate::actors::pool::shared::PoolShared;
use crate::actors::worker::self_test::{Heard, Subject, generate};
use crate::core::pool::lifecycle::Intent;
use crate::core::task::Workload;
use crate::core::task::resume::DeterminismClass;
use crate::gpu::dyn_engine::DynEngine;
use crate::gpu::engine::{EngineError, Repeats};

/// A text, and the pieces that it came in: at most as many as its tokens.
type Decoded = (String, u32);

/// Tokens of each text.
const TOKENS: u32 = 400;
/// A text of fewer tokens shows nothing; more than half of them must be longer.
const TOKENS_LEAST: u32 = 300;
/// Texts that are compared; in a batch each slot has one, several the same.
const TEXTS: usize = 8;
/// How long a replica must have been idle before its slots are used.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two looks whether it is idle, or a task has come.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
/// Longest run of all texts of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Steps that may be dropped for tasks before nothing more is tried.
const DROPPED_MAX: u32 = 50;
/// Most slots of a batch: of an engine with more nothing is claimed beside others.
const CROWD_MAX: u32 = 64;

/// A long study of one engine.
pub(in crate::actors) struct Study<'a> {
    pub(in crate::actors) pool: &'a Arc<PoolShared>,
    pub(in crate::actors) index: u16,
    pub(in crate::actors) engine: &'a dyn DynEngine,
    pub(in crate::actors) repeats: Repeats,
}

impl Study<'_> {
    /// Finds the class, and notes it with the self-test. Ends without one where none can be shown, the replica is never
    /// idle for long enough, or the engine fails.
    ///
    /// # Errors
    /// The engine panicked.
    ///
    /// # Cancel safety
    /// Dropped, it leaves slots that are confirmed by the worker's next life, as its attempts do.
    pub(in crate::actors) async fn run(&self) -> Result<(), EngineError> {
        let Repeats::UpTo(most) = self.repeats else { return Ok(()) };
        let config = &self.pool.config;
        let completes = config.workloads.first().copied().unwrap_or_default() == Workload::Completion;
        // Where nobody may wait, a task that finds its slot in use is refused.
        let may_wait = config.queue.capacity > 0;
        let is_open = config.determinism_class.is_none() && self.shown(|shown| shown.repeats_alone);
        if !(completes && may_wait && is_open) {
            return Ok(());
        }
        let slots = self.pool.replicas[self.index as usize].capacity.slots.limit();
        let one = vec![0_u32];
        let Some(first) = self.texts(&one).await? else { return Ok(()) };
        let Some(second) = self.texts(&one).await? else { return Ok(()) };
        if !is_alike(&first, &second) {
            self.note(&second, DeterminismClass::None, false);
            return Ok(());
        }
        if first.iter().filter(|(_, tokens)| *tokens >= TOKENS_LEAST).count() * 2 <= TEXTS {
            self.note(&second, DeterminismClass::None, true); // They end too early to show anything.
            return Ok(());
        }
        self.note(&second, DeterminismClass::SingleSlot.min(most), true);
        if !(2..=CROWD_MAX).contains(&slots) || most < DeterminismClass::BatchInvariant {
            return Ok(());
        }
        let batch: Vec<u32> = (0..slots).collect();
        let Some(third) = self.texts(&batch).await? else { return Ok(()) };
        let has_repeated = is_alike(&third, &first);
        self.note(&third, if has_repeated { most } else { DeterminismClass::SingleSlot }, has_repeated);
        Ok(())
    }

    fn shown<T: Default>(&self, read: impl Fn(&crate::core::pool::self_test::SelfTest) -> T) -> T {
        self.pool.replicas[self.index as usize].loaded.self_test.lock().as_ref().map_or_else(T::default, read)
    }

    fn note(&self, texts: &[Decoded], class: DeterminismClass, has_repeated: bool) {
        let place = &self.pool.replicas[self.index as usize];
        if let Some(shown) = &mut *place.loaded.self_test.lock() {
            if !shown.has_diverged {
                shown.determinism_class = class;
            }
            shown.tokens_compared += texts.iter().map(|(_, tokens)| u64::from(*tokens)).sum::<u64>();
        }
        tracing::info!(replica_id = %place.id, ?class, has_repeated, "long runs have shown a determinism class");
    }

    /// All texts, as many at once as there are slots; `None` when it comes to nothing.
    ///
    /// # Errors
    /// The engine panicked.
    async fn texts(&self, slots: &[u32]) -> Result<Option<Vec<Decoded>>, EngineError> {
        for _ in 0..DROPPED_MAX {
            let Some(leases) = self.until_idle(slots.len()).await else { return Ok(None) };
            let numbers: Vec<u32> = leases.iter().map(|lease| lease.slot).collect();
            let work = timeout(STEP_TIMEOUT, self.decode_all(&numbers));
            let texts = tokio::select! {
                biased;
                texts = work => Some(texts.ok()),
                () = self.until_wanted(slots.len()) => None,
            };
            match texts {
                Some(Some(Ok(texts))) => return Ok(Some(texts)),
                Some(Some(Err(panicked @ EngineError::Panicked { .. }))) => return Err(panicked),
                _ => {}
            }
            // Each slot is held until the engine has left it, as behind any run that is stopped.
            let limit = Duration::from_millis(self.pool.config.timeouts.stop_ms);
            let released = join_all(numbers.iter().map(|slot| self.engine.released(*slot)));
            let released = timeout(limit, released).await;
            drop(leases);
            let Ok(released) = released else { return Ok(None) };
            released.into_iter().collect::<Result<(), EngineError>>()?;
            if texts.is_some() {
                return Ok(None); // It has failed; what comes next finds out why.
            }
        }
        Ok(None)
    }

    /// Waits until the replica has been idle for a while, and takes so many of its slots, or as many as may be used.
    async fn until_idle(&self, slots: usize) -> Option<Vec<SlotLease>> {
        let place = &self.pool.replicas[self.index as usize];
        let mut idle_since = None;
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            // With fewer slots than are asked for, by its memory, there is no batch to be shown.
            if self.pool.intent() != Intent::Serve || (place.capacity.slots.limit() as usize) < slots {
                return None;
            }
            let now = self.pool.env.now();
            let is_idle = place.state().is_ready() && place.capacity.slots.used() == 0 && !self.is_wanted();
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
        self.pool.depth_total() > 0 || self.pool.is_wanted_by_peers()
    }

    /// Returns when the replica has something better to do than this, in so many of its slots.
    async fn until_wanted(&self, slots: usize) {
        let place = &self.pool.replicas[self.index as usize];
        let is_alone = || place.state().is_ready() && place.capacity.slots.used() as usize <= slots;
        while is_alone() && !self.is_wanted() && self.pool.intent() == Intent::Serve {
            tokio::time::sleep(LOOK_PERIOD / 10).await;
        }
    }

    /// Decodes every text, and in each slot at least one, one after another in each; they come back in order.
    async fn decode_all(&self, slots: &[u32]) -> Result<Vec<Decoded>, EngineError> {
        let lanes = slots.iter().enumerate().map(async |(lane, slot)| {
            let mut said = Vec::new();
            for text in (0..TEXTS.max(slots.len())).filter(|text| text % slots.len() == lane) {
                said.push((text, self.decode(text % TEXTS, *slot).await?));
            }
            Ok::<_, EngineError>(said)
        });
        let mut all: Vec<(usize, Decoded)> = Vec::new();
        for lane in join_all(lanes).await {
            all.extend(lane?);
        }
        all.sort_by_key(|(text, _)| *text);
        Ok(all.into_iter().map(|(_, said)| said).collect())
    }

    async fn decode(&self, text: usize, slot: u32) -> Result<Decoded, EngineError> {
        let mut heard = Heard::up_to(TOKENS);
        // Texts that begin alike meet in prompt caches, and differ in length.
        let prompt = format!("{}number {text}", "the sun is red and the sea is wide ".repeat(1 + text % 3));
        let subject = Subject { engine: self.engine, workload: Workload::Completion };
        generate(subject, (&prompt, slot), TOKENS, &mut heard).await?;
        let tokens = heard.tokens(TOKENS);
        Ok((heard.text, tokens))
    }
}

/// Whether each text is the one of its number, of as many as there are.
fn is_alike(these: &[Decoded], those: &[Decoded]) -> bool {
    these.iter().enumerate().all(|(at, (text, _))| *text == those[at % TEXTS].0)
}
