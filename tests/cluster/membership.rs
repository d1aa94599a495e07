//! Who may link, while nodes run each other's tasks: one that is not listed gets none, one that is put out keeps none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::core::cluster::membership::{Denial, Membership, NamePattern};
use orchestrator_core::core::node::PROTOCOLS;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{Env, Event, TaskRequest};

use super::network::Wires;
use super::world::{Living, config, node_name, start_node, start_node_with, until};
use super::{seed_of, three, whole};
use crate::support::{millisecond, pool, read_whole};

/// Everybody but these.
fn all_but(denied: &[&str]) -> Membership {
    let deny = denied.iter().map(|text| Denial::parse(text).unwrap()).collect();
    Membership::new(BTreeSet::new(), vec![NamePattern::parse("*").unwrap()], deny)
}

fn is_linked(living: &Living, name: &str) -> bool {
    living.node.view().peers.iter().any(|peer| peer.name == node_name(name) && peer.link.is_some())
}

fn trouble(living: &Living, name: &str) -> String {
    let peers = living.node.view().peers;
    peers.into_iter().find(|peer| peer.name == node_name(name)).and_then(|peer| peer.trouble).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_listed_is_refused_and_runs_nothing() {
    let wires = Arc::<Wires>::default();
    let engine = || vec![pool("chat", 1, 2, millisecond())];
    let mut listing = config("front");
    listing.cluster.as_mut().unwrap().allow = vec!["one".to_owned()];
    let front = start_node_with(&wires, Env::simulated(1), ("front", &["one"]), Vec::new(), listing, PROTOCOLS).await;
    let one = start_node(&wires, Env::simulated(2), "one", &["front"], engine()).await;
    // It has all that a node needs, dials by itself, and serves the same model.
    let rogue = start_node(&wires, Env::simulated(3), "rogue", &["front"], engine()).await;
    front.node.until_linked(&[node_name("one")]).await;
    until("the rogue has been told why", || trouble(&rogue, "front").contains("node rogue is not listed")).await;
    until("the pool of the other is there", || {
        front.orchestrator().pools().iter().any(|pool| pool.replicas.iter().all(|replica| replica.state.is_ready()))
    })
    .await;
    let tasks = (0..8).map(|number| {
        let front = &front;
        async move { whole(front, &format!("prompt {number}"), 10).await }
    });
    futures_util::future::join_all(tasks).await;
    let taken = [&one, &rogue].map(|node| node.node.view().guests_taken);
    assert!(taken[0] >= 8 && taken[1] == 0, "{taken:?}");
    let known: Vec<String> = front.node.view().peers.iter().map(|peer| peer.name.to_string()).collect();
    assert_eq!(known, ["one"], "nothing is kept of who was refused");
    // Once it is listed it comes by itself.
    front.roster.set(Membership::open());
    until("it is linked", || is_linked(&rogue, "front")).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_put_out_loses_its_tasks_to_others_and_every_task_ends() {
    const TOKENS: u32 = 2_000;
    let wires = Arc::<Wires>::default();
    let [front, one, two] = three(&wires, 4).await;
    let mut readers = Vec::new();
    for number in 0..8 {
        let request = TaskRequest::completion(format!("prompt {number}")).max_tokens(TOKENS);
        let submitted = front.orchestrator().submit(request).await.expect("accepted");
        readers.push((number, submitted.task_id.clone(), tokio::spawn(read_whole(submitted.stream()))));
    }
    until("both run some", || [&one, &two].iter().all(|node| node.node.view().guests_open > 0)).await;
    let begin = tokio::time::Instant::now();
    front.roster.set(all_but(&["one"]));
    until("the link is cut", || !is_linked(&front, "one") && !is_linked(&one, "front")).await;
    println!("a denied node is put out after {:?}", begin.elapsed());
    assert!(begin.elapsed() <= Duration::from_secs(2));
    for (number, id, reader) in readers {
        let (text, end) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "{end:?}");
        assert_eq!(text, undisturbed(&format!("prompt {number}"), seed_of(&front, &id), TOKENS, "1", "tiny"));
    }
    until("nothing of the front's is left there", || one.node.view().guests_open == 0).await;
    until("and both know why", || {
        trouble(&front, "one").contains("denied by cluster.deny (one)") && trouble(&one, "front").contains("denied")
    })
    .await;
    assert!(is_linked(&front, "two"), "nobody else is put out");
    let taken = one.node.view().guests_taken;
    whole(&front, "behind it", 10).await;
    assert_eq!(one.node.view().guests_taken, taken);
    front.roster.set(Membership::open());
    until("it may come again", || is_linked(&front, "one")).await;
}

/// Where nodes are found by a name, too, only those that may come are linked.
#[tokio::test(start_paused = true)]
async fn of_nodes_that_are_found_by_a_name_only_the_allowed_are_linked() {
    let wires = Arc::<Wires>::default();
    wires.list(&["front", "worker-1", "other"]);
    let mut nodes = Vec::new();
    for (number, name) in ["front", "worker-1", "other"].into_iter().enumerate() {
        let mut settings = config(name);
        let cluster = settings.cluster.as_mut().unwrap();
        cluster.dns = Some("nodes.example.org:7710".to_owned());
        cluster.allow = if name == "front" { vec!["worker-*".to_owned()] } else { Vec::new() };
        let env = Env::simulated(number as u64);
        nodes.push(start_node_with(&wires, env, (name, &[]), Vec::new(), settings, PROTOCOLS).await);
    }
    until("the worker is linked", || is_linked(&nodes[0], "worker-1") && is_linked(&nodes[2], "worker-1")).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!is_linked(&nodes[0], "other") && !is_linked(&nodes[2], "front"));
    nodes[0].roster.set(all_but(&[]));
    until("the other is linked", || is_linked(&nodes[0], "other")).await;
}
