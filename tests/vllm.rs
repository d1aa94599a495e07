//! The real vLLM, killed in the middle:
//! `cargo xtask engines --vllm && VLLM=1 cargo test --test suite_engines vllm:: -- --nocapture`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use orchestrator_core::core::task::Phase;
use orchestrator_core::{Event, TaskId};

use crate::support::real::{self, request};
use crate::support::{alone, eventually, kill, llama, processes, read_whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vllm_replica_costs_no_stream_a_byte_and_leaves_no_process() {
    let Some(pool) = real::vllm(2, 4) else { return };
    let _alone = alone().await;
    let orchestrator = real::start(pool).await;
    let victim = llama::pids(&orchestrator)[0];
    let group = processes::members(victim.into());
    println!("replica 0 is process {victim}, its group has {} members", group.len());
    let mut texts = Vec::new();
    for round in 0..2 {
        let (mut streams, mut ids) = (Vec::new(), Vec::new());
        for number in 0..8 {
            let submitted = orchestrator.submit(request(number).max_tokens(400)).await.unwrap();
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
            eventually("tokens come from the one that is going to be killed", || ids.iter().any(shown)).await;
            kill(victim, "-KILL");
        }
        let mut seen = Vec::new();
        for stream in streams {
            let (text, end) = stream.await.unwrap();
            assert!(matches!(end, Event::End(_)), "{end:?}");
            seen.push(text);
        }
        texts.push(seen);
    }
    assert_eq!(texts[0], texts[1], "byte for byte");
    let view = orchestrator.pools()[0].clone();
    assert!(view.resumed >= 1 && view.diverged == 0, "{} resumed, {} diverged", view.resumed, view.diverged);
    eventually("nothing of its group is left", || group.iter().all(|pid| !llama::lives(*pid))).await;
    println!("8 of 8 streams equal, {} resumed, none of {} processes left", view.resumed, group.len());
    orchestrator.stop(std::time::Duration::MAX).await;
}
