//! Nodes that run each other's tasks, in virtual time, over `ractor_cluster` on wires in memory. With the feature
//! `cluster`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "cluster/discovery.rs"]
mod discovery;
#[path = "cluster/membership.rs"]
mod membership;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/placement.rs"]
mod placement;
#[path = "cluster/quotas.rs"]
mod quotas;
#[path = "cluster/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use network::Wires;
use orchestrator_core::config::{ClientConfig, LimitConfig};
use orchestrator_core::core::node::PROTOCOLS;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Config, Env, Event, TaskRequest};
use world::{Living, node_name, start_node, start_node_with, until};

use crate::support::{self, millisecond, pool, read_whole};

fn seed_of(living: &Living, id: &orchestrator_core::TaskId) -> u64 {
    living.orchestrator().task(id).expect("it is remembered").seed
}

async fn whole(living: &Living, prompt: &str, tokens: u32) {
    let request = TaskRequest::completion(prompt).max_tokens(tokens);
    let submitted = living.orchestrator().submit(request).await.expect("accepted");
    let (text, end) = read_whole(submitted.stream()).await;
    assert!(matches!(end, Event::End(_)), "{end:?}");
    assert_eq!(text, undisturbed(prompt, seed_of(living, &submitted.task_id), tokens, "1", "tiny"));
}

/// A gateway without engines, and two nodes with.
async fn three(wires: &Arc<Wires>, slots: u32) -> [Living; 3] {
    let names = ["front", "one", "two"];
    let mut nodes = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        let pools = if index == 0 { Vec::new() } else { vec![pool("chat", 1, slots, millisecond())] };
        nodes.push(start_node(wires, Env::simulated(index as u64), name, &others, pools).await);
    }
    nodes[0].node.until_linked(&[node_name("one"), node_name("two")]).await;
    until("both nodes' pools are there", || {
        let pools = nodes[0].orchestrator().pools();
        pools.len() == 2 && pools.iter().all(|pool| pool.replicas.iter().all(|replica| replica.state.is_ready()))
    })
    .await;
    nodes.try_into().ok().expect("three")
}

#[tokio::test(start_paused = true)]
async fn a_node_without_engines_serves_from_those_of_others() {
    let wires = Arc::<Wires>::default();
    let [front, one, two] = three(&wires, 2).await;
    let begin = tokio::time::Instant::now();
    whole(&front, "the sky is", 20).await;
    println!("20 tokens of a millisecond each took {:?}", begin.elapsed());
    let tasks = (0..40).map(|number| {
        let front = &front;
        async move { whole(front, &format!("prompt {number}"), 10).await }
    });
    futures_util::future::join_all(tasks).await;
    let taken = [&one, &two].map(|node| node.node.view().guests_taken);
    println!("guests of the two: {taken:?}");
    assert!(
        taken.iter().all(|taken| *taken >= 10) && taken.iter().sum::<u64>() >= 41,
        "both run their part: {taken:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_on_another_node_when_its_node_dies() {
    let wires = Arc::<Wires>::default();
    let [front, one, two] = three(&wires, 4).await;
    let mut readers = Vec::new();
    for number in 0..8 {
        let request = TaskRequest::completion(format!("prompt {number}")).max_tokens(200);
        let submitted = front.orchestrator().submit(request).await.expect("accepted");
        readers.push((number, submitted.task_id.clone(), tokio::spawn(read_whole(submitted.stream()))));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(one.node.view().guests_taken > 0);
    drop(one);
    for (number, id, reader) in readers {
        let (text, end) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "{end:?}");
        assert_eq!(text, undisturbed(&format!("prompt {number}"), seed_of(&front, &id), 200, "1", "tiny"));
    }
    drop(two);
}

/// A flood that comes in through three gateways, and a polite client at one of them: what each is served while both
/// wait differs by no more than the stated bound, as if all had come in through one.
#[tokio::test(start_paused = true)]
async fn one_fairness_holds_over_three_gateways() {
    const TASKS: u64 = 100;
    const TOKENS: u32 = 20;
    let wires = Arc::<Wires>::default();
    let names = ["a-front", "b-front", "c-front", "one", "two"];
    let mut nodes = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        let pools = if index < 3 { Vec::new() } else { vec![pool("chat", 1, 2, millisecond())] };
        nodes.push(start_node(&wires, Env::simulated(index as u64), name, &others, pools).await);
    }
    let serves = |node: &Living| {
        let pools = node.orchestrator().pools();
        pools.len() == 2 && pools.iter().all(|pool| pool.replicas.iter().all(|replica| replica.state.is_ready()))
    };
    until("every gateway has both pools", || nodes[..3].iter().all(serves)).await;
    let mut readers = Vec::new();
    let ended = Arc::new(std::sync::Mutex::new(Vec::new()));
    for number in 0..TASKS {
        for (gateway, node) in nodes[..3].iter().enumerate() {
            for client in ["flood", "polite"].into_iter().filter(|client| *client == "flood" || gateway == 2) {
                let request = TaskRequest::completion(format!("prompt {number} {gateway}")).max_tokens(TOKENS);
                let request = request.client(support::client(client));
                let submitted = node.orchestrator().submit(request).await.expect("accepted");
                let ended = ended.clone();
                readers.push(tokio::spawn(async move {
                    read_whole(submitted.stream()).await;
                    ended.lock().unwrap().push(client);
                }));
            }
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let ended = ended.lock().unwrap().clone();
    let last_polite = ended.iter().rposition(|client| *client == "polite").expect("they ended");
    let mut ahead = [0_i64; 2];
    let mut worst = 0;
    for client in &ended[..=last_polite] {
        ahead[usize::from(*client == "polite")] += 1;
        worst = worst.max((ahead[0] - ahead[1]).abs());
    }
    // 4 slots, and of each of three gateways a task that waits at each of two owners; and what 50 ms of two owners
    // serve unseen.
    let (slots, bids, unseen) = (4, 6, 50 * 4 / i64::from(TOKENS));
    let bound = 2 * (slots + bids + 1) + unseen;
    println!("beside a flood through three gateways: {ahead:?} tasks, at most {worst} apart; bound {bound}");
    assert!(worst <= bound, "{worst} tasks apart, {bound} are allowed");
    assert!(ahead[1] == TASKS as i64 && ahead[0] < 2 * TASKS as i64);
}

/// 100 tasks a second are 100 tasks a second, whichever gateways they come through, however that changes, and whoever
/// is cut off.
#[tokio::test(start_paused = true)]
async fn a_limit_holds_over_all_gateways() {
    const RATE: f64 = 100.0;
    const BURST: u32 = 10;
    let wires = Arc::<Wires>::default();
    let names = ["a", "b", "c"];
    let limits = LimitConfig { requests_per_s: Some(RATE), requests_burst: Some(BURST), ..LimitConfig::default() };
    let client = ClientConfig { limits, ..ClientConfig::default() };
    let settings = Config { clients: [("hasty".to_owned(), client)].into(), ..Config::default() };
    let mut nodes = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        let (env, pools) = (Env::simulated(index as u64), vec![pool("chat", 1, 64, support::instant())]);
        nodes.push(start_node_with(&wires, env, (name, &others), pools, settings.clone(), PROTOCOLS).await);
    }
    for node in &nodes {
        node.node.until_linked(&names.map(node_name)).await;
        node.orchestrator().until_ready().await;
    }
    // Attempts a second at each gateway: 8 s of each, and what is cut off.
    let phases: [([u64; 3], Option<&str>); 6] = [
        ([300, 0, 0], None),
        ([0, 300, 0], None),
        ([300, 300, 300], None),
        ([300, 10, 10], None),
        ([300, 300, 10], Some("a")),
        ([10, 300, 300], None),
    ];
    let begin = tokio::time::Instant::now();
    let mut accepted: Vec<Duration> = Vec::new();
    let mut served = Vec::new();
    for (rates, cut) in phases {
        for other in names.iter().filter(|other| cut.is_some_and(|cut| cut != **other)) {
            wires.cut(&node_name(cut.unwrap()), &node_name(other));
            wires.cut(&node_name(other), &node_name(cut.unwrap()));
        }
        let before = accepted.len();
        for tick in 0..8_000_u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for (node, rate) in nodes.iter().zip(rates) {
                if tick * rate / 1000 == (tick + 1) * rate / 1000 {
                    continue;
                }
                let request = TaskRequest::completion("x").max_tokens(1).client(support::client("hasty"));
                if node.orchestrator().submit(request).await.is_ok() {
                    accepted.push(begin.elapsed());
                }
            }
        }
        served.push(accepted.len() - before);
        if cut.is_some() {
            wires.mend();
        }
    }
    println!("accepted in each 8 s: {served:?}, of 800");
    // In any interval: the rate, one burst, and a task that no node denies.
    let worst = (0..accepted.len()).flat_map(|from| (from..accepted.len()).step_by(7).map(move |to| (from, to))).map(
        |(from, to)| {
            let seconds = (accepted[to] - accepted[from]).as_secs_f64();
            (to - from + 1) as f64 - RATE * seconds
        },
    );
    let worst = worst.fold(0.0, f64::max);
    println!("at most {worst:.1} beyond the rate; allowed: a burst of {BURST} and {} tasks", names.len());
    assert!(worst <= f64::from(BURST) + names.len() as f64 + 1.0);
    assert!(served[0] > 300 && served[2] > 400, "and the client gets what is its own: {served:?}");
}

/// A newer build beside this one: what both speak is spoken, and without that each refuses the other, and says why.
#[tokio::test(start_paused = true)]
async fn nodes_of_two_builds_speak_what_both_know_or_say_that_there_is_nothing() {
    let wires = Arc::<Wires>::default();
    let engine = || vec![pool("chat", 1, 2, millisecond())];
    let next = PROTOCOLS.1 + 1;
    let plain = Config::default;
    let old = start_node(&wires, Env::simulated(1), "old", &["both", "new"], Vec::new()).await;
    let both =
        start_node_with(&wires, Env::simulated(2), ("both", &["new"]), engine(), plain(), (PROTOCOLS.1, next)).await;
    let new = start_node_with(&wires, Env::simulated(3), ("new", &[]), engine(), plain(), (next, next)).await;
    old.node.until_linked(&[node_name("both")]).await;
    let trouble = |living: &Living, name: &str| {
        let view = living.node.view();
        let peer = view.peers.iter().find(|peer| peer.name == node_name(name)).cloned();
        peer.and_then(|peer| peer.trouble)
    };
    until("the old one has been refused by the new one", || trouble(&old, "new").is_some()).await;
    let why = trouble(&old, "new").unwrap();
    println!("{why}");
    assert!(
        why.contains(&format!("speaks protocols {next} to {next}, this node {} to {}", PROTOCOLS.0, PROTOCOLS.1)),
        "{why}"
    );
    let protocol = |living: &Living, name: &str| {
        let view = living.node.view();
        view.peers
            .iter()
            .find(|peer| peer.name == node_name(name))
            .and_then(|peer| peer.link.as_ref())
            .map(|link| link.protocol)
    };
    assert_eq!((protocol(&old, "both"), protocol(&old, "new")), (Some(PROTOCOLS.1), None));
    until("the old one's pool is there", || old.orchestrator().pools().iter().any(|pool| pool.slots_total > 0)).await;
    whole(&old, "the sky is", 20).await;
    assert_eq!(both.node.view().guests_taken, 1);
    assert_eq!(new.node.view().guests_taken, 0);
}

/// A peer with a good certificate and the cookie, which then speaks garbage, announces a frame without end, or says
/// nothing.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_let_in_and_then_errs_loses_its_connection() {
    use orchestrator_core::cluster::{Cookie, Network};
    use orchestrator_core::core::node::BootId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let wires = Arc::<Wires>::default();
    let victim = start_node(&wires, Env::simulated(1), "victim", &[], vec![pool("chat", 1, 2, millisecond())]).await;
    let frames: [(&str, Vec<u8>, u64); 4] = [
        ("garbage", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(40), 1),
        ("a frame of 2^60 bytes", (1_u64 << 60).to_be_bytes().to_vec(), 1),
        ("a frame that is no message", [12_u64.to_be_bytes().as_slice(), &[0xff; 12]].concat(), 1),
        ("nothing", Vec::new(), 6),
    ];
    for (number, (what, bytes, seconds)) in frames.into_iter().enumerate() {
        let env = Env::simulated(number as u64 + 10);
        let cookie = Cookie::new(b"a cookie of thirty-two bytes, or").unwrap();
        let port =
            network::Port::new(&wires, env, &node_name("rogue"), BootId(number as u64), cookie, Arc::new(|_| None));
        let caller = port.dial(&node_name("victim"), "victim").await.expect("it is let in");
        let (mut reader, mut writer) = caller.stream.split();
        let begin = tokio::time::Instant::now();
        let _ = writer.write_all(&bytes).await; // It may be closed already.
        let mut heard = Vec::new();
        let _ =
            tokio::time::timeout(Duration::from_secs(20), reader.read_to_end(&mut heard)).await.expect("it is closed");
        println!("{what}: closed after {:?}", begin.elapsed());
        assert!(begin.elapsed() <= Duration::from_secs(seconds), "{what}");
    }
    let view = victim.node.view();
    assert!(view.peers.iter().all(|peer| peer.link.is_none() && peer.links_made == 0));
    whole(&victim, "the sky is", 5).await;
}
