//! Who guesses is slowed down, and nobody else.

use std::time::Duration;

use super::{guarded, key, keys, with_key};

#[test]
fn guesses_are_slowed_down_and_a_good_key_from_the_same_address_still_opens() {
    let file = keys("guess.json");
    let good = key(&file, "alice", "read", &[]);
    let service = guarded("guess.yaml", &file, "");
    let wrong = format!("oc_000000000000_{}", "0".repeat(64));
    let statuses: Vec<u16> = (0..30).map(|_| with_key(service.port, &wrong, "GET", "/v1/pools", "").0).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 401).count() / 2, 5, "{statuses:?}");
    assert!(statuses[12..].iter().filter(|status| **status == 429).count() >= 17, "{statuses:?}");
    let (_, head, _) = with_key(service.port, &wrong, "GET", "/v1/pools", "");
    assert!(head.contains("retry-after: 1"), "{head}");
    assert_eq!(with_key(service.port, &good, "GET", "/v1/pools", "").0, 200);
    let (_, _, metrics) = with_key(service.port, &key(&file, "m", "read", &[]), "GET", "/metrics", "");
    let _ = metrics; // The new key may not be read yet; the old one is.
    let (_, _, metrics) = with_key(service.port, &good, "GET", "/metrics", "");
    assert!(metrics.contains("auth_failures_total{reason=\"throttled\"}"), "{metrics}");
    let log = service.stop_and_log();
    assert!(log.matches("key_refused").count() <= 15, "guessing does not fill the log");
}

/// p99 of requests with a good key, while so many others a second guess.
fn p99(port: u16, good: &str, guesses_per_s: u32, requests: usize) -> (Duration, u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (good, wrong) = (good.to_owned(), format!("oc_000000000000_{}", "0".repeat(64)));
    runtime.block_on(async move {
        let client = reqwest::Client::new();
        let url = format!("http://127.0.0.1:{port}/v1/pools");
        let guessed = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let mut guessers = tokio::task::JoinSet::new();
        if guesses_per_s > 0 {
            for _ in 0..16 {
                let (client, url, wrong, guessed) = (client.clone(), url.clone(), wrong.clone(), guessed.clone());
                guessers.spawn(async move {
                    let mut ticks = tokio::time::interval(Duration::from_secs(16) / guesses_per_s);
                    loop {
                        ticks.tick().await;
                        let answer = client.get(&url).bearer_auth(&wrong).send().await.unwrap();
                        assert!([401, 429].contains(&answer.status().as_u16()));
                        let _ = answer.bytes().await;
                        guessed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        }
        let (mut times, mut ticks) = (Vec::new(), tokio::time::interval(Duration::from_millis(2)));
        for _ in 0..requests {
            ticks.tick().await;
            let began = std::time::Instant::now();
            let answer = client.get(&url).bearer_auth(&good).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let _ = answer.bytes().await;
            times.push(began.elapsed());
        }
        times.sort();
        (times[times.len() * 99 / 100], guessed.load(std::sync::atomic::Ordering::Relaxed))
    })
}

#[test]
fn a_flood_of_guesses_does_not_lock_out_a_good_key() {
    let _alone = crate::support::alone_blocking();
    let file = keys("flood.json");
    let good = key(&file, "alice", "read", &[]);
    let service = guarded("flood.yaml", &file, "");
    let (calm, _) = p99(service.port, &good, 0, 1_000);
    let began = std::time::Instant::now();
    let (flooded, guessed) = p99(service.port, &good, 10_000, 1_000);
    let rate = guessed as f64 / began.elapsed().as_secs_f64();
    println!(
        "p99 of a good key: {calm:?} alone, {flooded:?} beside {rate:.0} guesses a second, client and service on one machine"
    );
    assert!(guessed > 1_000);
}
