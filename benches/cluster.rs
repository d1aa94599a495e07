//! What another node costs: a task that runs there beside one that runs here, tokens over one link, and one to four
//! nodes. Real connections on loopback, with TLS, all nodes in one process:
//! `cargo bench --features cluster --bench cluster`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use orchestrator_core::cluster::identity::CertificateFiles;
use orchestrator_core::cluster::{Acceptor, Cookie, Identity, Node, NodeArgs, NodePolicy, Roster, TlsNetwork};
use orchestrator_core::config::{
    ClusterConfig, DeviceRef, NodeAntiAffinity, NodeTlsConfig, PoolConfig, ReplicaConfig, SimConfig,
};
use orchestrator_core::core::node::{BootId, NodeName};
use orchestrator_core::gpu::SimEngine;
use orchestrator_core::{Config, Env, Event, Orchestrator, TaskRequest};
use tokio::net::TcpListener;

const COOKIE: &[u8] = b"a cookie of thirty-two bytes, or";

struct Authority {
    folder: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("orchestrator-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { folder, issuer: rcgen::Issuer::new(params, key) }
    }

    fn identity(&self, name: &NodeName) -> Identity {
        let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let at = |what: &str| self.folder.join(what).display().to_string();
        let (certificate, key_file) = (at(&format!("{name}.pem")), at(&format!("{name}.key")));
        std::fs::write(&certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let files = CertificateFiles { ca: at("ca.pem"), certificate, key: key_file, crl: None };
        Identity::load(name.clone(), Cookie::new(COOKIE).unwrap(), &files).unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn pool(id: &str, slots: u32, token_us: u64) -> PoolConfig {
    let sim = SimConfig { first_token_us: token_us, token_us, preload_us: 0, ..SimConfig::default() };
    let replicas = vec![ReplicaConfig { devices: vec![DeviceRef::Index(0)], ..ReplicaConfig::default() }];
    PoolConfig { slots, replicas, sim: Some(sim), self_test: false, ..PoolConfig::new(id, "sim", "tiny") }
}

async fn node(
    authority: &Authority,
    name: &str,
    peers: &[(NodeName, String)],
    pools: Vec<PoolConfig>,
) -> (Node, String) {
    let file = String::new();
    let tls = NodeTlsConfig { ca_file: file.clone(), certificate_file: file.clone(), key_file: file.clone() };
    let cluster = ClusterConfig {
        name: name.into(),
        listen: String::new(),
        peers: BTreeMap::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        dns: None,
        tls,
        crl_file: None,
        cookie_file: file,
        zone: None,
        anti_affinity: NodeAntiAffinity::default(),
    };
    let mut builder = Orchestrator::builder().config(Config { cluster: Some(cluster), ..Config::default() });
    for pool in pools {
        builder = builder.pool(pool, SimEngine::new);
    }
    let orchestrator = builder.start().await.unwrap();
    let name = NodeName::parse(name).unwrap();
    let (env, identity) = (Env::real(), authority.identity(&name));
    let boot_id = BootId(env.random());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let args = NodeArgs {
        name,
        boot_id,
        zone: None,
        anti_affinity: NodeAntiAffinity::default(),
        cookie: Cookie::new(COOKIE).unwrap(),
        peers: peers.to_vec(),
        dns: None,
        roster: Roster::open(),
        policy: NodePolicy::default(),
    };
    let network = |linked| TlsNetwork::open(Acceptor::new(identity, env, boot_id, linked), listener);
    (Node::start(orchestrator, args, network).await.unwrap(), address)
}

/// A gateway and so many owners; returns when every owner's pool is Ready at the gateway.
async fn cluster(
    authority: &Authority,
    owners: usize,
    own: Vec<PoolConfig>,
    slots: u32,
    token_us: u64,
) -> (Node, Vec<Node>) {
    let mut nodes = Vec::new();
    let mut peers = Vec::new();
    for index in 0..owners {
        let name = format!("owner-{owners}-{index}");
        let (owner, address) = node(authority, &name, &[], vec![pool("far", slots, token_us)]).await;
        peers.push((NodeName::parse(&name).unwrap(), address));
        nodes.push(owner);
    }
    let expected = own.len() + owners;
    let (front, _) = node(authority, &format!("a-front-{owners}"), &peers, own).await;
    let ready = |front: &Node| {
        let pools = front.orchestrator().pools();
        pools.len() == expected && pools.iter().all(|pool| pool.replicas[0].state.is_ready())
    };
    while !ready(&front) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (front, nodes)
}

/// Time to the first token, and to the end, of one task.
async fn one(orchestrator: &Orchestrator, model: &str, tokens: u32) -> (Duration, u32) {
    let begin = Instant::now();
    let request =
        TaskRequest { model_ref: Some(model.into()), ..TaskRequest::completion("the sky is").max_tokens(tokens) };
    let mut stream = orchestrator.submit(request).await.unwrap().stream();
    let (mut first, mut count) = (None, 0);
    while let Some((_, event)) = stream.next().await {
        if let Event::Token { .. } = event {
            first.get_or_insert_with(|| begin.elapsed());
            count += 1;
        }
    }
    (first.unwrap(), count)
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize]
}

/// So many tasks, so many at once: tokens a second, CPU time, and the times to first tokens.
async fn many(
    orchestrator: &Orchestrator,
    at_once: usize,
    tasks: usize,
    tokens: u32,
) -> (f64, Duration, Vec<Duration>) {
    let (begin, cpu) = (Instant::now(), ProcessTime::now());
    let work = (0..at_once).map(|_| {
        let orchestrator = orchestrator.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..tasks / at_once {
                let (first, count) = one(&orchestrator, "tiny", tokens).await;
                assert_eq!(count, tokens);
                times.push(first);
            }
            times
        })
    });
    let mut times = Vec::new();
    for work in work.collect::<Vec<_>>() {
        times.extend(work.await.unwrap());
    }
    let rate = (tasks / at_once * at_once) as f64 * f64::from(tokens) / begin.elapsed().as_secs_f64();
    (rate, cpu.elapsed(), times)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let authority = Authority::new();
        // The same pool here and there, under two names of models, so that each task says where it goes.
        let near = PoolConfig { model: "near".into(), ..pool("near", 8, 0) };
        let (front, _owners) = cluster(&authority, 1, vec![near], 8, 0).await;
        let orchestrator = front.orchestrator().clone();
        for model in ["near", "tiny"] {
            for _ in 0..200 {
                one(&orchestrator, model, 8).await;
            }
        }
        let (mut near, mut far) = (Vec::new(), Vec::new());
        let mut cpu = [Duration::ZERO; 2];
        for _ in 0..3_000 {
            for (index, (model, times)) in [("near", &mut near), ("tiny", &mut far)].into_iter().enumerate() {
                let before = ProcessTime::now();
                times.push(one(&orchestrator, model, 8).await.0);
                cpu[index] += before.elapsed();
            }
        }
        let shown = |times: &mut [Duration]| (percentile(times, 0.5), percentile(times, 0.99));
        let ((near_p50, near_p99), (far_p50, far_p99)) = (shown(&mut near), shown(&mut far));
        println!("first token, one task at a time: here {near_p50:?} / {near_p99:?}, there {far_p50:?} / {far_p99:?} (p50/p99)");
        println!("added by the link: {:?} / {:?}", far_p50.saturating_sub(near_p50), far_p99.saturating_sub(near_p99));
        let [near, far] = cpu.map(|cpu| cpu / 3_000);
        println!("CPU of a task of 8 tokens, both nodes and the client: here {near:?}, there {far:?}");
        drop((front, _owners, orchestrator));

        let (front, _owners) = cluster(&authority, 1, Vec::new(), 32, 0).await;
        let (rate, cpu, _) = many(front.orchestrator(), 32, 960, 2_000).await;
        println!("tokens over one link: {rate:.0} a second, {:.2} us of CPU each", cpu.as_secs_f64() * 1e6 / (960.0 * 2_000.0));
        drop((front, _owners));

        let mut first = None;
        for owners in [1, 2, 4] {
            let (front, _owners) = cluster(&authority, owners, Vec::new(), 8, 5_000).await;
            let (rate, _, mut times) = many(front.orchestrator(), 8 * owners, 24 * owners, 100).await;
            let first = *first.get_or_insert(rate);
            println!(
                "{owners} nodes of 8 slots at 200 tokens a second: {rate:.0} tokens a second, {:.2} times one node; first token {:?} (p50), {:?} (longest)",
                rate / first,
                percentile(&mut times, 0.5),
                percentile(&mut times, 1.0)
            );
        }
    });
}
