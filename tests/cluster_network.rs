//! Three real nodes in network namespaces of their own, real llama.cpp behind two of them: killed, stopped, cut off both ways and one
//! way, while a hundred streams run. Nothing is lost, nothing doubled, every text is the undisturbed one. With the features `cluster`
//! and `service`, as root, where namespaces can be made.
#![cfg(all(feature = "cluster", feature = "service"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "cluster/hosts.rs"]
mod hosts;
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hosts::{Fleet, Host};

const STREAMS: u64 = 100;
/// Streams that are open at once.
const AT_ONCE: usize = 24;
const TOKENS: u32 = 400;

/// The texts of all streams, by their numbers.
type Texts = BTreeMap<u64, String>;

/// Runs every stream through the front node, `AT_ONCE` at a time, and returns what they said.
fn run_streams(front: &Host, round: &str) -> Texts {
    let next = std::sync::atomic::AtomicU64::new(0);
    let texts = std::sync::Mutex::new(Texts::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                front.enter();
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= STREAMS {
                        return;
                    }
                    let text = hosts::stream(&format!("{round}-{number}"), &support::llama::prompt(number), number, TOKENS);
                    texts.lock().unwrap().insert(number, text);
                }
            });
        }
    });
    texts.into_inner().unwrap()
}

/// How long until something is so, looked at from now on.
fn time_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begin.elapsed()
}

/// One disturbance in the middle of a hundred streams, whose texts must be the undisturbed ones.
fn disturbed(fleet: &Fleet, whole: &Texts, round: &str, disturb: impl FnOnce() + Send) {
    let begin = Instant::now();
    let texts = std::thread::scope(|scope| {
        let texts = scope.spawn(|| run_streams(&fleet.hosts[0], round));
        std::thread::sleep(Duration::from_millis(300));
        disturb();
        texts.join().expect("every stream comes to its end")
    });
    assert_eq!(texts.len(), whole.len(), "{round}: none is lost");
    let differ: Vec<u64> = texts.iter().filter(|(number, text)| whole[*number] != **text).map(|(number, _)| *number).collect();
    assert!(differ.is_empty(), "{round}: these differ: {differ:?}");
    println!("{round}: {} streams, all byte-equal, in {:?}", texts.len(), begin.elapsed());
}

#[test]
fn a_hundred_streams_survive_what_happens_to_nodes_and_between_them() {
    let Some(server) = support::llama::server() else { return };
    let Some(mut fleet) = Fleet::new(&server) else { return };
    fleet.start_all();
    let whole = run_streams(&fleet.hosts[0], "undisturbed");
    assert!(whole.values().all(|text| !text.is_empty()));
    assert_eq!(whole, run_streams(&fleet.hosts[0], "again"), "this engine repeats itself");
    let patience = Duration::from_secs(60);

    let (front, rest) = fleet.hosts.split_first_mut().unwrap();
    let [one, two] = rest else { panic!("three hosts") };
    // Killed: its system closes its connections.
    let texts = std::thread::scope(|scope| {
        let texts = scope.spawn(|| run_streams(front, "killed"));
        std::thread::sleep(Duration::from_millis(300));
        one.kill();
        let noticed = time_until("the killed node is noticed", patience, || !front.is_linked("one"));
        println!("killed: noticed after {noticed:?}");
        assert!(noticed <= Duration::from_millis(200));
        one.start();
        let back = time_until("it is back", patience, || front.is_linked("one"));
        println!("killed: linked again {back:?} behind its start");
        assert!(back <= Duration::from_secs(5));
        texts.join().expect("every stream comes to its end")
    });
    assert_eq!(texts, whole, "killed: byte-equal");

    front.until_serving(2);
    let resident = front.resident();
    let fleet_ref = &fleet;
    let [front, one, two] = &fleet_ref.hosts[..] else { panic!("three hosts") };
    disturbed(fleet_ref, &whole, "stopped", || {
        two.signal("STOP");
        let noticed = time_until("the stopped node is noticed", patience, || !front.is_linked("two"));
        println!("stopped: noticed after {noticed:?}");
        assert!(noticed <= Duration::from_millis(3_500));
        std::thread::sleep(Duration::from_secs(3));
        two.signal("CONT");
        let back = time_until("it is back", patience, || front.is_linked("two"));
        println!("stopped: linked again {back:?} after it went on");
        assert!(back <= Duration::from_secs(5));
    });
    let grown = front.resident().saturating_sub(resident);
    println!("stopped: the front node has {} KiB more", grown / 1024);
    assert!(grown < 64 * 1024 * 1024);

    for (round, cuts) in [
        ("cut off both ways", vec![(0, 1), (1, 0)]),
        ("cut off one way, from the front", vec![(0, 2)]),
        ("cut off one way, to the front", vec![(1, 0)]),
    ] {
        front.until_serving(2);
        let far = cuts.iter().flat_map(|(from, to)| [*from, *to]).find(|host| *host > 0).unwrap();
        let name = &fleet_ref.hosts[far].name;
        disturbed(fleet_ref, &whole, round, || {
            cuts.iter().for_each(|(from, to)| fleet_ref.cut(*from, *to));
            let noticed = time_until("the cut is noticed", patience, || !front.is_linked(name));
            println!("{round}: noticed after {noticed:?}");
            assert!(noticed <= Duration::from_millis(3_500));
            let left = time_until("its guests are stopped", patience, || fleet_ref.hosts[far].guests() == 0);
            println!("{round}: the other side was free {left:?} later");
            cuts.iter().for_each(|(from, to)| fleet_ref.mend(*from, *to));
            let back = time_until("it is back", patience, || front.is_linked(name));
            println!("{round}: linked again {back:?} behind the cut");
            assert!(back <= Duration::from_secs(5));
        });
    }
    let _ = (one, two);
    match fleet_ref.lose("30%") {
        Err(why) => println!("SKIPPED: loss of packets: {why}"),
        Ok(()) => disturbed(fleet_ref, &whole, "thirty percent loss", || {}),
    }
}
