//! Nodes that find each other by a name, come, move and go for good.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::Env;
use orchestrator_core::core::node::PROTOCOLS;

use super::network::Wires;
use super::world::{Living, config, node_name, start_node_with, until};
use crate::support::{millisecond, pool};

/// A node that knows nothing but the name.
async fn start(wires: &Arc<Wires>, number: u64, name: &str) -> Living {
    let mut settings = config(name);
    settings.cluster.as_mut().unwrap().dns = Some("nodes.example.org:7710".to_owned());
    let pools = vec![pool("chat", 1, 2, millisecond())];
    start_node_with(wires, Env::simulated(number), (name, &[]), pools, settings, PROTOCOLS).await
}

fn linked(node: &Living) -> Vec<String> {
    let peers = node.node.view().peers;
    peers.iter().filter(|peer| peer.link.is_some()).map(|peer| peer.name.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_find_each_other_by_a_name_and_forget_who_is_gone_for_good() {
    let wires = Arc::<Wires>::default();
    wires.list(&["c", "a", "b"]);
    let mut nodes = BTreeMap::new();
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        nodes.insert(name, start(&wires, number as u64, name).await);
    }
    let begin = tokio::time::Instant::now();
    until("all three are linked", || nodes.values().all(|node| linked(node).len() == 2)).await;
    println!("three nodes that knew a name are linked after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(6));
    // Two that find each other at the same moment may make a link anew; then they stay.
    let links_made = || -> Vec<u64> {
        nodes.values().flat_map(|node| node.node.view().peers.into_iter().map(|peer| peer.links_made)).collect()
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    let made = links_made();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(links_made(), made, "no link is ended for another");
    assert!(made.iter().all(|made| *made <= 2), "{made:?}");
    // One more, and every other node finds it.
    wires.list(&["a", "b", "c", "d"]);
    let begin = tokio::time::Instant::now();
    nodes.insert("d", start(&wires, 3, "d").await);
    until("all four are linked", || nodes.values().all(|node| linked(node).len() == 3)).await;
    println!("a fourth is linked after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(6));
    // It starts again: whoever knows where it was dials it at once.
    nodes.remove("d");
    until("it is missed", || linked(&nodes["a"]).len() == 2).await;
    let begin = tokio::time::Instant::now();
    nodes.insert("d", start(&wires, 4, "d").await);
    until("it is back", || nodes.values().all(|node| linked(node).len() == 3)).await;
    println!("started again, it is linked after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
    // It goes for good: as long as the name stands for it, it may come back; then it is forgotten, with its pools.
    let knows = |node: &Living| {
        let pools = node.orchestrator().pools().iter().any(|pool| pool.pool_id.to_string() == "chat:d");
        (node.node.view().peers.iter().any(|peer| peer.name == node_name("d")), pools)
    };
    until("its pool is there", || knows(&nodes["a"]).1).await;
    nodes.remove("d");
    tokio::time::sleep(Duration::from_secs(1_200)).await;
    assert_eq!(knows(&nodes["a"]), (true, true), "its address is listed still");
    wires.list(&["a", "b", "c"]);
    let begin = tokio::time::Instant::now();
    while nodes.values().any(|node| knows(node) != (false, false)) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(begin.elapsed() < Duration::from_secs(620), "{:?}", knows(&nodes["a"]));
    }
    println!("unlisted, it is forgotten after {:?}", begin.elapsed());
    assert!(nodes.values().all(|node| linked(node).len() == 2), "and all others are there");
}
