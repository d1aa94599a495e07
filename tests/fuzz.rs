//! Bytes of all kinds into everything that outsiders write: the configuration, the API's JSON, keys, wire messages.
//! `FUZZ_SECONDS` says for how long each is tried. No panic, no standstill.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use orchestrator_core::core::ClientId;
#[cfg(feature = "cluster")]
use orchestrator_core::core::cluster::wire;
#[cfg(feature = "cluster")]
use orchestrator_core::core::node::{BootId, Hello, NodeName, PROTOCOLS};
use orchestrator_core::core::traceparent::TraceParent;
use orchestrator_core::service::api::SubmitBody;
use orchestrator_core::service::config_file;
use orchestrator_core::service::keys::KeyFile;

const YAML: &str = include_str!("../ops/config.yaml");
const TASK: &str = "{\"prompt\":\"x\",\"model_ref\":\"m\",\"max_tokens\":9,\"seed\":1,\"parameters\":{\"temperature\":0.5,\"stop\":[\"a\"]},\
    \"inputs\":[\"y\"],\"workload\":\"rerank\",\"deadline_ms\":7,\"session_id\":\"s\",\"priority\":\"batch\",\"kv_hint\":\"cold\"}";

/// A text with some of its bytes changed, moved, doubled or lost.
fn spoilt(text: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..random.usize(1..10) {
        if bytes.is_empty() {
            break;
        }
        let (at, end) = (random.usize(..bytes.len()), random.usize(..=bytes.len()));
        match random.u8(0..7) {
            0 => bytes[at] = random.u8(..),
            1 => bytes.insert(at, random.u8(..)),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            4 if at < end => bytes.extend_from_within(at..end),
            5 if at < end => drop(bytes.drain(at..end)),
            _ => {
                let words: [&[u8]; 8] = [
                    b"&a [*a, *a]",
                    b"- ",
                    b"{",
                    b"[[[[[[",
                    b"\xff\xfe",
                    b"1e999",
                    b"!!binary ",
                    b"18446744073709551616",
                ];
                let word = words[random.usize(..words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
    bytes
}

fn fuzz(name: &str, seeds: &[&[u8]], mut target: impl FnMut(&[u8])) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let (began, mut random, mut runs, mut slowest) =
        (Instant::now(), fastrand::Rng::with_seed(3), 0_u64, Duration::ZERO);
    while began.elapsed() < Duration::from_secs_f64(seconds) {
        let bytes = spoilt(seeds[random.usize(..seeds.len())], &mut random);
        let one = Instant::now();
        target(&bytes);
        slowest = slowest.max(one.elapsed());
        runs += 1;
    }
    println!("{name}: {runs} inputs, the slowest took {slowest:?}");
    assert!(runs > 20 && slowest < Duration::from_secs(1), "{name}: {runs} runs, {slowest:?}");
}

#[test]
fn whatever_is_written_as_configuration_is_taken_or_refused() {
    let bomb = "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\npools: [*c, *c, *c]\n";
    fuzz("configuration", &[YAML.as_bytes(), bomb.as_bytes()], |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = config_file::parse(text, "fuzz");
        }
    });
}

#[test]
fn whatever_is_sent_as_a_task_is_taken_or_refused() {
    fuzz("task", &[TASK.as_bytes()], |bytes| {
        if let Ok(body) = serde_json::from_slice::<SubmitBody>(bytes) {
            let _ = body.into_request(ClientId::anonymous());
        }
    });
}

#[test]
fn whatever_is_read_as_keys_or_a_trace_is_taken_or_refused() {
    let mut file = KeyFile::default();
    file.add("alice", vec![], 1, Some(2)).unwrap();
    let keys = serde_json::to_vec(&file).unwrap();
    fuzz("keys", &[&keys], |bytes| drop(serde_json::from_slice::<KeyFile>(bytes)));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    fuzz("traceparent", &[parent.as_bytes()], |bytes| drop(TraceParent::parse(&String::from_utf8_lossy(bytes))));
}

/// Every word that nodes say, in one envelope.
#[cfg(feature = "cluster")]
fn envelope() -> Vec<u8> {
    use orchestrator_core::cluster::protocol::{
        Asked, AttemptEnd, AttemptId, AttemptTask, Envelope, LinkMessage, PoolAdvertisement, PoolCapacity, ServedBy,
        WarmSession,
    };
    use orchestrator_core::core::admission::limits::Held;
    use orchestrator_core::core::task::{FinishReason, Priority, TaskRequest};
    use orchestrator_core::core::{ClientId, ErrorCode, PoolId, TaskId};
    use orchestrator_core::gpu::Job;
    let (pool, client) = (PoolId::parse("chat").unwrap(), ClientId::parse("x").unwrap());
    let (request, task_id) = (TaskRequest::completion("the sky is"), TaskId::parse("t").unwrap());
    let job = Job { task_id: &task_id, request: &request, seed: 7, slot: 0, is_self_test: false };
    let card = PoolAdvertisement {
        pool: pool.clone(),
        engine: "sim".into(),
        spec: orchestrator_core::config::PoolConfig::new("chat", "sim", "tiny").model_spec(),
        aliases: vec!["a".into()],
        workloads: Vec::new(),
        bytes_per_token: 4,
        slots: 2,
        determinism_class: None,
        identity: None,
    };
    let failed = AttemptEnd::Failed { code: ErrorCode::WorkerReset, message: "lost".into() };
    let attempt = AttemptId(1);
    let session = orchestrator_core::core::SessionId::parse("s").unwrap();
    let warm = WarmSession { pool: pool.clone(), client: client.clone(), session };
    let held = Held { running: 1, queued: 2, memory_bytes: 3 };
    let asked = Asked { client: client.clone(), tasks: 9, held };
    let words = vec![
        LinkMessage::Pools { cards: vec![card], zone: Some("z".into()), draining: false },
        LinkMessage::Capacity(vec![PoolCapacity { pool: pool.clone(), attempts: 3, is_full: false }]),
        LinkMessage::Warm(vec![warm]),
        LinkMessage::Run { attempt, task: Box::new(AttemptTask::new(pool.clone(), &job)) },
        LinkMessage::Queued(vec![attempt]),
        LinkMessage::Started(attempt),
        LinkMessage::Tokens { attempt, texts: vec![" a".into(), " b".into()] },
        LinkMessage::Credit { attempt, tokens: 2, bytes: 4 },
        LinkMessage::End { attempt, end: AttemptEnd::Done { reason: FinishReason::Stop, tokens_in: 3 } },
        LinkMessage::End { attempt, end: failed },
        LinkMessage::Cancel(attempt),
        LinkMessage::Served(vec![ServedBy { pool, client: client.clone(), class: Priority::Batch, cost: -5 }]),
        LinkMessage::Demand { number: 2, heard: 1, asked: vec![asked] },
    ];
    let envelope = Envelope {
        token: [7; 16],
        protocol: 1,
        boot_id: BootId(9),
        seq: 1,
        ack: 0,
        sent_us: 5,
        echo: (0, 0),
        deadline_ms: 3_000,
        words,
    };
    wire::encode(&envelope).unwrap()
}

#[cfg(feature = "cluster")]
#[test]
fn whatever_comes_as_an_envelope_of_a_node_is_taken_or_refused() {
    use orchestrator_core::cluster::protocol::{Envelope, LinkMessage};
    let seed = envelope();
    assert_eq!(Envelope::read(&seed).expect("it is one").words.len(), 13);
    fuzz("envelope", &[&seed], |bytes| {
        for word in Envelope::read(bytes).map(|envelope| envelope.words).unwrap_or_default() {
            if let LinkMessage::Run { task, .. } = word {
                drop(task.request());
            }
        }
    });
}

#[cfg(feature = "cluster")]
#[test]
fn whatever_comes_as_a_wire_message_is_taken_or_refused() {
    let message = wire::encode(&("text".to_owned(), vec![1_u64, 2, 3], Some(7_u32))).unwrap();
    let name = NodeName::parse("node-7").unwrap();
    let hello = wire::encode(&Hello { protocols: PROTOCOLS, name, boot_id: BootId(7) }).unwrap();
    fuzz("wire", &[&message, &hello], |bytes| {
        drop(wire::decode::<(String, Vec<u64>, Option<u32>)>(bytes));
        drop(wire::decode_within::<Hello, 1024>(bytes));
    });
}
