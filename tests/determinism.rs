//! The same prompt, parameters and seed give the same bytes on every replica of a set, alone and in a batch, with
//! real engines (ORCH-3050).
//!
//! vLLM takes minutes:
//! `cargo xtask engines --vllm && VLLM=1 cargo test --test suite_engines real_vllm_servers -- --nocapture`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeMap;

use futures_util::StreamExt;
use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::resume::DeterminismClass;
use orchestrator_core::{Event, Orchestrator};

use crate::support::real::{self, request};
use crate::support::{alone, eventually, read_whole};

const PROMPTS: u64 = 50;
/// Tasks that are submitted at once.
const LEVELS: [usize; 3] = [1, 4, 16];

/// The text of each prompt, with so many tasks under way.
async fn texts(orchestrator: &Orchestrator, level: usize) -> BTreeMap<u64, String> {
    let tasks = futures_util::stream::iter(0..PROMPTS).map(async |number| {
        let submitted = orchestrator.submit(request(number)).await.unwrap();
        let (text, end) = read_whole(submitted.stream()).await;
        assert!(matches!(end, Event::End(_)), "prompt {number}: {end:?}");
        (number, text)
    });
    tasks.buffer_unordered(level).collect().await
}

/// Runs every prompt on two replicas at each level, and compares all of it. `may_differ` is for an engine that says of
/// itself that a batch changes its tokens: then only runs alone must be equal, and the others are counted.
async fn two_replicas_say_the_same(pools: [PoolConfig; 2]) {
    let [first, second] = pools;
    // Each in a runtime of its own, so that it is known which replica gave which text.
    let replicas = tokio::join!(real::start(first), real::start(second));
    let replicas = [replicas.0, replicas.1];
    let wanted = texts(&replicas[0], 1).await;
    let distinct: std::collections::BTreeSet<&String> = wanted.values().collect();
    assert!(distinct.len() as u64 > PROMPTS / 2, "the prompts say different things: {}", distinct.len());
    let (mut equal, mut all) = (0, 0);
    for (index, replica) in replicas.iter().enumerate() {
        for level in LEVELS {
            let texts = texts(replica, level).await;
            let same = texts.iter().filter(|(number, text)| wanted[number] == **text).count();
            println!("replica {index}, {level} at once: {same} of {PROMPTS} equal");
            (equal, all) = (equal + same, all + texts.len());
        }
    }
    let pool = replicas[0].pools()[0].clone();
    println!("{}: {equal} of {all} equal, {} slots", pool.engine, pool.slots_total);
    assert_eq!(equal, all, "byte for byte");
    // Nothing is claimed at the start; long runs show it while the replica is idle.
    let class = || replicas[0].pools()[0].replicas[0].self_test.unwrap().determinism_class;
    eventually("long runs have shown a class", || class() >= DeterminismClass::SingleSlot).await;
    println!("{}: class {:?} behind long runs", pool.engine, class());
    for replica in replicas {
        replica.stop(std::time::Duration::MAX).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_real_llamacpp_servers_say_the_same() {
    // One slot each: batches of another size round otherwise in this engine (see ARCHITECTURE.md).
    let Some(pools) = real::llamacpp(1, 1).zip(real::llamacpp(1, 1)) else { return };
    let _alone = alone().await;
    two_replicas_say_the_same(pools.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_real_triton_servers_say_the_same() {
    let Some(pools) = real::triton(1, 4).zip(real::triton(1, 4)) else { return };
    let _alone = alone().await;
    two_replicas_say_the_same(pools.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_real_vllm_servers_say_the_same() {
    let Some(pools) = real::vllm(1, 8).zip(real::vllm(1, 8)) else { return };
    let _alone = alone().await;
    two_replicas_say_the_same(pools.into()).await;
}
