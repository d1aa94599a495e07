//! Quotas of clients over all nodes: what runs and what waits at once, whichever gateways it came through.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use orchestrator_core::config::{ClientConfig, PoolConfig, QuotaConfig};
use orchestrator_core::core::node::PROTOCOLS;
use orchestrator_core::{Config, Env, Event, TaskRequest};

use super::network::Wires;
use super::world::{Living, node_name, start_node_with};
use crate::support::{client, millisecond, pool};

const NAMES: [&str; 3] = ["a", "b", "c"];
const RUNNING: i64 = 6;
const QUEUED: i64 = 30;

/// Tasks of the client over all nodes: how many run and wait now, and the most that ever did.
#[derive(Default)]
struct Count {
    running: AtomicI64,
    waiting: AtomicI64,
    worst: [AtomicI64; 2],
    ended: AtomicI64,
}

impl Count {
    fn note(&self, running: i64, waiting: i64) {
        let now =
            [self.running.fetch_add(running, Relaxed) + running, self.waiting.fetch_add(waiting, Relaxed) + waiting];
        for (worst, now) in self.worst.iter().zip(now) {
            worst.fetch_max(now, Relaxed);
        }
    }
}

async fn three(wires: &Arc<Wires>) -> Vec<Living> {
    let quotas = QuotaConfig { running: Some(RUNNING as u32), queued: Some(QUEUED as u32), ..QuotaConfig::default() };
    let limited = ClientConfig { quotas, ..ClientConfig::default() };
    let settings = Config { clients: [("greedy".to_owned(), limited)].into(), ..Config::default() };
    let mut nodes = Vec::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let others: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
        let chat = PoolConfig { ctx: Some(65_536), ..pool("chat", 1, 64, millisecond()) };
        let (env, pools) = (Env::simulated(index as u64), vec![chat]);
        nodes.push(start_node_with(wires, env, (name, &others), pools, settings.clone(), PROTOCOLS).await);
    }
    for node in &nodes {
        node.node.until_linked(&NAMES.map(node_name)).await;
        node.orchestrator().until_ready().await;
    }
    nodes
}

/// Submits a task at this node, if the node takes it, and counts it until its end.
async fn submit(node: &Living, count: &Arc<Count>, tokens: u32) -> bool {
    let request = TaskRequest::completion("x").max_tokens(tokens).client(client("greedy"));
    let Ok(submitted) = node.orchestrator().submit(request).await else { return false };
    count.note(0, 1);
    let (count, mut stream) = (count.clone(), submitted.stream());
    tokio::spawn(async move {
        while let Some((_, event)) = stream.next().await {
            match event {
                Event::Started(_) => count.note(1, -1),
                Event::End(_) => {
                    count.note(-1, 0);
                    count.ended.fetch_add(1, Relaxed);
                }
                _ => {}
            }
        }
    });
    true
}

/// Six tasks at once are six at once, and thirty that wait are thirty, whichever nodes they come through, and whoever
/// is cut off.
#[tokio::test(start_paused = true)]
async fn a_quota_holds_over_all_gateways() {
    let wires = Arc::<Wires>::default();
    let nodes = three(&wires).await;
    let count = Arc::<Count>::default();
    // Attempts a second at each gateway, and what is cut off.
    let phases: [([u64; 3], Option<&str>); 6] = [
        ([100, 0, 0], None),
        ([0, 100, 0], None),
        ([100, 100, 100], None),
        ([100, 5, 5], None),
        ([100, 100, 5], Some("a")),
        ([5, 100, 100], None),
    ];
    let mut served = Vec::new();
    for (rates, cut) in phases {
        for other in NAMES.iter().filter(|other| cut.is_some_and(|cut| cut != **other)) {
            wires.cut(&node_name(cut.unwrap()), &node_name(other));
            wires.cut(&node_name(other), &node_name(cut.unwrap()));
        }
        let before = count.ended.load(Relaxed);
        for tick in 0..12_000_u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for (node, rate) in nodes.iter().zip(rates) {
                if tick * rate / 1000 != (tick + 1) * rate / 1000 {
                    submit(node, &count, 200).await;
                }
            }
        }
        served.push(count.ended.load(Relaxed) - before);
        wires.mend();
    }
    let worst = [&count.worst[0], &count.worst[1]].map(|worst| worst.load(Relaxed));
    println!("at most {worst:?} ran and waited, of {RUNNING} and {QUEUED}; in each 12 s ended {served:?}, of 360");
    // Parts are rounded up at each node.
    let over = NAMES.len() as i64 - 1;
    assert!(worst[0] <= RUNNING + over && worst[1] <= QUEUED + over, "{worst:?}");
    assert!(served[0] > 200 && served[2] > 200, "and the client gets what is its own: {served:?}");
}

/// What a node had running when the load went elsewhere counts until it ends, however long that takes.
#[tokio::test(start_paused = true)]
async fn a_quota_counts_what_runs_on_where_the_load_has_left() {
    let wires = Arc::<Wires>::default();
    let nodes = three(&wires).await;
    let count = Arc::<Count>::default();
    // Ten seconds of short tasks, so that the whole is at the first node, and then long ones.
    for _ in 0..1_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        submit(&nodes[0], &count, 20).await;
    }
    for _ in 0..RUNNING {
        submit(&nodes[0], &count, 30_000).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let at_first = count.running.load(Relaxed);
    for _ in 0..2_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        submit(&nodes[1], &count, 20).await;
    }
    let (ran, worst) = (count.running.load(Relaxed), count.worst[0].load(Relaxed));
    println!("{at_first} long tasks at the first node, {ran} run 20 s later, at most {worst} ever did");
    assert!(at_first >= RUNNING - 1 && worst <= RUNNING + 2, "{at_first} {worst}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((count.running.load(Relaxed), count.waiting.load(Relaxed)), (0, 0), "all of them come to their ends");
}
