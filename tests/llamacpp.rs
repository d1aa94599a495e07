//! The real llama.cpp server, started by the runtime: tokens, cancel, death.
//!
//! `cargo xtask engines` installs it. Without it these tests say that they were skipped; with `REQUIRE_ENGINES` set,
//! they fail instead.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::lifecycle::PoolState;
use orchestrator_core::core::task::{FinishReason, Phase};
use orchestrator_core::gpu::llamacpp::LlamaCpp;
use orchestrator_core::{CancelOutcome, Cause, ErrorCode, Event, Orchestrator, TaskId, TaskRequest};

use crate::support::llama::{lives, pids, pool, port, prompt, server, start};
use crate::support::{alone, eventually, exchange, is_idle, kill, pool_id, read_whole};

/// Slots that compute now, by the server's own `/slots`.
fn busy(port: u16) -> usize {
    let (status, _, body) = exchange(port, "GET", "/slots", &[], b"");
    assert_eq!(status, 200, "{body}");
    let slots: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
    slots.iter().filter(|slot| slot["is_processing"] == true).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_prompts_give_the_tokens_of_the_server_asked_directly() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    // One slot each: what this server computes beside a run can change the run's rounding (see ARCHITECTURE.md).
    let orchestrator = start(pool(&server, 2, 1)).await;
    let direct = port(pids(&orchestrator)[0]);
    let mut submitted = Vec::new();
    for number in 0..20 {
        let request = TaskRequest::completion(prompt(number)).max_tokens(48).seed(number * 7 + 1);
        submitted.push(orchestrator.submit(request).await.unwrap());
    }
    let mut ends = Vec::new();
    for submitted in &submitted {
        ends.push(read_whole(submitted.stream()).await);
    }
    let (mut equal, mut replicas) = (0, std::collections::BTreeSet::new());
    for ((number, submitted), (text, end)) in (0..).zip(submitted).zip(ends) {
        let Event::End(end) = end else { panic!("{end:?}") };
        replicas.insert(orchestrator.task(&submitted.task_id).unwrap().replica_id.unwrap().to_string());
        let body = serde_json::json!({
            "prompt": prompt(number), "n_predict": 48, "seed": number * 7 + 1, "cache_prompt": false
        });
        let (status, _, answer) = exchange(direct, "POST", "/completion", &[], body.to_string().as_bytes());
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, answer["content"].as_str()), (200, Some(text.as_str())), "prompt {number} {answer}");
        assert_eq!(answer["tokens_evaluated"].as_u64(), Some(end.tokens_in.0.into()));
        equal += 1;
    }
    assert_eq!(replicas.len(), 2, "both replicas served");
    println!("{equal} of 20 prompts equal, served by {replicas:?}");
    orchestrator.stop(std::time::Duration::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_costs_nobody_a_token_and_comes_back() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    let orchestrator = start(pool(&server, 2, 1)).await;
    let before = pids(&orchestrator);
    let mut texts: Vec<Vec<String>> = Vec::new();
    for round in 0..2 {
        let (mut streams, mut ids) = (Vec::new(), Vec::new());
        for number in 0..8 {
            let request = TaskRequest::completion(prompt(number)).max_tokens(800).seed(number);
            let submitted = orchestrator.submit(request).await.unwrap();
            ids.push(submitted.task_id.clone());
            streams.push(tokio::spawn(read_whole(submitted.stream())));
        }
        let watched = orchestrator.clone();
        let shown = |id: &TaskId| {
            let task = watched.task(id).unwrap();
            let there = task.replica_id.is_some_and(|replica| replica.index == 0);
            there && task.phase == Phase::Running && task.tokens_out > 20
        };
        if round == 1 {
            eventually("tokens come from the engine that is going to be killed", || ids.iter().any(shown)).await;
            kill(before[0], "-KILL");
        }
        let mut seen = Vec::new();
        for stream in streams {
            // Each stream is checked for gaps, for doubles and for exactly one terminal event.
            let (text, end) = stream.await.unwrap();
            assert!(matches!(&end, Event::End(end) if end.finish_reason == FinishReason::Length), "{end:?}");
            seen.push(text);
        }
        texts.push(seen);
    }
    assert_eq!(texts[0], texts[1], "byte for byte");
    let watched = orchestrator.clone();
    eventually("the killed worker is Ready again", || watched.pools()[0].replicas.iter().all(|r| r.state.is_ready()))
        .await;
    let (after, view) = (pids(&orchestrator), orchestrator.pools());
    // The one that ran there, and perhaps one that was sent there before the death was known.
    assert!((1..=2).contains(&view[0].resumed), "{}", view[0].resumed);
    assert_eq!((view[0].diverged, view[0].failed.values().sum::<u64>()), (0, 0));
    assert_eq!((after[1], view[0].replicas[1].restarts), (before[1], 0), "the other engine was not touched");
    let killed = &view[0].replicas[0];
    assert_eq!(killed.deaths.get(&Cause::Signal), Some(&1), "{:?}", killed.deaths);
    assert!(
        killed.last_death.as_ref().is_some_and(|death| death.message.contains("signal 9")),
        "{:?}",
        killed.last_death
    );
    assert_ne!(after[0], before[0]);
    eventually("no slot is lost", || is_idle(&watched)).await;
    println!("8 of 8 streams equal, {} resumed, engine {} -> {}", view[0].resumed, before[0], after[0]);
    orchestrator.stop(std::time::Duration::MAX).await;
    eventually("no engine outlives the runtime", || after.iter().all(|pid| !lives(*pid))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_any_moment_frees_the_engines_own_slot() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    let orchestrator = start(pool(&server, 1, 2)).await;
    let port = port(pids(&orchestrator)[0]);
    let mut seen = Vec::new();
    // `None`: at once, queued or just dispatched. `Some(n)`: behind the n-th token. The last: behind the end.
    for (round, moment) in
        [None, None, Some(1), Some(2), Some(5), Some(50), Some(400), Some(4_000)].into_iter().enumerate()
    {
        let max_tokens = if moment == Some(4_000) { 20 } else { 3_000 };
        let request = TaskRequest::completion(prompt(round as u64)).max_tokens(max_tokens).seed(3);
        let submitted = orchestrator.submit(request).await.unwrap();
        let mut stream = submitted.stream();
        let mut tokens = 0;
        while moment.is_some_and(|moment| tokens < moment) {
            match stream.next().await {
                Some((_, Event::Token { .. })) => tokens += 1,
                Some(_) => {}
                None => break,
            }
        }
        let outcome = orchestrator.cancel(&submitted.task_id);
        let view = match outcome {
            CancelOutcome::Canceled(view) => view,
            CancelOutcome::AlreadyEnded(view) => {
                assert_eq!(moment, Some(4_000), "it had not ended yet");
                view
            }
            CancelOutcome::Unknown => panic!("unknown"),
        };
        let pool = orchestrator.clone();
        eventually("the slot is free again", || pool.pools()[0].slots_used == 0).await;
        assert_eq!(busy(port), 0, "the engine's own slot is idle as soon as ours is free");
        let (_, end) = read_whole(submitted.stream()).await;
        let Event::End(end) = end else { panic!("{end:?}") };
        assert_eq!(end.tokens_out, view.tokens_out, "no token after cancel");
        assert_eq!(end.finish_reason == FinishReason::Canceled, moment != Some(4_000));
        assert_eq!(orchestrator.task(&submitted.task_id).unwrap().end, view.end, "one terminal state");
        seen.push(end.tokens_out);
    }
    println!("tokens at each cancel: {seen:?}");
    assert_eq!(orchestrator.pools()[0].replicas[0].stop_timeouts, 0);
    orchestrator.stop(std::time::Duration::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_sees_its_own_devices_and_one_that_cannot_start_is_said_so() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    let orchestrator = start(pool(&server, 2, 1)).await;
    for (index, pid) in pids(&orchestrator).into_iter().enumerate() {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let wanted = format!("CUDA_VISIBLE_DEVICES={index}").into_bytes();
        assert!(environment.split(|byte| *byte == 0).any(|entry| entry == wanted), "replica {index}");
    }
    orchestrator.stop(std::time::Duration::MAX).await;

    for (words, end, cause) in [
        ("no such model", "exit 3", Cause::ExitCode),
        ("ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer", "exit 1", Cause::OutOfVram),
        ("so long", "kill -TERM $$", Cause::Signal),
    ] {
        let mut wrong = pool(&server, 1, 1);
        wrong.command = Some(vec!["sh".into(), "-c".into(), format!("echo '{words}' >&2; {end} # {{port}}")]);
        cannot_start(wrong, cause, words).await;
    }
}

async fn cannot_start(wrong: PoolConfig, cause: Cause, words: &str) {
    let orchestrator = Orchestrator::builder().pool(wrong, LlamaCpp::new).start().await.unwrap();
    let pools = orchestrator.clone();
    eventually("the load has failed", || pools.pools()[0].replicas[0].last_death.is_some()).await;
    let replica = pools.pools()[0].replicas[0].clone();
    assert!(replica.deaths.keys().eq([&cause]), "{words}: {:?}", replica.deaths);
    assert!(replica.last_death.unwrap().message.contains(words), "its last words are kept: {words}");
    orchestrator.until_pool(&pool_id("tiny"), |state| state == PoolState::Unready).await;
    let error = orchestrator.submit(TaskRequest::completion("x")).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PoolUnready);
    assert!(error.retry_after_ms.is_some());
}
