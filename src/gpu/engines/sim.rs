//! The simulated engine: no model, no GPU, and yet all the manners of a real one.
//!
//! Its text follows from `{prompt, seed, sampler_profile_version, model_digest}` alone (ORCH-3045), its pace and its
//! misbehaviour from [`SimConfig`]. It is what `orchestratord` serves without a configuration, and what tests and
//! simulations run on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::config::{CTX_DEFAULT, SimConfig};
use crate::core::task::resume::DeterminismClass;
use crate::core::task::{FinishReason, Workload};
use crate::core::units::{Timestamp, Tokens};
use crate::env::{ENGINE_PANIC, Env, InjectedPanic};
use crate::gpu::engine::{
    Engine, EngineContext, EngineError, EngineInfo, Exit, Finish, Job, Repeats, Stopped, Telemetry, TokenOutput,
};
pub use crate::gpu::engines::sim_text::undisturbed;
use crate::gpu::engines::sim_text::{SimText, digest};

/// Longest time that a stopped run goes on, of those that do not for ever, in milliseconds.
const STICK_MS_MAX: u64 = 20_000;

/// What one simulated worker has done, over all its lives. For tests and benches.
#[derive(Debug, Default)]
pub struct SimStats {
    /// Loads that were begun.
    pub preloads: AtomicU32,
    /// Loads that succeeded.
    pub loaded: AtomicU32,
    /// Runs that were begun.
    pub runs: AtomicU64,
    /// Runs that were begun before the model was loaded. Must stay 0.
    pub runs_before_ready: AtomicU64,
    /// Runs that compute now.
    pub active: AtomicU32,
    /// Most runs that ever computed at once.
    pub active_max: AtomicU32,
    /// Runs that were given a slot that another run had. Must stay 0.
    pub slot_conflicts: AtomicU64,
    /// Refusals of a preload that are still to come.
    refusals_left: AtomicU32,
}

/// A simulated engine on one device mask.
pub struct SimEngine {
    config: SimConfig,
    env: Env,
    index: u16,
    model_digest: String,
    profile: String,
    kv_tokens_max: u64,
    ready: AtomicBool,
    dead: AtomicBool,
    died: Notify,
    kv_tokens: AtomicU64,
    slots: Vec<AtomicBool>,
    /// Slots whose stopped run goes on, and until when.
    stuck: Mutex<BTreeMap<u32, Timestamp>>,
    stats: Arc<SimStats>,
}

impl SimEngine {
    /// An engine for this worker, with statistics of its own.
    pub fn new(context: &EngineContext) -> Self {
        Self::with_stats(context, Arc::new(SimStats::default()))
    }

    /// An engine for this worker that counts into `stats`, which may have served an earlier life.
    pub fn with_stats(context: &EngineContext, stats: Arc<SimStats>) -> Self {
        let config = context.pool.sim.clone().unwrap_or_default();
        panic_if(strikes(&context.env, config.faults.panic_ppm));
        if stats.preloads.load(Relaxed) == 0 {
            stats.refusals_left.store(config.faults.refuse_preloads, Relaxed);
        }
        SimEngine {
            config,
            env: context.env.clone(),
            index: context.replica.index,
            model_digest: digest(&context.pool.model),
            profile: context.pool.sampler_profile_version.clone(),
            kv_tokens_max: u64::from(context.pool.ctx.unwrap_or(CTX_DEFAULT)) * u64::from(context.pool.slots),
            ready: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            kv_tokens: AtomicU64::new(0),
            slots: (0..context.pool.slots).map(|_| AtomicBool::new(false)).collect(),
            stuck: Mutex::default(),
            stats,
        }
    }

    /// Whether a fault of this rate strikes now. Draws a number only when it could.
    fn strikes(&self, ppm: u32) -> bool {
        strikes(&self.env, ppm)
    }

    /// Its code begins something: it may panic.
    fn step(&self) {
        panic_if(self.strikes(self.config.faults.panic_ppm));
    }

    /// A call of it begins: it may panic, or never come back.
    async fn call(&self) {
        self.step();
        if self.strikes(self.config.faults.hang_call_ppm) {
            std::future::pending::<()>().await;
        }
    }

    /// Whether this replica is one of those that turn tasks away.
    fn is_sick(&self) -> bool {
        self.config.faults.only_replica.is_none_or(|index| index == self.index)
    }

    fn turn_away(&self) -> Result<(), EngineError> {
        let faults = &self.config.faults;
        if !self.is_sick() || !self.ready.load(Relaxed) {
            return Ok(());
        }
        if self.strikes(faults.fail_fast_ppm) {
            return Err(EngineError::Failed("the simulated engine fails everything".into()));
        }
        if self.strikes(faults.busy_ppm) {
            let retry_after = (faults.busy_ms > 0).then(|| Duration::from_millis(faults.busy_ms));
            return Err(EngineError::Busy { said: "the simulated engine is busy".into(), retry_after });
        }
        Ok(())
    }

    fn die(&self) {
        self.dead.store(true, Relaxed);
        self.died.notify_waiters();
    }

    async fn until_dead(&self) {
        let died = self.died.notified();
        tokio::pin!(died);
        died.as_mut().enable();
        if !self.dead.load(Relaxed) {
            died.await;
        }
    }

    async fn write(&self, job: Job<'_>, out: &mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let faults = &self.config.faults;
        pause(self.config.first_token_us).await;
        if self.strikes(faults.hang_first_ppm) {
            std::future::pending::<()>().await;
        }
        if job.request.workload != Workload::Completion {
            return self.judge(job, out);
        }
        let text = SimText::new(&job.request.prompt, job.seed, &self.profile, &self.model_digest);
        let tokens_in = Some(Tokens(job.request.prompt.split_whitespace().count().max(1) as u32));
        for index in 0..job.request.max_tokens.0 {
            if index > 0 {
                pause(self.config.token_us).await;
            }
            if self.strikes(faults.die_ppm) {
                self.die();
            }
            if self.dead.load(Relaxed) {
                return Err(EngineError::Lost("the simulated engine died".into()));
            }
            if self.strikes(faults.garble_ppm) {
                return Err(EngineError::Garbled("a token is not UTF-8".into()));
            }
            self.step();
            if self.strikes(faults.fake_stop_ppm) {
                return Err(EngineError::Stopped(Stopped));
            }
            let word = text.word(index);
            out.push(word)?;
            self.kv_tokens.fetch_add(1, Relaxed);
            if job.request.parameters.stop.iter().any(|stop| word.contains(stop.as_str())) {
                return Ok(Finish { reason: FinishReason::Stop, tokens_in });
            }
            if self.strikes(faults.hang_ppm) {
                std::future::pending::<()>().await;
            }
            // An engine with no delay at all must still let others run.
            tokio::task::consume_budget().await;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in })
    }
}

impl SimEngine {
    /// A vector or a score for each input, which follow from its text alone.
    fn judge(&self, job: Job<'_>, out: &mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let value = |text: &SimText, index: u32| f64::from(text.mixed(index) as u32) / f64::from(u32::MAX);
        for (index, input) in job.request.inputs.iter().enumerate() {
            let text = SimText::new(input, 0, &job.request.prompt, &self.model_digest);
            let result = match job.request.workload {
                Workload::Rerank => format!("{{\"index\":{index},\"score\":{:.6}}}", value(&text, 0)),
                _ => format!("[{}]", (0..8).map(|at| format!("{:.6}", value(&text, at))).collect::<Vec<_>>().join(",")),
            };
            out.push(&result)?;
        }
        Ok(Finish { reason: FinishReason::Stop, tokens_in: None })
    }
}

fn strikes(env: &Env, ppm: u32) -> bool {
    ppm > 0 && !env.engines_behave() && env.random() % 1_000_000 < u64::from(ppm)
}

fn panic_if(strikes: bool) {
    if strikes {
        std::panic::panic_any(InjectedPanic(ENGINE_PANIC));
    }
}

impl Drop for SimEngine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.step();
        }
    }
}

async fn pause(micros: u64) {
    if micros > 0 {
        sleep(Duration::from_micros(micros)).await;
    }
}

/// A run's claim on its slot, given back when the run ends or is dropped.
struct Occupied<'a> {
    engine: &'a SimEngine,
    slot: u32,
    /// The run came to an end by itself.
    returned: bool,
}

impl<'a> Occupied<'a> {
    fn new(engine: &'a SimEngine, slot: u32) -> Self {
        let stats = &engine.stats;
        stats.runs.fetch_add(1, Relaxed);
        if !engine.ready.load(Relaxed) {
            stats.runs_before_ready.fetch_add(1, Relaxed);
        }
        if engine.slots[slot as usize].swap(true, Relaxed) {
            stats.slot_conflicts.fetch_add(1, Relaxed);
        }
        let active = stats.active.fetch_add(1, Relaxed) + 1;
        stats.active_max.fetch_max(active, Relaxed);
        Occupied { engine, slot, returned: false }
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        let sticks = !self.returned && self.engine.strikes(self.engine.config.faults.stick_ppm);
        if sticks {
            let (now, roll) = (self.engine.env.now(), self.engine.env.random());
            let ever = Duration::from_secs(1_000_000_000);
            let still = if roll % 2 == 0 { ever } else { Duration::from_millis(roll % STICK_MS_MAX) };
            self.engine.stuck.lock().insert(self.slot, now.after(still));
        } else {
            self.engine.slots[self.slot as usize].store(false, Relaxed);
        }
        if self.engine.stats.active.fetch_sub(1, Relaxed) == 1 {
            // Nobody computes, so nothing is cached that counts.
            self.engine.kv_tokens.store(0, Relaxed);
        }
    }
}

impl Engine for SimEngine {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        self.stats.preloads.fetch_add(1, Relaxed);
        self.call().await;
        pause(self.config.preload_us).await;
        let refusals = self.stats.refusals_left.load(Relaxed);
        if refusals > 0 {
            self.stats.refusals_left.store(refusals - 1, Relaxed);
            return Err(EngineError::Preload("the simulated engine was told to refuse".into()));
        }
        self.stats.loaded.fetch_add(1, Relaxed);
        self.ready.store(true, Relaxed);
        let info = EngineInfo::new(concat!("sim-", env!("CARGO_PKG_VERSION")), self.model_digest.clone());
        Ok(EngineInfo { repeats: Repeats::Always(DeterminismClass::BatchInvariant), ..info })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if self.dead.load(Relaxed) {
            return Err(EngineError::Unreachable("the simulated engine is dead".into()));
        }
        self.turn_away()?;
        self.step();
        let mut occupied = Occupied::new(self, job.slot);
        let result = tokio::select! {
            biased;
            result = self.write(job, out) => result,
            () = self.until_dead() => Err(EngineError::Lost("the simulated engine died".into())),
        };
        occupied.returned = true;
        result
    }

    async fn released(&self, slot: u32) {
        self.call().await;
        let until = self.stuck.lock().get(&slot).copied();
        if let Some(until) = until {
            self.env.sleep_until(until).await;
            self.stuck.lock().remove(&slot);
            self.slots[slot as usize].store(false, Relaxed);
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.call().await;
        if self.is_sick() && self.strikes(self.config.faults.stall_probe_ppm) {
            std::future::pending::<()>().await;
        }
        if self.dead.load(Relaxed) {
            return Err(EngineError::Unreachable("the simulated engine is dead".into()));
        }
        let used = self.kv_tokens.load(Relaxed).min(self.kv_tokens_max);
        let kv_usage = Some(used as f64 / self.kv_tokens_max.max(1) as f64);
        let busy = self.slots.iter().filter(|slot| slot.load(Relaxed)).count();
        Ok(Telemetry { kv_usage, slots_busy: Some(busy as u32), kv_tokens: None })
    }

    async fn failure(&self) -> EngineError {
        self.step();
        self.until_dead().await;
        EngineError::Exited { how: Exit::Unknown, said: "the simulated engine died".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolConfig;
    use crate::core::id::{DeviceMask, PoolId, ReplicaId, TaskId};
    use crate::core::task::TaskRequest;
    use crate::gpu::engine::{Stopped, Teardown};

    struct Text(String);
    impl TokenOutput for Text {
        fn push(&mut self, text: &str) -> Result<(), Stopped> {
            self.0.push_str(text);
            Ok(())
        }
    }

    async fn text(index: u16, request: &TaskRequest, seed: u64) -> String {
        text_with_profile("1", index, request, seed).await
    }

    async fn text_with_profile(profile: &str, index: u16, request: &TaskRequest, seed: u64) -> String {
        let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index };
        let pool = PoolConfig::new("p", "sim", "m");
        let pool = Arc::new(PoolConfig { sampler_profile_version: profile.into(), ..pool });
        let engine = SimEngine::new(&EngineContext {
            replica,
            mask: DeviceMask::default(),
            pool,
            env: Env::real(),
            site: Teardown::default(),
            cpus: Arc::default(),
            slots: 1,
        });
        engine.preload().await.expect("loads");
        let mut out = Text(String::new());
        let task_id = TaskId::parse("t").expect("valid");
        let job = Job { task_id: &task_id, request, seed, slot: 0, is_self_test: false };
        Engine::generate(&engine, job, &mut out).await.expect("runs");
        out.0
    }

    #[tokio::test(start_paused = true)]
    async fn the_text_follows_from_its_identity_alone() {
        let request = TaskRequest::completion("the sky is").max_tokens(12);
        let first = text(0, &request, 7).await;
        assert_eq!(text(1, &request, 7).await, first, "another replica");
        assert_ne!(text(0, &request, 8).await, first, "another seed");
        let other = TaskRequest { prompt: "the sea is".into(), ..request.clone() };
        assert_ne!(text(0, &other, 7).await, first, "another prompt");
        assert_ne!(text_with_profile("2", 0, &request, 7).await, first, "another sampler profile");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_text_ends_it() {
        let mut request = TaskRequest::completion("count").max_tokens(400);
        request.parameters.stop = vec![".".into()];
        assert!(text(0, &request, 1).await.ends_with('.'));
    }
}
