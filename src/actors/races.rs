//! Every interleaving of an attempt, a cancel, a failover to a second attempt, and a drain. Each of their steps takes
//! one lock, so the orders of the steps are all that can happen, on any number of threads.

#![expect(clippy::print_stdout, reason = "a test that says how much it looked at")]

use std::sync::Arc;
use std::time::Duration;

use crate::actors::kit::gate::IntakeGate;
use crate::actors::pool::lease::SlotLease;
use crate::actors::pool::shared::PoolShared;
use crate::actors::task::event_log::{EventRef, ReplicaIdentity};
use crate::actors::task::record::TaskRecord;
use crate::core::id::{Epoch, PoolId, ReplicaId, TaskId, TaskSeq};
use crate::core::pool::lifecycle::{Intent, ReplicaState};
use crate::core::task::error::ErrorCode;
use crate::core::task::{FinishReason, TaskRequest, Terminal};
use crate::core::text::line::Name;
use crate::core::units::Timestamp;
use crate::gpu::dyn_engine::{DynEngine, EngineFactory};
use crate::gpu::engine::EngineContext;

/// Who takes the next step. The first attempt may be as late as it likes: nobody has told it that it was given up.
const STEPS: [(&str, usize); 4] = [("attempt", 4), ("cancel", 1), ("failover", 8), ("drain", 1)];

const TEXT: [&str; 3] = ["a", "b", "c"];

struct World {
    gate: Arc<IntakeGate>,
    pool: Arc<PoolShared>,
    record: TaskRecord,
    identity: Arc<ReplicaIdentity>,
    first: Epoch,
    second: Option<Epoch>,
    leases: [Option<SlotLease>; 2],
    /// Calls of `seal` that said that they did it.
    sealed_by: Vec<&'static str>,
}

impl World {
    /// A task that its first attempt has begun.
    fn new(pool: &Arc<PoolShared>, identity: &Arc<ReplicaIdentity>) -> Self {
        let gate = IntakeGate::new(1, 0);
        let permit = gate.try_enter().expect("a place");
        let request = Arc::new(TaskRequest::completion("x").max_tokens(3));
        let id = TaskId::parse("t").expect("valid");
        let record = TaskRecord::new(id, TaskSeq(0), request, 7, now(), permit);
        record.admit(0, Duration::ZERO).expect("submitted");
        let first = record.assign(pool).expect("queued");
        let lease = SlotLease::take(pool, 0, 0);
        record.begin(first, now(), identity).expect("assigned");
        let (pool, identity) = (pool.clone(), identity.clone());
        World { gate, pool, record, identity, first, second: None, leases: [lease, None], sealed_by: Vec::new() }
    }

    fn step(&mut self, who: usize, number: usize) {
        let end = Terminal::End { reason: FinishReason::Stop, tokens_in: None };
        match (STEPS[who].0, number) {
            ("attempt", 0 | 1) => drop(self.record.append(self.first, now(), TEXT[number])),
            ("attempt", 2) => self.seal("attempt", Some(self.first), end),
            ("attempt", _) => self.leases[0] = None,
            ("cancel", _) => self.seal("cancel", None, Terminal::CANCELED),
            ("drain", _) => self.seal("drain", None, Terminal::error(ErrorCode::PoolUnavailable, "drained")),
            ("failover", 0) => drop(self.record.give_back(self.first)),
            ("failover", 1) => {
                self.second = self.record.assign(&self.pool).ok();
                self.leases[1] = self.second.and_then(|_| SlotLease::take(&self.pool, 0, 0));
            }
            ("failover", 2) => {
                // Cancelled on its way: it is not begun, and its slot is free again.
                let begun = self.second.is_some_and(|epoch| self.record.begin(epoch, now(), &self.identity).is_ok());
                if !begun {
                    (self.second, self.leases[1]) = (None, None);
                }
            }
            ("failover", 3..=5) => {
                if let Some(epoch) = self.second {
                    let _ = self.record.append(epoch, now(), TEXT[number - 3]);
                }
            }
            ("failover", 6) => {
                if let Some(epoch) = self.second {
                    self.seal("failover", Some(epoch), end);
                }
            }
            ("failover", _) => self.leases[1] = None,
            (who, number) => panic!("{who} has no step {number}"),
        }
    }

    fn seal(&mut self, who: &'static str, by: Option<Epoch>, terminal: Terminal) {
        if self.record.seal(by, now(), terminal).is_ok() {
            self.sealed_by.push(who);
        }
    }

    /// The tokens, and how many terminal events there are and events behind the first of them.
    fn log(&self) -> (String, usize, usize) {
        let (mut text, mut terminals, mut behind) = (String::new(), 0, 0);
        self.record.visit(0, usize::MAX, |_, event| {
            behind += usize::from(terminals > 0);
            match event {
                EventRef::Token { text: token, .. } => text.push_str(token),
                EventRef::End(_) | EventRef::Error(_) => terminals += 1,
                EventRef::Started(_) => {}
            }
        });
        (text, terminals, behind)
    }
}

fn now() -> Timestamp {
    Timestamp::from_micros(1)
}

/// Calls `run` with every order of the steps; returns how many there are.
fn every_order(taken: &mut Vec<usize>, left: &mut [usize; 4], run: &mut impl FnMut(&[usize])) -> u64 {
    if left.iter().all(|left| *left == 0) {
        run(taken);
        return 1;
    }
    let mut orders = 0;
    for who in 0..left.len() {
        if left[who] == 0 {
            continue;
        }
        left[who] -= 1;
        taken.push(who);
        orders += every_order(taken, left, run);
        taken.pop();
        left[who] += 1;
    }
    orders
}

#[test]
fn no_order_of_cancel_end_failover_and_drain_breaks_a_promise() {
    let config = crate::config::PoolConfig { slots: 2, ..crate::config::PoolConfig::new("p", "sim", "m") };
    let factory: EngineFactory = Arc::new(|context| Arc::new(crate::gpu::SimEngine::new(context)));
    let pool = PoolShared::alone(config, crate::env::Env::simulated(0), factory);
    let replica = ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 };
    let (engine, engine_version, model_digest) = (String::new(), Name::default(), Name::default());
    let (process_id, spec, ctx, generation) = (None, pool.revision().spec.clone(), None, 0);
    let identity =
        Arc::new(ReplicaIdentity { replica, engine, engine_version, model_digest, process_id, spec, ctx, generation });
    let (mut ended_by, mut resumed) = (std::collections::BTreeMap::<&str, u64>::new(), 0_u64);
    let mut run = |order: &[usize]| {
        let mut world = World::new(&pool, &identity);
        let (mut next, mut before) = ([0; 4], world.log());
        for who in order {
            world.step(*who, next[*who]);
            next[*who] += 1;
            let after = world.log();
            assert!(after.0.starts_with(&before.0), "{order:?}: {before:?}, then {after:?}");
            assert!(before.1 == 0 || after == before, "{order:?}: nothing follows the end: {after:?}");
            assert!(after.1 <= 1 && after.2 == 0, "{order:?}: one end: {after:?}");
            assert_eq!(world.sealed_by.len(), after.1, "{order:?}: who ended it knows that it did");
            assert_eq!(world.gate.used(), 1 - after.1, "{order:?}: the end gives the place back");
            let leased = world.leases.iter().flatten().count() as u32;
            assert_eq!(pool.slots_used(), leased, "{order:?}: a slot is taken while somebody has it");
            before = after;
        }
        assert_eq!((before.1, pool.slots_used()), (1, 0), "{order:?}: it has ended, and nothing is left");
        assert!("abc".starts_with(&before.0), "{order:?}: {:?}", before.0);
        *ended_by.entry(world.sealed_by[0]).or_default() += 1;
        resumed += u64::from(world.second.is_some() && world.sealed_by[0] == "failover" && before.0 == "abc");
    };
    let orders = every_order(&mut Vec::new(), &mut STEPS.map(|(_, steps)| steps), &mut run);
    println!("{orders} orders, ended by {ended_by:?}, {resumed} of them resumed to the end");
    assert!(orders == 90_090 && ended_by.len() == 4 && resumed > 100, "{orders} {ended_by:?} {resumed}");
}

#[test]
fn a_late_word_of_an_engine_that_is_gone_takes_its_successor_out_of_no_service() {
    let config = crate::config::PoolConfig::new("p", "sim", "m");
    let factory: EngineFactory = Arc::new(|context| Arc::new(crate::gpu::SimEngine::new(context)));
    let pool = PoolShared::alone(config, crate::env::Env::simulated(0), factory);
    let place = &pool.replicas[0];
    let make = || -> Arc<dyn DynEngine> {
        let (replica, mask, pool_config) = (place.id.clone(), place.placement.mask.clone(), pool.config.clone());
        let (env, site, cpus) = (pool.env.clone(), place.loaded.site.clone(), place.placement.cpus.clone());
        (pool.factory)(&EngineContext { replica, mask, pool: pool_config, env, site, cpus, slots: 1 })
    };
    let (first, second) = (make(), make());
    let take_up = |engine: &Arc<dyn DynEngine>| {
        *place.loaded.engine.lock() = Some(engine.clone());
        *place.life.state.lock() = ReplicaState::Ready;
    };
    take_up(&first);
    assert!(place.suspect(&first) && place.state() == ReplicaState::Suspect);
    take_up(&second);
    assert!(!place.suspect(&first) && place.state() == ReplicaState::Ready, "nobody would look at it for that");
    assert!(place.suspect(&second) && place.state() == ReplicaState::Suspect);
    place.discard_engine();
    assert!(!place.suspect(&second));
}

/// Whoever drains, stops or lets a pool leave, and in whatever order they come: what has stopped stays so.
#[tokio::test(start_paused = true)]
async fn no_order_of_drains_and_stops_takes_a_pool_back() {
    let factory: EngineFactory = Arc::new(|context| Arc::new(crate::gpu::SimEngine::new(context)));
    for order in 0..4_usize.pow(4) {
        let config = crate::config::PoolConfig::new("p", "sim", "m");
        let pool = PoolShared::alone(config, crate::env::Env::simulated(0), factory.clone());
        let mut furthest = Intent::Serve;
        for step in (0..4).map(|at| order / 4_usize.pow(at) % 4) {
            let wanted = match step {
                0 => Intent::Drain,
                1 => Intent::Stop,
                2 => {
                    pool.leave(None, 1); // It drains.
                    Intent::Drain
                }
                _ => Intent::Serve,
            };
            pool.advance_intent(wanted);
            furthest = if wanted as u8 > furthest as u8 { wanted } else { furthest };
            assert_eq!(pool.intent(), furthest, "order {order}");
        }
    }
}
