//! Two tenants at one busy pool, one with three times the weight of the other:
//! `cargo run --release --example tenants`.
//!
//! Both always have tasks waiting; the light one sends ten times as many. What each gets follows from its weight alone,
//! within the bound F1 of FAIRNESS.md.

#![allow(clippy::print_stdout)] // A program that prints.

use std::collections::BTreeMap;
use std::error::Error;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use orchestrator_core::config::ClientConfig;
use orchestrator_core::prelude::*;

const TOKENS: u32 = 32;
/// Tasks that end while both tenants have some waiting.
const COUNTED: usize = 200;
/// Tenant, weight, and tasks that it sends.
const TENANTS: [(&str, u32, usize); 2] = [("gold", 3, 200), ("free", 1, 2_000)];

/// Tokens that each tenant got.
async fn run(env: Env) -> Result<BTreeMap<&'static str, u32>, Box<dyn Error>> {
    let mut pool = PoolConfig::new("shared", "sim", "small");
    pool.slots = 1;
    pool.queue.capacity = 4_096;
    let clients =
        TENANTS.map(|(name, weight, _)| (name.to_owned(), ClientConfig { weight, ..ClientConfig::default() }));
    let config = Config { clients: clients.into(), ..Config::default() };
    let orchestrator = Orchestrator::builder().config(config).pool(pool, SimEngine::new).env(env).start().await?;
    orchestrator.until_ready().await;

    let mut ends = FuturesUnordered::new();
    for (name, _, tasks) in TENANTS {
        let client = ClientId::parse(name)?;
        for number in 0..tasks {
            let request = TaskRequest::completion(format!("{name} {number}")).max_tokens(TOKENS).client(client.clone());
            let submitted = orchestrator.submit(request).await?;
            ends.push(async move {
                submitted.stream().collect().await;
                name
            });
        }
    }
    let mut tokens = BTreeMap::new();
    for name in ends.by_ref().take(COUNTED).collect::<Vec<_>>().await {
        *tokens.entry(name).or_default() += TOKENS;
    }
    drop(ends);
    orchestrator.stop(std::time::Duration::ZERO).await;
    Ok(tokens)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    for (name, tokens) in run(Env::real()).await? {
        println!("{name}: {tokens} tokens");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tokens_are_shared_by_weight_whoever_sends_more() {
    let tokens = run(Env::simulated(11)).await.expect("runs");
    let (gold, free) = (tokens["gold"] / TOKENS, tokens["free"] / TOKENS);
    assert_eq!(gold + free, COUNTED as u32);
    assert!(gold.abs_diff(3 * free) <= 4, "{gold} to {free} tasks; one of each tenant's may be under way");
}
