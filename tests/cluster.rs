//! Nodes that run each other's tasks, in virtual time, over `ractor_cluster` on wires in memory. With the feature `cluster`.
#![cfg(feature = "cluster")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "cluster/network.rs"]
mod network;
mod support;
#[path = "cluster/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use network::Wires;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Env, Event, TaskRequest};
use support::{millisecond, pool, read_whole};
use world::{Living, node_name, start_node, until};

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
    assert!(taken.iter().all(|taken| *taken >= 10) && taken.iter().sum::<u64>() == 41, "both run their part: {taken:?}");
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

/// A flood that comes in through three gateways, and a polite client at one of them: what each is served while both wait differs by no more
/// than the stated bound, as if all had come in through one.
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
    // 4 slots, and of each of three gateways a task that waits at each of two owners; and what 50 ms of two owners serve unseen.
    let (slots, bids, unseen) = (4, 6, 50 * 4 / i64::from(TOKENS));
    let bound = 2 * (slots + bids + 1) + unseen;
    println!("beside a flood through three gateways: {ahead:?} tasks, at most {worst} apart; bound {bound}");
    assert!(worst <= bound, "{worst} tasks apart, {bound} are allowed");
    assert!(ahead[1] == TASKS as i64 && ahead[0] < 2 * TASKS as i64);
}
