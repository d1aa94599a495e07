//! Whole clusters on one thread in virtual time: three to five nodes, whose connections are late, cut off in one direction or both, and
//! broken, while nodes are killed and come back, actors panic and engines die. Every seed runs twice and must give the same traces.
//! With the feature `cluster`.
#![cfg(feature = "cluster")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "simulation/check.rs"]
mod check;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/simulation.rs"]
mod simulation;
mod support;
#[path = "cluster/world.rs"]
mod world;

use simulation::{Tally, run, watch_panics};

const SEEDS: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn every_seed_gives_the_same_traces_and_every_accepted_task_ends() {
    watch_panics();
    let only = number("SEED");
    let (first, count) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let seeds = only.map_or(first..first + count, |seed| seed..seed + 1);
    let (mut all, mut broken, many) = (Tally::default(), Vec::new(), seeds.end - seeds.start >= 100);
    for seed in seeds {
        match (run(seed), run(seed)) {
            (Ok(one), Ok(other)) => {
                for (life, (first, second)) in one.traces.iter().zip(&other.traces).enumerate() {
                    let at = first.iter().zip(second).position(|(one, other)| one != other);
                    let equal = at.is_none() && first.len() == second.len();
                    if !equal {
                        let at = at.unwrap_or(first.len().min(second.len()));
                        let shown = |trace: &[_]| format!("{:?}", &trace[at.saturating_sub(2)..(at + 3).min(trace.len())]);
                        let (first, second) = (shown(first), shown(second));
                        broken.push(format!("seed {seed}: life {life} has two traces, from {at} on:\n {first}\n {second}"));
                        break;
                    }
                }
                all += one.tally;
            }
            (Err(violation), _) | (_, Err(violation)) => broken.push(format!("seed {seed}: {violation}")),
        }
    }
    println!("{all:?}");
    println!("{} seeds break a promise\n{}", broken.len(), broken.iter().take(5).cloned().collect::<Vec<_>>().join("\n"));
    assert!(broken.is_empty());
    let each_happened = [all.completed, all.canceled, all.resumed, all.guests, all.leases_expired, all.cuts, all.breaks, all.kills];
    assert!(!many || each_happened.iter().all(|count| *count > 20), "the faults strike: {all:?}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_between_nodes_is_found() {
    use orchestrator_core::planted::{Bug, plant};
    watch_panics();
    let mut missed = Vec::new();
    for bug in Bug::NODES {
        plant(Some(bug));
        let found = (0..SEEDS).find_map(|seed| run(seed).err().map(|what| (seed, what)));
        plant(None);
        match found {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
