//! The whole tree on one thread in virtual time: random worlds with panics, engines that die, hang and garble, cancels,
//! drains. Every seed runs twice and must give the same trace; every step keeps the rules; every accepted task ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "simulation/check.rs"]
mod check;
#[path = "simulation/driver.rs"]
mod driver;
#[path = "simulation/outliers.rs"]
mod outliers;
mod support;
#[path = "simulation/tally.rs"]
mod tally;
#[path = "simulation/world.rs"]
mod world;

use tally::Tally;
use world::{run, watch_panics};

const SEEDS: u64 = 2_000;

#[test]
fn every_seed_gives_one_trace_and_every_accepted_task_ends() {
    watch_panics();
    let number =
        |name| std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let only: Option<u64> = number("SEED");
    let seeds = only.map_or(0..number("SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut all, mut broken) = (Tally::default(), Vec::new());
    for seed in seeds {
        match (run(seed), run(seed)) {
            (Ok(first), Ok(second)) => {
                let at = first.trace.iter().zip(&second.trace).position(|(one, other)| one != other);
                let equal = at.is_none() && first.trace.len() == second.trace.len();
                assert!(equal, "seed {seed} gives two traces, from event {at:?} on");
                all += first.tally;
            }
            (Err(violation), _) | (_, Err(violation)) => broken.push(format!("seed {seed}: {violation}")),
        }
    }
    println!("{all:?}");
    let shown = broken.iter().take(3).cloned().collect::<Vec<_>>().concat();
    println!("{} seeds break a promise\n{shown}", broken.len());
    assert!(broken.is_empty());
    let each_happened = [
        all.completed,
        all.canceled,
        all.deserted,
        all.resets,
        all.resumed,
        all.timeouts,
        all.evicted,
        all.refused,
        all.panics,
        all.engine_panics,
        all.reloaded,
        all.reloads_undone,
        all.stuck,
    ];
    assert!(only.is_some() || each_happened.iter().all(|count| *count > 50), "the faults strike: {all:?}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_is_found_within_two_thousand_seeds() {
    watch_panics();
    let mut missed = Vec::new();
    let only = std::env::var("BUG").ok();
    let wanted = |bug: &orchestrator_core::planted::Bug| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"));
    for bug in orchestrator_core::planted::Bug::ALL.into_iter().filter(wanted) {
        match world::hunt(bug, SEEDS) {
            Some(found) => println!("{bug:?}: seed {}, {} of 100 seeds: {}", found.first, found.of_hundred, found.what),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
