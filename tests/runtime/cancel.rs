//! Cancel at any moment: one terminal state, no token after it, the slot free again (ORCH-3017, ORCH-3026).

use std::time::Duration;

use orchestrator_core::core::task::{FinishReason, OnDisconnect, Phase};
use orchestrator_core::{CancelOutcome, Config, Env, Event, Orchestrator, TaskRequest};

use crate::support::{World, is_idle, millisecond, pool, read_whole, request, start, start_with, task_id, until_idle};

async fn one_slot() -> Orchestrator {
    let World { orchestrator, .. } = start(Env::simulated(1), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    orchestrator
}

async fn check_ended(orchestrator: &Orchestrator, id: &str, outcome: CancelOutcome, tokens_max: u32) {
    let (view, by_cancel) = match outcome {
        CancelOutcome::Canceled(view) => (view, true),
        CancelOutcome::AlreadyEnded(view) => (view, false),
        CancelOutcome::Unknown => panic!("{id} is unknown"),
    };
    assert_eq!(view.phase, Phase::Terminal);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, end) = read_whole(orchestrator.stream(&task_id(id), 0).unwrap()).await;
    let Event::End(end) = end else { panic!("{end:?}") };
    assert_eq!(end.finish_reason == FinishReason::Canceled, by_cancel);
    assert_eq!(end.tokens_out, view.tokens_out, "no token after cancel");
    assert!(end.tokens_out <= tokens_max);
    assert!(matches!(orchestrator.cancel(&task_id(id)), CancelOutcome::AlreadyEnded(again) if again.end == view.end));
    until_idle(orchestrator).await;
}

#[tokio::test(start_paused = true)]
async fn between_any_two_tokens_and_around_them() {
    let orchestrator = one_slot().await;
    // Tokens come at 1 ms, 2 ms, …: cancels in steps of half a millisecond meet every gap and every token.
    for step in 0..44 {
        let id = format!("t{step}");
        orchestrator.submit(request(&id, 20)).await.unwrap();
        tokio::time::sleep(Duration::from_micros(500 * step)).await;
        let outcome = orchestrator.cancel(&task_id(&id));
        check_ended(&orchestrator, &id, outcome, (step / 2) as u32 + 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_waits_in_the_queue() {
    let orchestrator = one_slot().await;
    orchestrator.submit(request("runs", 50)).await.unwrap();
    for position in 0..3 {
        orchestrator.submit(request(&format!("waits{position}"), 5)).await.unwrap();
    }
    let outcome = orchestrator.cancel(&task_id("waits1"));
    assert!(matches!(&outcome, CancelOutcome::Canceled(view) if view.tokens_out == 0 && view.attempts == 0));
    check_ended(&orchestrator, "waits1", outcome, 0).await;
    for id in ["runs", "waits0", "waits2"] {
        let (_, end) = read_whole(orchestrator.stream(&task_id(id), 0).unwrap()).await;
        assert!(matches!(end, Event::End(end) if end.finish_reason == FinishReason::Length), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_submission_whose_caller_goes_away_leaves_nothing() {
    let orchestrator = one_slot().await;
    for polls in 0..6 {
        let id = format!("gone{polls}");
        {
            let submit = orchestrator.submit(request(&id, 500));
            tokio::pin!(submit);
            for _ in 0..polls {
                if futures_util::poll!(submit.as_mut()).is_ready() {
                    orchestrator.cancel(&task_id(&id));
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        until_idle(&orchestrator).await;
        let view = orchestrator.task(&task_id(&id));
        assert!(view.is_none_or(|view| view.phase == Phase::Terminal), "{polls} polls");
    }
    assert!(is_idle(&orchestrator));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_said_so() {
    let orchestrator = one_slot().await;
    assert_eq!(orchestrator.cancel(&task_id("nobody")), CancelOutcome::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_everybody_has_left_is_cancelled_unless_somebody_comes_back_in_time() {
    let config = Config { disconnect_grace_ms: 500, ..Config::default() };
    let World { orchestrator, .. } = start_with(Env::simulated(2), config, vec![pool("a", 1, 4, millisecond())]).await;
    orchestrator.until_ready().await;
    let task = |id: &str, on_disconnect| TaskRequest { on_disconnect, ..request(id, 3_000) };
    let submit = async |id: &str, on_disconnect| orchestrator.submit(task(id, on_disconnect)).await.unwrap();
    let (left, kept) = (submit("left", OnDisconnect::Cancel).await, submit("kept", OnDisconnect::Keep).await);
    let (back, unread) = (submit("back", OnDisconnect::Cancel).await, submit("unread", OnDisconnect::Cancel).await);
    let mut readers = vec![left.stream(), left.stream(), kept.stream(), back.stream()];
    for reader in &mut readers {
        reader.next().await;
    }
    readers.remove(0); // One of two readers: the other is still there.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(orchestrator.pools()[0].slots_used, 4, "nobody has left for good");
    drop(readers);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let reader = back.stream(); // It came back in time, and leaves when all is said.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_, end) = read_whole(left.stream()).await;
    let Event::End(end) = end else { panic!("{end:?}") };
    assert_eq!(end.finish_reason, FinishReason::Canceled);
    assert!(
        (1_050..=1_250).contains(&end.tokens_out),
        "about the time that it was read and the grace: {}",
        end.tokens_out
    );
    let view = &orchestrator.pools()[0];
    assert_eq!((view.deserted, view.canceled, view.slots_used), (1, 1, 3), "its slot is free");
    assert!(matches!(read_whole(reader).await.1, Event::End(end) if end.finish_reason == FinishReason::Length));
    for submitted in [kept, unread] {
        assert!(matches!(read_whole(submitted.stream()).await.1, Event::End(end) if end.tokens_out == 3_000));
    }
    until_idle(&orchestrator).await;
}
