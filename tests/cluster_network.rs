//! Three real nodes in network namespaces of their own, real llama.cpp behind two of them: killed, stopped, cut off
//! both ways and one way, while a hundred streams run. Nothing is lost, nothing doubled, every text is the undisturbed
//! one. With the features `cluster` and `service`, as root, where namespaces can be made.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "cluster/hosts.rs"]
mod hosts;
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hosts::{Fleet, Host};

const STREAMS: usize = 100;
/// Streams that are tried for those. Where two tokens are almost equally likely, this engine says the one or the other
/// by what else it computes at that moment; a few streams in a hundred have such a place, always the same.
const CANDIDATES: u64 = 120;
/// Streams that are open at once.
const AT_ONCE: usize = 24;
const TOKENS: u32 = 200;
/// Attempts that run on other nodes when something happens.
const LENT: u64 = 6;

/// The texts of all streams, by their numbers.
type Texts = BTreeMap<u64, String>;

/// Runs these streams through the front node, so many at a time, and returns what they said.
fn run_streams(front: &Host, round: &str, numbers: impl Iterator<Item = u64>, at_once: usize) -> Texts {
    let numbers: Vec<u64> = numbers.collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let texts = std::sync::Mutex::new(Texts::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                front.enter();
                loop {
                    let next = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(number) = numbers.get(next).copied() else { return };
                    let text = hosts::stream(
                        &format!("{}-{number}", round.replace([' ', ','], "-")),
                        &support::llama::prompt(number),
                        number,
                        TOKENS,
                    );
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
        hosts::look_again();
    }
    begin.elapsed()
}

/// One disturbance in the middle of a hundred streams, whose texts must be the undisturbed ones.
fn disturbed(fleet: &Fleet, whole: &Texts, round: &str, disturb: impl FnOnce() + Send) {
    let begin = Instant::now();
    let texts = std::thread::scope(|scope| {
        let texts = scope.spawn(|| run_streams(&fleet.hosts[0], round, whole.keys().copied(), AT_ONCE));
        fleet.hosts[0].until_lent(LENT);
        disturb();
        texts.join().expect("every stream comes to its end")
    });
    same(whole, &texts, round);
    println!("{round}: {} streams, all byte-equal, in {:?}", texts.len(), begin.elapsed());
}

fn same(whole: &Texts, texts: &Texts, round: &str) {
    assert_eq!(texts.len(), whole.len(), "{round}: none is lost");
    let differs = |(number, text): (&u64, &String)| {
        let at = text.bytes().zip(whole[number].bytes()).position(|(one, other)| one != other);
        (whole[number] != *text).then_some((*number, at))
    };
    let differ: Vec<_> = texts.iter().filter_map(differs).collect();
    assert!(differ.is_empty(), "{round}: these differ, from these bytes on: {differ:?}");
}

#[test]
fn a_hundred_streams_survive_what_happens_to_nodes_and_between_them() {
    let Some(server) = support::llama::server() else { return };
    let Some(mut fleet) = Fleet::new(&server) else { return };
    fleet.start_all();
    let mut whole = run_streams(&fleet.hosts[0], "undisturbed", 0..CANDIDATES, AT_ONCE);
    for at_once in [1, 3, 8] {
        let again = run_streams(&fleet.hosts[0], &format!("{at_once}-at-once"), 0..CANDIDATES, at_once);
        whole.retain(|number, text| again[number] == *text);
    }
    println!("{} of {CANDIDATES} streams are the same in every batch", whole.len());
    let whole: Texts = whole.into_iter().take(STREAMS).collect();
    assert!(whole.len() == STREAMS && whole.values().all(|text| !text.is_empty()));
    let patience = Duration::from_secs(60);

    let (front, rest) = fleet.hosts.split_first_mut().unwrap();
    let one = &mut rest[0];
    // Killed: its system closes its connections.
    let texts = std::thread::scope(|scope| {
        let texts = scope.spawn(|| run_streams(front, "killed", whole.keys().copied(), AT_ONCE));
        front.until_lent(LENT);
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
    same(&whole, &texts, "killed");

    // An upgrade, one node after the other.
    let begin = Instant::now();
    let texts = std::thread::scope(|scope| {
        let texts = scope.spawn(|| run_streams(front, "upgraded", whole.keys().copied(), AT_ONCE));
        for host in rest {
            front.until_serving(2);
            front.until_lent(LENT);
            host.replace();
            let back = time_until("it is back", patience, || front.is_linked(&host.name));
            println!("upgraded: {} was drained, stopped and started; linked {back:?} behind that", host.name);
        }
        texts.join().expect("every stream comes to its end")
    });
    same(&whole, &texts, "upgraded");
    println!("upgraded: {} streams, all byte-equal, in {:?}", texts.len(), begin.elapsed());

    front.until_serving(2);
    let resident = front.resident();
    let fleet_ref = &fleet;
    let [front, one, two] = &fleet_ref.hosts[..] else { panic!("three hosts") };
    disturbed(fleet_ref, &whole, "stopped", || {
        two.signal("STOP");
        let noticed = time_until("the stopped node is noticed", patience, || !front.is_linked("two"));
        println!("stopped: noticed after {noticed:?}");
        assert!(noticed <= Duration::from_millis(3_500));
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
    front.until_serving(2);
    // Links may break and be made anew, again and again.
    let lossy = || match fleet_ref.lose(30) {
        Err(why) => println!("SKIPPED: loss of packets: {why}"),
        Ok(by) => println!("thirty percent loss: by {by}"),
    };
    let links = || front.links_made();
    let before = links();
    disturbed(fleet_ref, &whole, "thirty percent loss", lossy);
    println!("thirty percent loss: {} links were made anew", links() - before);
}

/// The five commands of docs/cluster.md, as they stand there, and then a task at a node whose neighbour is killed.
#[test]
fn the_five_commands_of_the_documentation_make_a_cluster() {
    let text = std::fs::read_to_string(crate::support::root().join("docs/cluster.md")).unwrap();
    let block = text.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("there is a block");
    let commands: Vec<&str> = block.lines().collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    let Some(shell) = hosts::Shell::new() else { return };
    let [init, nodes @ .., status] = &commands[..] else { panic!("five") };
    shell.run(init);
    for node in nodes {
        shell.start(node.trim_end_matches(" &"));
    }
    let alive = |said: &str| said.lines().filter(|line| line.contains(" alive ")).count();
    let took = time_until("every node has two links", Duration::from_secs(60), || {
        shell.try_run(status).is_some_and(|said| alive(&said) == 2)
    });
    println!("{}linked {took:?} behind the last command", shell.run(status));
    let submit = "orchestratord submit 'The sky is' --url http://127.0.0.1:7701 --max-tokens 8";
    let ready = "orchestratord submit x --url http://127.0.0.1:7701 --max-tokens 1";
    time_until("it serves", Duration::from_secs(60), || shell.try_run(ready).is_some());
    println!("{}", shell.run(submit));
    shell.kill(1);
    time_until("the killed node is noticed", Duration::from_secs(60), || {
        shell.try_run(status).is_some_and(|said| alive(&said) == 1)
    });
    shell.run(submit);
    shell.run("orchestratord cluster drain --url http://127.0.0.1:7703");
}
