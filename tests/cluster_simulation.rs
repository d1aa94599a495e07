//! Whole clusters on one thread in virtual time: three to five nodes, whose connections are late, cut off in one
//! direction or both, and broken, while nodes are killed and come back, actors panic and engines die. Every seed runs
//! twice and must give the same traces. With the feature `cluster`.
//!
//! Each run has a process of its own: `ractor` numbers its actors for the whole process, and knows them by these
//! numbers in the order of a map. `SEED=7` runs one seed, `FIRST=1000 SEEDS=1000` others.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "cluster/chance.rs"]
mod chance;
#[path = "simulation/check.rs"]
mod check;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/simulation.rs"]
mod simulation;
mod support;
#[path = "cluster/tally.rs"]
mod tally;
#[path = "cluster/world.rs"]
mod world;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tally::Tally;

const SEEDS: u64 = 1_000;
/// What a run prints in front of what it found.
const FOUND: &str = "found: ";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What one run has shown, or broken.
/// Real time after which a run is given up.
const LIVELOCK: std::time::Duration = std::time::Duration::from_secs(120);

#[derive(serde::Serialize, serde::Deserialize)]
enum Found {
    Kept { tally: Tally, events_hash: u64 },
    Broken(String),
}

/// The other side of [`run`]; nothing by itself.
#[test]
fn one_run_in_a_process_of_its_own() {
    let Some(seed) = number("RUN_SEED") else { return };
    // Actors that wake each other for ever let no virtual time pass: that is a broken promise too. A run takes a tenth
    // of a second.
    std::thread::spawn(|| {
        let begin = std::time::Instant::now();
        while begin.elapsed() < LIVELOCK {
            std::thread::park_timeout(LIVELOCK);
        }
        println!("no end within {LIVELOCK:?}");
        std::process::exit(1);
    });
    #[cfg(feature = "planted-bugs")]
    if let Some(index) = number("RUN_BUG") {
        orchestrator_core::planted::plant(Some(orchestrator_core::planted::Bug::NODES[index as usize]));
    }
    simulation::watch_panics();
    let found = match simulation::run(seed) {
        Ok(run) => {
            if std::env::var_os("SHOW").is_some() {
                run.traces.iter().enumerate().for_each(|(life, trace)| {
                    trace.iter().for_each(|event| println!("{life} {} {:?}", event.at.as_micros(), event.kind));
                });
            }
            let mut hash = DefaultHasher::new();
            format!("{:?}", run.traces).hash(&mut hash);
            Found::Kept { tally: run.tally, events_hash: hash.finish() }
        }
        Err(what) => Found::Broken(what),
    };
    println!("{FOUND}{}", serde_json::to_string(&found).unwrap());
}

/// One run of this seed, with this bug between nodes.
fn run(seed: u64, bug: Option<usize>) -> Found {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "one_run_in_a_process_of_its_own", "--nocapture", "--test-threads=1"]);
    child.env("RUN_SEED", seed.to_string()).env_remove("RUST_BACKTRACE");
    if let Some(bug) = bug {
        child.env("RUN_BUG", bug.to_string());
    }
    let output = child.output().expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let found = said.lines().find_map(|line| line.split_once(FOUND)).map(|(_, found)| serde_json::from_str(found));
    found.and_then(Result::ok).unwrap_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        Found::Broken(format!("the process ended with {}: {said} {error}", output.status))
    })
}

/// Does something for each seed, on all cores.
fn for_each(seeds: std::ops::Range<u64>, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(seeds.start);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    work(seed);
                }
            });
        }
    });
}

#[test]
fn every_seed_gives_the_same_traces_and_every_accepted_task_ends() {
    let only = number("SEED");
    let (first, count) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let seeds = only.map_or(first..first + count, |seed| seed..seed + 1);
    let many = seeds.end - seeds.start >= 100;
    let results = Mutex::new((Tally::default(), Vec::new()));
    for_each(seeds, |seed| {
        let both = (run(seed, None), run(seed, None));
        let mut results = results.lock().unwrap();
        match both {
            (Found::Kept { tally, events_hash }, Found::Kept { events_hash: other, .. }) => {
                results.0 += tally;
                if events_hash != other {
                    results.1.push(format!("seed {seed}: it gives two traces"));
                }
            }
            (Found::Broken(what), _) | (_, Found::Broken(what)) => results.1.push(format!("seed {seed}: {what}")),
        }
    });
    let (all, broken) = results.into_inner().unwrap();
    println!("{all:?}");
    let shown = broken.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    println!("{} seeds break a promise\n{shown}", broken.len());
    assert!(broken.is_empty());
    let faults = [all.cuts, all.breaks, all.kills, all.panics, all.leases_expired];
    let served = [all.completed, all.canceled, all.resumed, all.guests];
    assert!(!many || faults.iter().chain(&served).all(|count| *count > 20), "the faults strike: {all:?}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_between_nodes_is_found() {
    use orchestrator_core::planted::Bug;
    let missed = Mutex::new(Vec::new());
    for_each(0..Bug::NODES.len() as u64, |index| {
        let bug = Bug::NODES[index as usize];
        let broken = |seed| match run(seed, Some(index as usize)) {
            Found::Broken(what) => Some((seed, what)),
            Found::Kept { .. } => None,
        };
        match (0..SEEDS).find_map(broken) {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what}"),
            None => missed.lock().unwrap().push(bug),
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
