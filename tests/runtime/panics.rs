//! Any actor may panic at any time: nothing that was accepted is lost, no engine but the panicked worker's restarts.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use orchestrator_core::core::trace::TraceKind;
use orchestrator_core::{Env, Event, Orchestrator};

use crate::support::{World, is_idle, millisecond, pool, read_whole, request, start, until_idle};

const ACTORS: [&str; 8] =
    ["root", "admission", "sessions", "pool_supervisor", "queue", "pool_manager", "worker", "latency"];
const PANICS: u32 = 100;

/// How often an actor has died, by its role.
fn deaths(env: &Env, role: &str) -> usize {
    let died = |kind: &TraceKind| matches!(kind, TraceKind::ActorDied { actor } if actor.starts_with(role));
    env.recorded().iter().filter(|event| died(&event.kind)).count()
}

#[tokio::test(start_paused = true)]
async fn what_a_supervisors_children_do_is_counted_together_and_one_too_many_takes_it_along() {
    for (deaths_of_all, gap_ms, escalates) in [(20, 100, false), (21, 100, true), (40, 501, false)] {
        let env = Env::simulated(7);
        let World { orchestrator, .. } = start(env.clone(), vec![pool("a", 1, 1, millisecond())]).await;
        orchestrator.until_ready().await;
        let bookkeepers = ["queue", "pool_manager", "latency"].into_iter().cycle();
        for (round, actor) in (1..).zip(bookkeepers).take(deaths_of_all) {
            env.arm_panic(actor);
            while env.panics_fired() < round {
                // Something for each of them to do.
                let submitted = orchestrator.submit(request(&format!("t{round}-{}", env.now().as_micros()), 1)).await;
                drop(submitted);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(gap_ms)).await;
        }
        assert_eq!(
            deaths(&env, "pool_supervisor"),
            usize::from(escalates),
            "{deaths_of_all} deaths, {gap_ms} ms apart"
        );
        orchestrator.until_ready().await;
        assert!(!orchestrator.has_ended());
    }
}

struct Load {
    tasks: Vec<tokio::task::JoinHandle<Option<Event>>>,
    next: u64,
}

impl Load {
    /// Submits one more task, in a conversation so that the sessions actor has work too. `None`: it was refused.
    fn add(&mut self, orchestrator: &Orchestrator) {
        let number = self.next;
        self.next += 1;
        let orchestrator = orchestrator.clone();
        self.tasks.push(tokio::spawn(async move {
            let mut request = request(&format!("t{number}"), 10 + (number % 40) as u32);
            request.session_id = Some(orchestrator_core::core::SessionId::parse(&format!("s{}", number % 7)).unwrap());
            let submitted = orchestrator.submit(request).await.ok()?;
            Some(read_whole(submitted.stream()).await.1)
        }));
    }
}

async fn strike(actor: &'static str) {
    let env = Env::simulated(7);
    let World { orchestrator, stats } = start(env.clone(), vec![pool("a", 2, 4, millisecond())]).await;
    orchestrator.until_ready().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut load = Load { tasks: Vec::new(), next: 0 };
    for round in 1..=u64::from(PANICS) {
        // Every slot is taken and some tasks wait when the panic strikes.
        for _ in 0..12 {
            load.add(&orchestrator);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        env.arm_panic(actor);
        while env.panics_fired() < round {
            load.add(&orchestrator);
            orchestrator.ping_supervisors();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..5 {
            load.add(&orchestrator);
        }
        // Longer than any restart period: each panic is judged by itself.
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
    let (mut ended, mut refused) = (0, 0);
    for task in load.tasks {
        match task.await.unwrap() {
            Some(Event::Error(error)) => panic!("{actor}: {error}"),
            Some(_) => ended += 1,
            None => refused += 1,
        }
    }
    until_idle(&orchestrator).await;
    assert!(is_idle(&orchestrator));
    let view = &orchestrator.pools()[0];
    assert_eq!(view.completed, ended, "{actor}");
    let loads: Vec<u32> = stats[0].iter().map(|replica| replica.preloads.load(Relaxed)).collect();
    let struck = if actor == "worker" { PANICS } else { 0 };
    assert_eq!(loads.iter().sum::<u32>(), 2 + struck, "{actor}: loads {loads:?}");
    assert!(stats[0].iter().all(|replica| replica.slot_conflicts.load(Relaxed) == 0));
    assert_eq!(refused, 0, "{actor}: what dies in a mailbox is sent again");
    println!("{actor}: {PANICS} panics, {ended} completed, {} resumed, 0 lost, loads {loads:?}", view.resumed);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_panics_of_each_actor_lose_nothing() {
    for actor in ACTORS {
        strike(actor).await;
    }
}
