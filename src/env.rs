//! Where time and chance come from. One `Env` belongs to a runtime and is passed to all of it.
//!
//! In production the clock is tokio's and the seed is the operating system's. In a simulation tokio's clock is paused,
//! so the same `Env` gives virtual time, and the seed is the test's: the same seed gives the same run. An `Env` can
//! also record what happens, and make actors panic on purpose.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::core::id::TaskId;
use crate::core::task::trace::{TraceEvent, TraceKind};
use crate::core::units::Timestamp;

/// Time, chance, the trace and the planned faults of one runtime. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<Inner>);

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("is_simulated", &self.is_simulated()).finish_non_exhaustive()
    }
}

struct Inner {
    origin: Instant,
    /// Wall clock at `origin`, for ids and logs only: no decision reads it.
    unix_ms_at_origin: u64,
    /// A lock and not a thread-local: one stream of numbers in one order is what makes a seed repeatable.
    rng: Mutex<fastrand::Rng>,
    trace: Option<Mutex<Vec<TraceEvent>>>,
    faults: Option<Mutex<Faults>>,
}

/// Panics to come, for tests that kill actors on purpose.
#[derive(Default)]
struct Faults {
    /// Panics of any actor, in millionths of all fault points passed.
    panic_ppm: u32,
    /// Actors that panic at their next fault point.
    armed: Vec<&'static str>,
    /// How many panics were caused.
    fired: u64,
    /// Simulated engines behave from now on, whatever their configuration says.
    engines_behave: bool,
    /// Events that a run may record; `None` is any number.
    events_max: Option<usize>,
}

/// The wall clock of every simulation at its start: 2026-01-01T00:00:00Z.
const SIMULATION_UNIX_MS: u64 = 1_767_225_600_000;

impl Env {
    /// The environment of production: real time (or tokio's paused clock), a seed from the operating system.
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    pub fn real() -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_ms = since_epoch.map_or(0, |elapsed| elapsed.as_millis() as u64);
        Self::new(unix_ms, fastrand::Rng::new(), false)
    }

    /// The environment of a simulation: everything follows from `seed`, and what happens is recorded.
    ///
    /// Call it inside a tokio runtime whose clock is paused.
    pub fn simulated(seed: u64) -> Self {
        Self::new(SIMULATION_UNIX_MS, fastrand::Rng::with_seed(seed), true)
    }

    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    fn new(unix_ms_at_origin: u64, rng: fastrand::Rng, simulated: bool) -> Self {
        Env(Arc::new(Inner {
            origin: Instant::now(),
            unix_ms_at_origin,
            rng: Mutex::new(rng),
            trace: simulated.then(Mutex::default),
            faults: simulated.then(Mutex::default),
        }))
    }

    /// The moment now, on the runtime's monotonic clock.
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    pub fn now(&self) -> Timestamp {
        let elapsed = Instant::now().saturating_duration_since(self.0.origin);
        Timestamp::from_micros(elapsed.as_micros() as u64)
    }

    /// Waits until `moment`; at once when it has passed.
    ///
    /// # Cancel safety
    /// Dropping it is harmless.
    pub async fn sleep_until(&self, moment: Timestamp) {
        let elapsed = Duration::from_micros(moment.as_micros());
        match self.0.origin.checked_add(elapsed) {
            Some(instant) => tokio::time::sleep_until(instant).await,
            None => std::future::pending().await,
        }
    }

    /// Milliseconds since 1970, for ids and logs. It follows the monotonic clock and never jumps.
    pub fn unix_ms(&self) -> u64 {
        self.0.unix_ms_at_origin + self.now().as_micros() / 1000
    }

    /// The next random number.
    pub fn random(&self) -> u64 {
        self.0.rng.lock().u64(..)
    }

    /// Bytes that nobody can guess: the operating system's, or the seed's in a simulation.
    ///
    /// # Errors
    /// The operating system has none.
    #[cfg(feature = "cluster")]
    pub(crate) fn secret(&self) -> std::io::Result<[u8; 16]> {
        let mut secret = [0; 16];
        if self.0.trace.is_some() {
            self.0.rng.lock().fill(&mut secret);
        } else {
            getrandom::fill(&mut secret).map_err(std::io::Error::other)?;
        }
        Ok(secret)
    }

    /// A new task id: a version-7 UUID of this moment and this environment's chance.
    pub fn new_task_id(&self, now: Timestamp) -> TaskId {
        let mut random = [0; 10];
        self.0.rng.lock().fill(&mut random);
        TaskId::generate(self.0.unix_ms_at_origin + now.as_micros() / 1000, random)
    }

    /// Records an event, when this environment records. `kind` is only made if so.
    pub fn trace(&self, kind: impl FnOnce() -> TraceKind) {
        if let Some(trace) = &self.0.trace {
            let mut trace = trace.lock();
            trace.push(TraceEvent { at: self.now(), kind: kind() });
            let events = trace.len();
            drop(trace);
            self.check_events(events);
        }
    }

    /// A run that goes on and on at one moment never comes to an end by itself: virtual time stands still. So each
    /// event beyond this number is a panic, which takes one actor after the other with it. Only in simulation.
    #[doc(hidden)]
    pub fn set_events_max(&self, events: usize) {
        if let Some(faults) = &self.0.faults {
            faults.lock().events_max = Some(events);
        }
    }

    fn check_events(&self, events: usize) {
        let most = self.0.faults.as_ref().and_then(|faults| faults.lock().events_max);
        // What records while it unwinds must not panic again.
        assert!(
            std::thread::panicking() || most.is_none_or(|most| events <= most),
            "{events} events in one run: it goes round and round"
        );
    }

    /// What has been recorded so far; empty outside a simulation.
    pub fn recorded(&self) -> Vec<TraceEvent> {
        self.0.trace.as_ref().map_or_else(Vec::new, |trace| trace.lock().clone())
    }

    /// From now on any actor panics with this probability, in millionths, at each fault point. Only in simulation.
    #[doc(hidden)]
    pub fn set_panic_ppm(&self, ppm: u32) {
        if let Some(faults) = &self.0.faults {
            faults.lock().panic_ppm = ppm;
        }
    }

    /// From now on simulated engines behave, whatever their configuration says. Only in simulation.
    #[doc(hidden)]
    pub fn make_engines_behave(&self) {
        if let Some(faults) = &self.0.faults {
            faults.lock().engines_behave = true;
        }
    }

    /// Whether everything follows from a seed.
    pub(crate) fn is_simulated(&self) -> bool {
        self.0.faults.is_some()
    }

    /// Whether simulated engines behave.
    pub(crate) fn engines_behave(&self) -> bool {
        self.0.faults.as_ref().is_some_and(|faults| faults.lock().engines_behave)
    }

    /// Makes `actor` panic at its next fault point. Only in simulation.
    #[doc(hidden)]
    pub fn arm_panic(&self, actor: &'static str) {
        if let Some(faults) = &self.0.faults {
            faults.lock().armed.push(actor);
        }
    }

    /// How many panics this environment has caused.
    #[doc(hidden)]
    pub fn panics_fired(&self) -> u64 {
        self.0.faults.as_ref().map_or(0, |faults| faults.lock().fired)
    }

    /// A place where `actor` may be made to panic. Costs one comparison outside a simulation.
    pub(crate) fn fault_point(&self, actor: &'static str) {
        if let Some(faults) = &self.0.faults {
            self.maybe_panic(faults, actor);
        }
    }

    #[cold]
    fn maybe_panic(&self, faults: &Mutex<Faults>, actor: &'static str) {
        let mut faults = faults.lock();
        let armed = faults.armed.iter().position(|name| *name == actor);
        if let Some(position) = armed {
            faults.armed.swap_remove(position);
        }
        let by_chance = faults.panic_ppm > 0 && self.random() % 1_000_000 < u64::from(faults.panic_ppm);
        if armed.is_some() || by_chance {
            faults.fired += 1;
            drop(faults);
            std::panic::panic_any(InjectedPanic(actor));
        }
    }
}

/// A timer that fires so late tells that this process stood still: it was stopped, or its host was. Nobody could act in
/// that time, and what has come meanwhile waits to be read.
pub(crate) const STOOD_STILL: Duration = Duration::from_secs(1);

/// Waits for `future`, at most `limit`; time in which this process stood still does not count. `None` when it took
/// longer.
///
/// # Cancel safety
/// That of `future`.
#[expect(clippy::disallowed_methods, reason = "a bound on a wait, on tokio's clock")]
pub(crate) async fn timeout_awake<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    loop {
        let Some(end) = Instant::now().checked_add(limit) else { return Some(future.await) };
        tokio::select! {
            biased;
            output = future.as_mut() => return Some(output),
            () = tokio::time::sleep_until(end) => {}
        }
        if Instant::now().saturating_duration_since(end) < STOOD_STILL {
            return None;
        }
    }
}

/// The payload of a panic that a simulation caused: tests can tell it from one of ours. It names the actor, or is
/// [`ENGINE_PANIC`].
#[derive(Debug)]
pub struct InjectedPanic(pub &'static str);

/// The name in a panic that a simulated engine caused.
pub const ENGINE_PANIC: &str = "engine";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_seed_gives_one_sequence() {
        let (a, b) = (Env::simulated(7), Env::simulated(7));
        assert_eq!([a.random(), a.random()], [b.random(), b.random()]);
        assert_eq!(a.new_task_id(a.now()), b.new_task_id(b.now()));
        assert_ne!(a.random(), Env::simulated(8).random());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_which_the_process_stood_still_begins_anew() {
        let limit = Duration::from_secs(5);
        assert_eq!(timeout_awake(limit, std::future::pending::<()>()).await, None);
        let env = Env::simulated(0);
        // Time that passes in one step, before any timer could fire, is time in which nobody could act.
        let begun = env.now();
        let wait = timeout_awake(limit, std::future::pending::<()>());
        tokio::pin!(wait);
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(wait.await, None);
        assert_eq!(env.now().since(begun), Duration::from_secs(65));
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_tokios() {
        let env = Env::simulated(0);
        env.sleep_until(Timestamp::from_micros(3_600_000_000)).await;
        assert_eq!(env.now().as_micros(), 3_600_000_000);
        assert_eq!(env.unix_ms(), SIMULATION_UNIX_MS + 3_600_000);
    }
}
