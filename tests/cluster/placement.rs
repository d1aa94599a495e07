//! Where tasks run in a cluster: conversations where their caches are, and nothing where it must not be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::config::{NodeAntiAffinity, PoolConfig};
use orchestrator_core::core::SessionId;
use orchestrator_core::core::node::PROTOCOLS;
use orchestrator_core::gpu::SimEngine;
use orchestrator_core::{Env, ErrorCode, Event, Orchestrator, TaskRequest};

use super::network::Wires;
use super::world::{Living, config, node_name, start_node, start_node_with, until};
use crate::support::{client, millisecond, pool, read_whole};

fn engine() -> Vec<PoolConfig> {
    vec![pool("chat", 1, 4, millisecond())]
}

fn serves(node: &Living, pools: usize) -> bool {
    let ready = |pool: &orchestrator_core::PoolView| pool.replicas.iter().all(|replica| replica.state.is_ready());
    let views = node.orchestrator().pools();
    views.len() == pools && views.iter().all(|pool| ready(pool) && pool.slots_total > 0)
}

/// Runs one task; returns the node that served it, by its pool's name at `node`, and how long it waited for its begin.
async fn turn(node: &Living, own: &str, request: TaskRequest) -> (String, bool, Duration) {
    let begin = tokio::time::Instant::now();
    let submitted = node.orchestrator().submit(request).await.expect("accepted");
    let mut stream = submitted.stream();
    let mut started = None;
    while let Some((_, event)) = stream.next().await {
        if let Event::Started(event) = event {
            let pool = event.identity.replica.pool.to_string();
            let served_by = pool.split_once(':').map_or(own, |(_, node)| node).to_owned();
            started = Some((served_by, event.kv_warmth, begin.elapsed()));
        }
    }
    started.expect("it ran")
}

fn of_session(session: &str, tokens: u32) -> TaskRequest {
    let session_id = Some(SessionId::parse(session).unwrap());
    TaskRequest { session_id, ..TaskRequest::completion("the sky is").max_tokens(tokens) }
}

/// Two gateways and two owners, all linked.
async fn four(wires: &Arc<Wires>) -> BTreeMap<&'static str, Living> {
    let names = ["front", "other", "one", "two"];
    let mut nodes = BTreeMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        let pools = if index < 2 { Vec::new() } else { engine() };
        nodes.insert(name, start_node(wires, Env::simulated(index as u64), name, &others, pools).await);
    }
    until("everybody has both pools", || nodes.values().all(|node| serves(node, 2))).await;
    nodes
}

/// The next task of a conversation runs where its cache is, whichever node it comes to, and there it is known to be
/// warm.
#[tokio::test(start_paused = true)]
async fn a_conversation_finds_its_cache_through_every_node() {
    let wires = Arc::<Wires>::default();
    let nodes = four(&wires).await;
    let mut homes = BTreeMap::new();
    for round in 0..5 {
        for number in 0..8 {
            let session = format!("s{number}");
            // Each turn comes in through another node than the one before.
            let name = ["front", "one", "other", "two", "front"][(round + number) % 5];
            let (served_by, ..) = turn(&nodes[name], name, of_session(&session, 4)).await;
            let home = homes.entry(number).or_insert_with(|| served_by.clone());
            assert_eq!(*home, served_by, "turn {round} of conversation {number}, which came in at {name}");
        }
        tokio::time::sleep(Duration::from_millis(120)).await; // Nodes tell each other some twenty times a second.
    }
    println!("homes of the conversations, behind five turns through different nodes: {homes:?}");
    assert!(homes.values().any(|home| home == "one") && homes.values().any(|home| home == "two"), "{homes:?}");
    let home = homes[&0].as_str();
    let (_, warm, _) = turn(&nodes[home], home, of_session("s0", 4)).await;
    assert!(warm, "the replica says that it knows the conversation");
}

/// A cache is worth a detour, and no wait: where its node is full, a conversation goes on elsewhere at once.
#[tokio::test(start_paused = true)]
async fn a_conversation_does_not_wait_for_its_cache() {
    let wires = Arc::<Wires>::default();
    let nodes = four(&wires).await;
    let (served_by, ..) = turn(&nodes["two"], "two", of_session("s", 4)).await;
    assert_eq!(served_by, "two");
    tokio::time::sleep(Duration::from_millis(120)).await;
    let (served_by, ..) = turn(&nodes["one"], "one", of_session("s", 4)).await;
    assert_eq!(served_by, "two", "its own place is free, and the other one is warm");
    let mut readers = Vec::new();
    for number in 0..4 {
        let request = TaskRequest::completion(format!("long {number}")).max_tokens(1_000);
        let request =
            TaskRequest { pools: Some([orchestrator_core::core::PoolId::parse("chat").unwrap()].into()), ..request };
        let submitted = nodes["two"].orchestrator().submit(request).await.expect("accepted");
        readers.push(tokio::spawn(read_whole(submitted.stream())));
    }
    tokio::time::sleep(Duration::from_millis(120)).await;
    let (served_by, _, waited) = turn(&nodes["one"], "one", of_session("s", 4)).await;
    println!("its node is full: it began at {served_by} after {waited:?}");
    assert!(served_by == "one" && waited < Duration::from_millis(10));
    for reader in readers {
        reader.await.unwrap();
    }
}

/// Four nodes in zones: the pool of `west` keeps away from zone `north`, that of `east` from node `south`, and gateway
/// `aloof` from `east`.
#[tokio::test(start_paused = true)]
async fn no_task_runs_where_anti_affinity_forbids_it() {
    let wires = Arc::<Wires>::default();
    let names = ["aloof", "north", "south", "east", "west"];
    let rejects_peer = |node: &[&str], zone: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        (list(node), list(zone))
    };
    let mut nodes = BTreeMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let mut pools = if ["east", "west"].contains(&name) { engine() } else { Vec::new() };
        for pool in &mut pools {
            let law = if name == "east" { rejects_peer(&["south"], &[]) } else { rejects_peer(&[], &["cold"]) };
            (pool.anti_affinity.node, pool.anti_affinity.zone) = law;
        }
        let mut settings = config(name);
        let cluster = settings.cluster.as_mut().unwrap();
        cluster.zone = (name == "north").then(|| "cold".to_owned());
        if name == "aloof" {
            cluster.anti_affinity = NodeAntiAffinity { node: vec!["east".to_owned()], zone: Vec::new() };
        }
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        let env = Env::simulated(index as u64);
        nodes.insert(name, start_node_with(&wires, env, (name, &others), pools, settings, PROTOCOLS).await);
    }
    let at =
        |name: &str| nodes[name].orchestrator().pools().iter().map(|pool| pool.pool_id.to_string()).collect::<Vec<_>>();
    let expected = |name: &str| match name {
        "aloof" => vec!["chat:west"],
        "north" => vec!["chat:east"],
        "south" => vec!["chat:west"],
        "east" => vec!["chat", "chat:west"],
        _ => vec!["chat", "chat:east"],
    };
    until("each has the pools that it may have", || {
        names.iter().all(|name| serves(&nodes[name], expected(name).len()))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    names.iter().for_each(|name| assert_eq!(at(name), expected(name), "{name}"));
    for (gateway, owner) in [("aloof", "west"), ("north", "east"), ("south", "west")] {
        let tasks = (0..30).map(|_| turn(&nodes[gateway], gateway, TaskRequest::completion("x").max_tokens(20)));
        let served = futures_util::future::join_all(tasks).await;
        assert!(served.iter().all(|(served_by, ..)| served_by == owner), "{gateway}: {served:?}");
    }
    let view = nodes["aloof"].node.view();
    let east = view.peers.iter().find(|peer| peer.name == node_name("east")).unwrap().link.as_ref().unwrap();
    assert_eq!(east.kept_out.iter().map(ToString::to_string).collect::<Vec<_>>(), ["chat"]);
    // Its only pool gone, a gateway has none, however idle the forbidden one is.
    nodes.remove("west");
    let request = TaskRequest::completion("x").client(client("a"));
    let is_there = |pool: &orchestrator_core::PoolView| pool.replicas.iter().any(|replica| replica.state.is_ready());
    until("the pool is gone", || !nodes["south"].orchestrator().pools().iter().any(is_there)).await;
    let refused = nodes["south"].orchestrator().submit(request).await.err().map(|error| error.code);
    println!("with the one that it may use gone: {refused:?}");
    assert!(matches!(refused, Some(ErrorCode::PoolUnavailable | ErrorCode::PoolUnready)), "{refused:?}");
}

/// As many tasks as there are places, over and over: none waits at a full node while another has a place for it.
#[tokio::test(start_paused = true)]
async fn no_task_waits_at_a_full_node_beside_a_free_place() {
    const TOKENS: u32 = 100;
    let wires = Arc::<Wires>::default();
    let nodes = four(&wires).await;
    let begin = tokio::time::Instant::now();
    let work = (0..8).map(|_| async {
        for _ in 0..50 {
            turn(&nodes["front"], "front", TaskRequest::completion("x").max_tokens(TOKENS)).await;
        }
    });
    futures_util::future::join_all(work).await;
    let (took, ideal) = (begin.elapsed(), Duration::from_millis(50 * u64::from(TOKENS)));
    println!("400 tasks in 8 places of two nodes took {took:?}; with every place in use {ideal:?}");
    assert!(took < ideal.mul_f64(1.15));
}

/// A task that waits at a full node goes where a place becomes free first.
#[tokio::test(start_paused = true)]
async fn a_task_that_waits_at_a_full_node_goes_where_a_place_comes_free() {
    let wires = Arc::<Wires>::default();
    let nodes = four(&wires).await;
    // All eight places are taken, and one task waits at each node.
    let mut running = Vec::new();
    for number in 0..10 {
        let request = TaskRequest::completion(format!("long {number}")).max_tokens(2_000);
        running.push(nodes["front"].orchestrator().submit(request).await.expect("accepted"));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let waits = |task: &&orchestrator_core::Submitted| {
        let view = nodes["front"].orchestrator().task(&task.task_id).expect("known");
        view.replica_id.is_none() || view.tokens_out == 0
    };
    let waiting: Vec<_> = running.iter().filter(waits).map(|task| task.task_id.clone()).collect();
    assert_eq!(waiting.len(), 2, "{waiting:?}");
    // All that run at one of the nodes end: both that wait go there.
    let of = |task: &&orchestrator_core::Submitted| {
        let view = nodes["front"].orchestrator().task(&task.task_id).expect("known");
        !waiting.contains(&task.task_id) && view.replica_id.is_some_and(|replica| replica.to_string().contains(":two"))
    };
    let at_two: Vec<_> = running.iter().filter(of).map(|task| task.task_id.clone()).collect();
    assert_eq!(at_two.len(), 4);
    let begin = tokio::time::Instant::now();
    at_two.iter().for_each(|id| drop(nodes["front"].orchestrator().cancel(id)));
    let began = |id: &orchestrator_core::TaskId| nodes["front"].orchestrator().task(id).expect("known").tokens_out > 0;
    until("both run", || waiting.iter().all(began)).await;
    println!("two tasks, each of which waited at another node, run {:?} behind the first free places", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_millis(120));
}

/// A law that comes with a new configuration holds for what is there already: a gateway's attempts leave the pool, and
/// go on elsewhere.
#[tokio::test(start_paused = true)]
async fn a_law_that_comes_later_holds_for_what_runs_already() {
    let wires = Arc::<Wires>::default();
    let nodes = four(&wires).await;
    let mut readers = Vec::new();
    for number in 0..12 {
        let request = TaskRequest::completion(format!("prompt {number}")).max_tokens(400);
        let submitted = nodes["front"].orchestrator().submit(request).await.expect("accepted");
        readers.push(tokio::spawn(read_whole(submitted.stream())));
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    let guests = nodes["one"].node.view().guests_open;
    assert!(guests >= 4, "{guests}");
    let mut next = (*nodes["one"].orchestrator().config()).clone();
    let mut chat = next.pools.remove(0);
    chat.anti_affinity.node = vec!["front".to_owned()];
    let builder = Orchestrator::builder().config(next).pool(chat, SimEngine::new);
    nodes["one"].orchestrator().reconfigure(builder).expect("it can be");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(nodes["one"].node.view().guests_open, 0, "of {guests}");
    for reader in readers {
        assert!(matches!(reader.await.unwrap().1, Event::End(_)));
    }
    until("the gateway has the other pool alone", || serves(&nodes["front"], 1)).await;
    assert_eq!(nodes["one"].node.view().guests_open, 0);
}
