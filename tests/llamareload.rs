//! A pool of real llama.cpp servers gets another model while it serves, and goes back when the new one is none.
//!
//! `cargo xtask engines` installs the server. Without it this test says that it was skipped; with `REQUIRE_ENGINES`
//! set, it fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use orchestrator_core::{Event, ModelChange, Orchestrator, ReloadState, TaskRequest, TaskStream};

use crate::support::llama::{lives, pids, pool, prompt, server, start};
use crate::support::{alone, eventually, pool_id};

const PROMPTS: u64 = 8;

fn home() -> PathBuf {
    let named = std::env::var_os("LLAMACPP_HOME").map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/orchestrator-core/llamacpp"))
}

/// The file of another model: the same shape, other weights. It takes its name when it is whole: a server that another
/// run of this test has started maps the file of that name, and would die of `SIGBUS` were it written to in place.
fn other_model() -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("other.gguf");
    let new = file.with_extension(std::process::id().to_string());
    let script = crate::support::root().join("xtask/engines/llamacpp/make_model.py");
    let made = Command::new(home().join("venv/bin/python")).arg(script).arg(&new).args(["--seed", "8"]).status();
    assert!(made.unwrap().success(), "the model can be made");
    std::fs::rename(&new, &file).unwrap();
    file.to_str().unwrap().to_owned()
}

fn task(number: u64) -> TaskRequest {
    TaskRequest::completion(prompt(number % PROMPTS)).max_tokens(300).seed(number % PROMPTS)
}

/// The model of the last attempt, the text, and the end.
async fn read(mut stream: TaskStream) -> (String, String, Event) {
    let (mut model, mut text) = (String::new(), String::new());
    loop {
        match stream.next().await.unwrap().1 {
            Event::Started(started) => model = started.identity.spec.model.clone(),
            Event::Token { text: token, .. } => text += &token,
            end => return (model, text, end),
        }
    }
}

async fn run_all(orchestrator: &Orchestrator) -> Vec<String> {
    let mut texts = Vec::new();
    for number in 0..PROMPTS {
        let (_, text, end) = read(orchestrator.submit(task(number)).await.unwrap().stream()).await;
        assert!(matches!(end, Event::End(_)), "{end:?}");
        texts.push(text);
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_gets_another_model_under_load_and_keeps_its_own_when_that_is_none() {
    let Some(server) = server() else { return };
    let _alone = alone().await;
    let (tiny, other) = (home().join("tiny.gguf").to_str().unwrap().to_owned(), other_model());
    let mut config = pool(&server, 2, 1);
    config.model = tiny.clone();
    config.command.as_mut().unwrap().extend(["--model".to_owned(), "{model}".to_owned()]);
    let orchestrator = start(config).await;
    let of_tiny = run_all(&orchestrator).await;
    let before = pids(&orchestrator);

    let (mut readers, mut number) = (Vec::new(), 0);
    orchestrator.reload(&pool_id("tiny"), &ModelChange::to_model(&other)).unwrap();
    while orchestrator.pools()[0].reload.as_ref().is_some_and(|reload| reload.state == ReloadState::Rolling) {
        let submitted = orchestrator.submit(task(number)).await.expect("it takes tasks all the time");
        readers.push((number, tokio::spawn(read(submitted.stream()))));
        number += 1;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let reload = orchestrator.until_reloaded(&pool_id("tiny")).await.unwrap();
    assert_eq!((reload.state, reload.reason.as_deref()), (ReloadState::Done, None));
    let of_other = run_all(&orchestrator).await;
    assert_ne!(of_tiny, of_other, "it is another model");
    let (mut by_tiny, mut by_other) = (0, 0);
    for (number, reader) in readers {
        let (model, text, end) = reader.await.unwrap();
        assert!(matches!(end, Event::End(_)), "{end:?}");
        let (of_model, count) = if model == tiny { (&of_tiny, &mut by_tiny) } else { (&of_other, &mut by_other) };
        assert_eq!(text, of_model[(number % PROMPTS) as usize], "task {number} is whole, of one model");
        *count += 1;
    }
    let after = pids(&orchestrator);
    eventually("the old engines are gone", || before.iter().all(|pid| !lives(*pid))).await;
    println!(
        "reloaded in {} ms under load: {by_tiny} streams of the old model, {by_other} of the new, all whole",
        reload.took_ms
    );
    let lost =
        orchestrator.pools()[0].replicas.iter().map(|replica| replica.attempts_failed.clone()).collect::<Vec<_>>();
    assert!(by_tiny > 0 && by_other > 0, "{by_tiny} and {by_other}");
    assert_eq!(orchestrator.pools()[0].resumed, 0, "a reload costs no attempt; by replica and cause: {lost:?}");

    orchestrator.reload(&pool_id("tiny"), &ModelChange::to_model("/nowhere/none.gguf")).unwrap();
    let submitted = orchestrator.submit(task(0)).await.unwrap();
    let reload = orchestrator.until_reloaded(&pool_id("tiny")).await.unwrap();
    assert_eq!(reload.state, ReloadState::Undone);
    println!("undone in {} ms: {}", reload.took_ms, reload.reason.as_deref().unwrap_or_default());
    assert!(reload.reason.is_some_and(|reason| reason.contains("exit code") && reason.contains("model loading error")));
    let (model, text, _) = read(submitted.stream()).await;
    assert_eq!((model, text), (other.clone(), of_other[0].clone()));
    let watched = orchestrator.clone();
    eventually("both serve", || watched.pools()[0].replicas.iter().all(|replica| replica.state.is_ready())).await;
    assert_eq!(pids(&orchestrator)[1], after[1], "the second replica was not touched");

    orchestrator.reload(&pool_id("tiny"), &ModelChange::back()).unwrap();
    assert_eq!(orchestrator.until_reloaded(&pool_id("tiny")).await.unwrap().state, ReloadState::Done);
    assert_eq!(run_all(&orchestrator).await, of_tiny, "and back");
    let last = pids(&orchestrator);
    orchestrator.stop(std::time::Duration::MAX).await;
    eventually("no engine is left", || last.iter().chain(&after).all(|pid| !lives(*pid))).await;
}
