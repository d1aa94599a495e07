//! Nodes of simulated engines on wires in memory.
#![allow(dead_code)] // Each program uses its part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::cluster::{Cookie, Node, NodeArgs, NodePolicy, Roster};
use orchestrator_core::config::{ClusterConfig, NodeAntiAffinity, NodeTlsConfig, PoolConfig};
use orchestrator_core::core::node::{BootId, NodeName, PROTOCOLS};
use orchestrator_core::gpu::sim::SimStats;
use orchestrator_core::{Config, Env, Orchestrator};

use super::network::{Port, Wires};
use crate::support::{World, start_with};

pub fn node_name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

/// A node that lives.
pub struct Living {
    pub node: Node,
    pub env: Env,
    pub stats: Vec<Vec<Arc<SimStats>>>,
    /// Who may link with it: everybody, unless its settings say who.
    pub roster: Roster,
}

impl Living {
    pub fn orchestrator(&self) -> &Orchestrator {
        self.node.orchestrator()
    }
}

/// A node of this name, for [`start_node_with`].
pub fn config(name: &str) -> Config {
    let file = String::new();
    let tls = NodeTlsConfig { ca_file: file.clone(), certificate_file: file.clone(), key_file: file.clone() };
    let (name, listen) = (name.to_owned(), String::new());
    let (peers, anti_affinity) = (BTreeMap::new(), NodeAntiAffinity::default());
    let (dns, zone, crl_file) = (None, None, None);
    let (allow, deny) = (vec!["*".to_owned()], Vec::new());
    let cluster =
        ClusterConfig { name, listen, peers, allow, deny, dns, tls, crl_file, cookie_file: file, zone, anti_affinity };
    Config { cluster: Some(cluster), ..Config::default() }
}

/// Starts a node of this name with these pools, which knows all of `others`.
pub async fn start_node(wires: &Arc<Wires>, env: Env, name: &str, others: &[&str], pools: Vec<PoolConfig>) -> Living {
    start_node_with(wires, env, (name, others), pools, Config::default(), PROTOCOLS).await
}

/// The same with settings of its own, and of a build that speaks these protocols.
pub async fn start_node_with(
    wires: &Arc<Wires>,
    env: Env,
    (name, others): (&str, &[&str]),
    pools: Vec<PoolConfig>,
    settings: Config,
    protocols: (u16, u16),
) -> Living {
    let settings = Config { cluster: settings.cluster.or(config(name).cluster), ..settings };
    let cluster = settings.cluster.clone().expect("it is a node");
    let World { orchestrator, stats } = start_with(env.clone(), settings, pools).await;
    let roster = Roster::new(cluster.membership().expect("names of nodes"));
    let (name, boot_id) = (node_name(name), BootId(env.random()));
    let cookie = Cookie::new(b"a cookie of thirty-two bytes, or").unwrap();
    let args = NodeArgs {
        name: name.clone(),
        boot_id,
        zone: cluster.zone,
        anti_affinity: cluster.anti_affinity,
        cookie: cookie.clone(),
        peers: others.iter().map(|other| (node_name(other), (*other).to_owned())).collect(),
        dns: cluster.dns,
        roster: roster.clone(),
        policy: NodePolicy::default(),
    };
    let (wires, of_port, admitted) = (wires.clone(), env.clone(), roster.clone());
    let network = move |linked| {
        Port::new(&wires, of_port, &name, boot_id, cookie, linked).speaking(protocols).admitting(admitted)
    };
    let node = Node::start(orchestrator, args, network).await.expect("starts");
    Living { node, env, stats, roster }
}

/// Waits until something of a node is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("not within a minute: {what}");
}
