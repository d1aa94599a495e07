//! The whole runtime in virtual time, over many seeds: `cargo run --release --example simulate -- --seeds 200000`, or
//! one of them with `--seed 7`. Each seed runs twice and must give the same trace and break no promise; one that does
//! not prints what it broke, at which step, and the last events. `--digests FILE` writes a digest of each seed's trace,
//! a line each: two builds with equal files did the same. With `--features planted-bugs`, `--bugs` says which planted
//! bugs are found.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

#[path = "../tests/simulation/check.rs"]
mod check;
#[path = "../tests/simulation/driver.rs"]
mod driver;
#[allow(dead_code)]
#[path = "../tests/support/sim.rs"]
mod support;
#[path = "../tests/simulation/tally.rs"]
mod tally;
#[path = "../tests/simulation/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tally::Tally;
use world::{run, watch_panics};

const USAGE: &str = "usage: simulate [--seeds N | --seed S] [--digests FILE] [--bugs, with the feature planted-bugs]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).and_then(|text| text.parse::<u64>().ok()))
    };
    let (seeds, seed) = (number("--seeds"), number("--seed"));
    if seeds == Some(None) || seed == Some(None) || arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::from(2);
    }
    watch_panics();
    if arguments.iter().any(|argument| argument == "--bugs") {
        return bugs(seeds.flatten().unwrap_or(2_000));
    }
    let at = arguments.iter().position(|argument| argument == "--digests");
    let digests = at.and_then(|at| arguments.get(at + 1)).map(String::as_str);
    match seed.flatten() {
        Some(seed) => sweep(seed..seed + 1, digests),
        None => sweep(0..seeds.flatten().unwrap_or(2_000), digests),
    }
}

/// Runs each seed twice, on all cores; a world lives in one thread.
fn sweep(seeds: std::ops::Range<u64>, digests: Option<&str>) -> ExitCode {
    let (begin, next, total) = (Instant::now(), AtomicU64::new(seeds.start), seeds.end - seeds.start);
    let (all, broken) = (Mutex::new(Tally::default()), AtomicU64::new(0));
    let written = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let fault = match (run(seed), run(seed)) {
                        (Ok(first), Ok(second)) if first.trace == second.trace => {
                            if digests.is_some() {
                                let digest = xxhash_rust::xxh3::xxh3_64(format!("{:?}", first.trace).as_bytes());
                                written.lock().unwrap().insert(seed, digest);
                            }
                            *all.lock().unwrap() += first.tally;
                            continue;
                        }
                        (Ok(first), Ok(second)) => {
                            let at = first.trace.iter().zip(&second.trace).position(|(one, other)| one != other);
                            format!("two traces, from event {at:?} on")
                        }
                        (Err(violation), _) | (_, Err(violation)) => violation.to_string(),
                    };
                    println!("seed {seed}: {fault}");
                    broken.fetch_add(1, Relaxed);
                }
            });
        }
    });
    let (all, broken) = (all.into_inner().unwrap(), broken.into_inner());
    if let Some(path) = digests {
        let lines = written.into_inner().unwrap().into_iter().map(|(seed, digest)| format!("{seed} {digest:016x}\n"));
        std::fs::write(path, lines.collect::<String>()).unwrap();
    }
    println!("{all:?}");
    println!("{total} seeds, each twice, in {:.0?}: {broken} break a promise or differ", begin.elapsed());
    ExitCode::from(u8::from(broken > 0))
}

#[cfg(not(feature = "planted-bugs"))]
fn bugs(_: u64) -> ExitCode {
    println!("build it with --features planted-bugs");
    ExitCode::from(2)
}

/// For each planted bug: the first seed that finds it, in how many of the first hundred it shows, and as what.
#[cfg(feature = "planted-bugs")]
fn bugs(most: u64) -> ExitCode {
    let mut missed = 0;
    println!("| planted bug | first found by seed | found by, of 100 | as |\n|---|---|---|---|");
    for bug in orchestrator_core::planted::Bug::ALL {
        match world::hunt(bug, most) {
            Some(found) => println!("| {bug:?} | {} | {} | {} |", found.first, found.of_hundred, found.what),
            None => {
                missed += 1;
                println!("| {bug:?} | not within {most} seeds | | |");
            }
        }
    }
    ExitCode::from(u8::from(missed > 0))
}
