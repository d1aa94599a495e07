//! One client at a hundred times its share beside nine that keep to theirs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use orchestrator_core::config::{QueueConfig, SimConfig};
use orchestrator_core::core::queue::overflow::FullPolicy;
use orchestrator_core::{Env, ErrorCode, Event, Orchestrator, TaskRequest};

use crate::support::{World, client, pool, read_whole, start};

/// Mean run, in seconds: 20 tokens of 10 ms.
const RUN_S: f64 = 0.2;

/// A tenth of the tasks that so many slots end in a second.
fn share_per_s(slots: u32) -> f64 {
    f64::from(slots) / RUN_S / 10.0
}

/// What became of one client's tasks.
#[derive(Clone, Default)]
struct Fate {
    sent: u64,
    refused: u64,
    evicted: u64,
    /// Weighted tokens delivered while everybody sent.
    service: u64,
    queue_ms: Vec<f64>,
}

async fn send(
    orchestrator: Orchestrator,
    number: usize,
    [prompt, output]: [u32; 2],
    seconds: u64,
    fate: Arc<Mutex<Fate>>,
) {
    fate.lock().unwrap().sent += 1;
    let request = TaskRequest::completion("x ".repeat(prompt as usize)).max_tokens(output);
    let submitted = match orchestrator.submit(request.client(client(&format!("c{number}")))).await {
        Ok(submitted) => submitted,
        Err(error) => {
            assert!(error.retry_after_ms.is_some_and(|wait| wait > 0), "a refusal says when to come back: {error}");
            fate.lock().unwrap().refused += 1;
            return;
        }
    };
    let (_, end) = read_whole(submitted.stream()).await;
    let now_s = orchestrator.env().now().as_micros() / 1_000_000;
    let mut fate = fate.lock().unwrap();
    match end {
        Event::End(end) => {
            fate.queue_ms.push(end.queue_ms);
            if (5..seconds).contains(&now_s) {
                fate.service += u64::from(end.tokens_in.0) + 2 * u64::from(end.tokens_out);
            }
        }
        Event::Error(error) if error.code == ErrorCode::QueueFullDropLru => fate.evicted += 1,
        other => panic!("{other:?}"),
    }
}

/// Sends tasks at this rate, at random moments (a Poisson process), until the time is over.
async fn client_loop(orchestrator: Orchestrator, number: usize, per_s: f64, seconds: u64, fate: Arc<Mutex<Fate>>) {
    let mut dice = fastrand::Rng::with_seed(number as u64);
    let mut tasks = tokio::task::JoinSet::new();
    let begin = tokio::time::Instant::now();
    let mut due = 0.0;
    loop {
        due -= (1.0 - dice.f64()).ln() / per_s;
        if due > seconds as f64 {
            break;
        }
        tokio::time::sleep_until(begin + Duration::from_secs_f64(due)).await;
        tasks.spawn(send(orchestrator.clone(), number, [dice.u32(10..=30), dice.u32(10..=30)], seconds, fate.clone()));
    }
    while tasks.join_next().await.is_some_and(|ended| ended.is_ok()) {}
}

/// Nine clients at this part of their share.
struct Scenario {
    policy: FullPolicy,
    slots: u32,
    part: f64,
    seconds: u64,
}

impl Scenario {
    /// Runs it, perhaps beside a flood.
    async fn run(&self, flood: bool) -> Vec<Fate> {
        let Scenario { policy, slots, part, seconds } = *self;
        let sim = SimConfig { first_token_us: 10_000, token_us: 10_000, preload_us: 0, ..SimConfig::default() };
        let mut config = pool("a", 1, slots, sim);
        config.bytes_per_token = 2;
        config.queue = QueueConfig { full_policy: policy, ..QueueConfig::default() };
        let World { orchestrator, .. } = start(Env::simulated(1), vec![config]).await;
        orchestrator.until_ready().await;
        let fates: Vec<Arc<Mutex<Fate>>> = (0..10).map(|_| Arc::default()).collect();
        let rates =
            (0..10).map(|number| if number < 9 { part * share_per_s(slots) } else { 100.0 * share_per_s(slots) });
        let clients = rates.enumerate().filter(|(number, _)| flood || *number < 9);
        let loops = clients
            .map(|(number, rate)| client_loop(orchestrator.clone(), number, rate, seconds, fates[number].clone()));
        futures_util::future::join_all(loops).await;
        fates.iter().map(|fate| fate.lock().unwrap().clone()).collect()
    }
}

fn p99(fates: &[Fate]) -> f64 {
    let mut all: Vec<f64> = fates.iter().flat_map(|fate| fate.queue_ms.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() * 99 / 100]
}

fn jain(service: &[f64]) -> f64 {
    let (sum, squares): (f64, f64) = (service.iter().sum(), service.iter().map(|x| x * x).sum());
    sum * sum / (service.len() as f64 * squares)
}

fn service(fates: &[Fate]) -> Vec<f64> {
    fates.iter().map(|fate| fate.service as f64).collect()
}

fn lost(fates: &[Fate]) -> u64 {
    fates.iter().map(|fate| fate.refused + fate.evicted).sum()
}

/// The polite send half of their share. Fair is then what they ask for, and the rest to the flood (max-min fairness);
/// Jain's index is of what each got, beside that.
///
/// With one slot, tasks wait without a flood too, and the flood may double that. With eight, hardly any ever waits; a
/// flood that keeps every slot busy then makes a task wait for one to become free, for less than a mean run.
#[tokio::test(start_paused = true)]
async fn a_flood_costs_the_polite_nothing_whatever_the_policy() {
    println!("policy, slots: p99 queue time of the polite without and with the flood; losses; Jain's index");
    for (policy, (slots, seconds)) in
        FullPolicy::ALL.into_iter().flat_map(|policy| [(policy, (1, 450)), (policy, (8, 40))])
    {
        let world = Scenario { policy, slots, part: 0.5, seconds };
        let (quiet, flooded) = (world.run(false).await, world.run(true).await);
        let (before, after) = (p99(&quiet[..9]), p99(&flooded[..9]));
        let (polite, flood) = (&flooded[..9], &flooded[9]);
        let mut fair = service(&quiet);
        fair[9] = service(&flooded).iter().sum::<f64>() - fair.iter().sum::<f64>();
        let index = jain(&service(&flooded).iter().zip(&fair).map(|(got, fair)| got / fair).collect::<Vec<_>>());
        println!(
            "{:17} {slots}: {before:.0} and {after:.0} ms (x {:.2}); polite {} sent, {} lost; flood {} sent, {} refused, {} evicted; {index:.4}",
            policy.as_str(),
            after / before,
            polite.iter().map(|fate| fate.sent).sum::<u64>(),
            lost(polite),
            flood.sent,
            flood.refused,
            flood.evicted
        );
        assert_eq!(lost(polite), 0, "the polite lose nothing");
        assert!(flood.refused + flood.evicted > flood.sent / 2, "the flood goes");
        assert!(after <= 2.0 * before || after <= before + 1_000.0 * RUN_S, "{before} ms and {after} ms");
        assert!(slots > 1 || after <= 2.0 * before, "within twice: {before} ms and {after} ms");
        assert!(index >= 0.99, "Jain's index of the service: {index}");
    }
}

/// Everybody asks for more than its share: each gets the same.
#[tokio::test(start_paused = true)]
async fn a_flood_gets_no_more_than_others_who_want_more_than_their_share() {
    for policy in FullPolicy::ALL {
        let fates = Scenario { policy, slots: 8, part: 1.3, seconds: 30 }.run(true).await;
        let index = jain(&service(&fates));
        println!("{}: Jain's index of ten backlogged clients, one of them a flood: {index:.5}", policy.as_str());
        assert!(index >= 0.99, "{index}");
    }
}
