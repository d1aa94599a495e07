//! On several threads, where the simulation cannot look: panics of every actor while tasks come, end and are cancelled.

use std::time::Duration;

use orchestrator_core::{Env, Event};

use crate::support::{World, eventually, faulty, is_idle, pool, read_whole, request, start, task_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_on_several_threads() {
    let (mut ended, mut refused, mut panics) = (0, 0, 0);
    for seed in 0..12 {
        let env = Env::simulated(seed);
        let World { orchestrator, stats } = start(env.clone(), vec![pool("a", 3, 4, faulty(Default::default()))]).await;
        orchestrator.until_ready().await;
        env.set_panic_ppm(2_000);
        env.arm_panic(["pool_supervisor", "root", "queue", "pool_manager", "worker", "admission"][seed as usize % 6]);
        let tasks: Vec<_> = (0..400)
            .map(|number| {
                let orchestrator = orchestrator.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(number * 500)).await;
                    if number % 40 == 0 {
                        orchestrator.ping_supervisors();
                    }
                    let id = format!("t{number}");
                    let submitted = orchestrator.submit(request(&id, 1 + (number % 9) as u32)).await.ok()?;
                    if number % 5 == 0 {
                        orchestrator.cancel(&task_id(&id));
                    }
                    let whole = tokio::time::timeout(Duration::from_secs(60), read_whole(submitted.stream())).await;
                    Some(whole.unwrap_or_else(|_| panic!("seed {seed}: {id} has no end: {:?}", orchestrator.pools())).1)
                })
            })
            .collect();
        for task in tasks {
            match task.await.unwrap() {
                Some(Event::End(_) | Event::Error(_)) => ended += 1,
                Some(other) => panic!("{other:?}"),
                None => refused += 1,
            }
        }
        env.set_panic_ppm(0);
        let watched = orchestrator.clone();
        eventually("no slot, place or permit is left behind", || is_idle(&watched)).await;
        let conflicts = |replica: &std::sync::Arc<orchestrator_core::gpu::sim::SimStats>| {
            replica.slot_conflicts.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert!(stats.iter().flatten().all(|replica| conflicts(replica) == 0), "seed {seed}");
        panics += env.panics_fired();
    }
    println!("{ended} tasks ended, {refused} refused, {panics} panics");
    assert!(panics > 50 && ended > 3_000, "{panics} panics, {ended} ended");
}
