//! A pool gets another model while it serves: whole or not at all, one model at a time, nothing lost (ORCH-3031).

use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::config::PoolConfig;
use orchestrator_core::core::lifecycle::{PoolState, ReplicaState};
use orchestrator_core::core::trace::TraceKind;
use orchestrator_core::gpu::sim::undisturbed;
use orchestrator_core::{
    Env, ErrorCode, Event, ModelChange, Orchestrator, PoolView, ReloadState, ReplicaIdentity, TaskRequest, TaskStream,
};

use crate::support::{World, is_idle, millisecond, pool, pool_id, request, start, until_idle};

/// What a task's readers saw: who ran it, its text, its end.
struct Seen {
    ran_on: Vec<Arc<ReplicaIdentity>>,
    text: String,
    end: Event,
}

async fn read(mut stream: TaskStream) -> Seen {
    let (mut ran_on, mut text) = (Vec::new(), String::new());
    loop {
        match stream.next().await.expect("a terminal event").1 {
            Event::Started(started) => ran_on.push(started.identity.clone()),
            Event::Token { text: token, .. } => text += &token,
            end => return Seen { ran_on, text, end },
        }
    }
}

/// The models of a run's attempts; its text must be what the last of them says undisturbed, or a part of that.
fn models(seen: &Seen, request: &TaskRequest, seed: u64) -> Vec<String> {
    let models: Vec<String> = seen.ran_on.iter().map(|identity| identity.spec.model.clone()).collect();
    let model = models.last().map_or("tiny", String::as_str);
    let whole = undisturbed(&request.prompt, seed, request.max_tokens.0, "1", model);
    assert!(whole.starts_with(&seen.text), "{:?} is no text of {model}", seen.text);
    let is_whole = seen.text == whole;
    assert_eq!(matches!(seen.end, Event::End(_)), is_whole, "{:?}", seen.end);
    models
}

struct Load {
    orchestrator: Orchestrator,
    tasks: Vec<tokio::task::JoinHandle<(Seen, TaskRequest, u64)>>,
}

impl Load {
    fn on(orchestrator: &Orchestrator) -> Self {
        Load { orchestrator: orchestrator.clone(), tasks: Vec::new() }
    }

    /// So many more tasks, of some 10 to 60 ms each.
    async fn add(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.tasks.len() as u64;
            let request = request(&format!("t{number}"), 10 + (number * 7 % 50) as u32);
            let submitted =
                self.orchestrator.submit(request.clone()).await.expect("a pool that is reloaded takes tasks");
            let seed = self.orchestrator.task(&submitted.task_id).unwrap().seed;
            let stream = submitted.stream();
            self.tasks.push(tokio::spawn(async move { (read(stream).await, request, seed) }));
        }
    }

    /// Reads all to their ends; the model of each task's last attempt, in the order of submission.
    async fn ends(self) -> Vec<String> {
        let mut last = Vec::new();
        for task in self.tasks {
            let (seen, request, seed) = task.await.unwrap();
            assert!(matches!(seen.end, Event::End(_)), "{:?}: {:?}", request.task_id, seen.end);
            last.push(models(&seen, &request, seed).pop().expect("it ran"));
        }
        last
    }
}

fn view(orchestrator: &Orchestrator) -> PoolView {
    orchestrator.pools().swap_remove(0)
}

fn in_service(orchestrator: &Orchestrator) -> usize {
    view(orchestrator).replicas.iter().filter(|replica| replica.state.is_ready()).count()
}

/// What all replicas say that they serve; they must agree.
fn served_by_all(orchestrator: &Orchestrator) -> String {
    let view = view(orchestrator);
    assert!(view.replicas.iter().all(|replica| replica.state == ReplicaState::Ready), "{:?}", view.replicas);
    let digests: Vec<_> = view.replicas.iter().map(|replica| replica.model_digest.clone()).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    view.model
}

#[tokio::test(start_paused = true)]
async fn replicas_are_replaced_one_by_one_and_every_task_runs_on_one_model() {
    for replicas in 1..=4 {
        let env = Env::simulated(11);
        let World { orchestrator, stats } = start(env.clone(), vec![pool("a", replicas, 2, millisecond())]).await;
        orchestrator.until_ready().await;
        let mut load = Load::on(&orchestrator);
        load.add(40).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other")).unwrap();
        let mut least = replicas as usize;
        while view(&orchestrator).reload.is_some_and(|reload| reload.state == ReloadState::Rolling) {
            load.add(1).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
            least = least.min(in_service(&orchestrator));
        }
        load.add(10).await;
        let reload = orchestrator.until_reloaded(&pool_id("a")).await.unwrap();
        assert_eq!((reload.state, reload.reason), (ReloadState::Done, None));
        assert_eq!(served_by_all(&orchestrator), "other");
        assert!(least >= replicas as usize / 2, "{least} of {replicas} served");
        let last = load.ends().await;
        assert!(last.iter().any(|model| model == "tiny") && last.last().is_some_and(|model| model == "other"));
        // Whoever waits keeps its place: one client's tasks leave the queue in the order in which they came, whatever
        // the model; and no task begins on the old model behind the first on the new one.
        let sent = env.recorded().into_iter().filter_map(|event| match event.kind {
            TraceKind::Assigned { seq, .. } => Some(seq.0),
            _ => None,
        });
        let sent: Vec<u64> = sent.collect();
        assert!(sent.is_sorted(), "{sent:?}");
        assert!(last.is_sorted_by_key(|model| model == "other"), "{last:?}");
        let loads = stats[0].iter().map(|replica| replica.loaded.load(std::sync::atomic::Ordering::Relaxed));
        assert!(loads.into_iter().all(|loads| loads == 2), "each replica loads the new model once");
        until_idle(&orchestrator).await;
        assert_eq!((view(&orchestrator).reloads, view(&orchestrator).resumed), ([1, 0], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_does_not_prove_itself_is_taken_back_everywhere() {
    for (model, replicas, culprit) in [
        ("dies", 1, "a/0"),
        ("hangs", 2, "a/0"),
        ("dies-on-1", 3, "a/1"),
        ("hangs-on-2", 3, "a/2"),
        ("dies-on-3", 4, "a/3"),
    ] {
        let mut config = pool("a", replicas, 2, millisecond());
        config.timeouts.preload_ms = 500;
        config.restart.intensity = 1; // What a reload does is not held against a worker.
        let World { orchestrator, .. } = start(Env::simulated(5), vec![config]).await;
        orchestrator.until_ready().await;
        let mut load = Load::on(&orchestrator);
        load.add(30).await;
        orchestrator.reload(&pool_id("a"), &ModelChange::to_model(model)).unwrap();
        while view(&orchestrator).reload.is_some_and(|reload| reload.state == ReloadState::Rolling) {
            load.add(1).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let reload = orchestrator.until_reloaded(&pool_id("a")).await.unwrap();
        let reason = reload.reason.expect("a reason");
        assert_eq!(reload.state, ReloadState::Undone);
        assert!(reason.contains(culprit) && reason.contains("preload failed"), "{model}: {reason}");
        orchestrator.until_pool(&pool_id("a"), |_| in_service(&orchestrator) == replicas as usize).await;
        assert_eq!(served_by_all(&orchestrator), "tiny");
        load.add(5).await;
        assert_eq!(load.ends().await.last().unwrap(), "tiny");
        assert_eq!(view(&orchestrator).reloads, [0, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_takes_too_long_undoes_the_reload_and_ends_whole() {
    let mut config = pool("a", 1, 1, millisecond());
    config.timeouts.drain_ms = 100;
    let World { orchestrator, .. } = start(Env::simulated(5), vec![config]).await;
    orchestrator.until_ready().await;
    let long = orchestrator.submit(request("long", 2_000)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other")).unwrap();
    let waits = orchestrator.submit(request("waits", 5)).await.unwrap();
    let reload = orchestrator.until_reloaded(&pool_id("a")).await.unwrap();
    assert_eq!(reload.state, ReloadState::Undone);
    assert!(
        reload.reason.as_deref().is_some_and(|reason| reason.contains("1 tasks still ran on replica a/0")),
        "{reload:?}"
    );
    assert!((100..200).contains(&reload.took_ms), "{reload:?}");
    for submitted in [long, waits] {
        let seen = read(submitted.stream()).await;
        assert!(matches!(seen.end, Event::End(_)), "{:?}", seen.end);
        assert_eq!(seen.ran_on.len(), 1, "it was not disturbed");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asked_for_the_old_model_is_told_and_all_others_keep_their_places() {
    let World { orchestrator, .. } = start(Env::simulated(5), vec![pool("a", 1, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let named = |id: &str, model: &str| TaskRequest { model_ref: Some(model.to_owned()), ..request(id, 30) };
    let running = orchestrator.submit(named("running", "tiny")).await.unwrap();
    let loyal = orchestrator.submit(named("loyal", "tiny")).await.unwrap();
    let easy = orchestrator.submit(request("easy", 5)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other")).unwrap();
    assert!(matches!(read(running.stream()).await.end, Event::End(_)), "what runs ends on its own model");
    let Event::Error(error) = read(loyal.stream()).await.end else { panic!("it cannot run any more") };
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    assert!(error.message.contains("\"tiny\"") && error.message.contains("\"other\""), "{}", error.message);
    let seen = read(easy.stream()).await;
    assert_eq!(models(&seen, &request("easy", 5), orchestrator.task(&easy.task_id).unwrap().seed), ["other"]);
    // Now it is the other way round.
    let error = orchestrator.submit(named("late", "tiny")).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::InvalidParams);
    let seen = read(orchestrator.submit(named("new", "other")).await.unwrap().stream()).await;
    assert!(matches!(seen.end, Event::End(_)));
    assert!(is_idle(&orchestrator));
}

#[tokio::test(start_paused = true)]
async fn a_completed_reload_can_be_taken_back_and_the_same_model_loaded_anew() {
    let World { orchestrator, stats } = start(Env::simulated(5), vec![pool("a", 2, 1, millisecond())]).await;
    orchestrator.until_ready().await;
    let steps = [
        (ModelChange { quant: Some("q8".into()), ..ModelChange::to_model("other") }, "other", "q8"),
        (ModelChange::back(), "tiny", "none"),
        (ModelChange::back(), "other", "q8"),
        (ModelChange::default(), "other", "q8"),
    ];
    for (number, (change, model, quant)) in (1..).zip(steps) {
        let begun = orchestrator.reload(&pool_id("a"), &change).unwrap();
        assert_eq!((begun.generation, begun.state), (number, ReloadState::Rolling));
        let reload = orchestrator.until_reloaded(&pool_id("a")).await.unwrap();
        assert_eq!((reload.generation, reload.state), (number, ReloadState::Done));
        assert_eq!((served_by_all(&orchestrator).as_str(), reload.to.quant.as_str()), (model, quant));
    }
    let loads = stats[0].iter().map(|replica| replica.loaded.load(std::sync::atomic::Ordering::Relaxed));
    assert!(loads.into_iter().all(|loads| loads == 5));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_is_refused_and_changes_nothing() {
    let World { orchestrator, .. } =
        start(Env::simulated(5), vec![pool("a", 1, 1, millisecond()), pool_on("b", 7)]).await;
    orchestrator.until_ready().await;
    let change = ModelChange::default();
    let cases = [
        (ModelChange::back(), "no reload has been completed"),
        (ModelChange { ctx: Some(1), ..change.clone() }, "'ctx'"),
        (ModelChange { model: Some(" ".into()), ..change.clone() }, "'model'"),
        (ModelChange { ctx: Some(100), ..ModelChange::back() }, "'undo'"),
    ];
    for (wrong, want) in cases {
        let error = orchestrator.reload(&pool_id("a"), &wrong).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParams);
        assert!(error.message.contains(want), "{}", error.message);
    }
    assert_eq!(orchestrator.reload(&pool_id("nobody"), &change).unwrap_err().code, ErrorCode::InvalidParams);
    assert!(view(&orchestrator).reload.is_none());
    orchestrator.reload(&pool_id("a"), &change).unwrap();
    let error = orchestrator.reload(&pool_id("a"), &change).unwrap_err();
    assert_eq!(error.code, ErrorCode::PoolUnavailable);
    assert!(error.message.contains("is being reloaded"), "{}", error.message);
    assert!(orchestrator.until_reloaded(&pool_id("b")).await.is_none(), "no reload there, nothing to wait for");
    orchestrator.drain(&pool_id("b"));
    assert_eq!(orchestrator.reload(&pool_id("b"), &change).unwrap_err().code, ErrorCode::PoolUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_nobody_would_tell_the_engine_is_refused() {
    let command = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
    let cases = [
        (Some("http://127.0.0.1:1".to_owned()), None, "what runs at its url"),
        (None, command(&["server", "--port", "{port}"]), "its command has no {model}"),
        (None, command(&["server", "--model={model}"]), ""),
    ];
    for (url, command, why) in cases {
        let config = PoolConfig { url, command, ..pool("a", 1, 1, millisecond()) };
        let World { orchestrator, .. } = start(Env::simulated(5), vec![config]).await;
        orchestrator.until_ready().await;
        let result = orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other"));
        let refusal = result.as_ref().err().map(|error| (error.code, error.message.contains(why)));
        assert_eq!(refusal, (!why.is_empty()).then_some((ErrorCode::InvalidParams, true)), "{result:?}");
        if !why.is_empty() {
            orchestrator.reload(&pool_id("a"), &ModelChange::default()).unwrap();
        }
        assert_eq!(
            orchestrator.until_reloaded(&pool_id("a")).await.unwrap().state,
            ReloadState::Done,
            "and anew it may be loaded"
        );
    }
}

fn pool_on(id: &str, device: u32) -> PoolConfig {
    let mut config = pool(id, 1, 2, millisecond());
    config.replicas[0].devices = vec![orchestrator_core::config::DeviceRef::Index(device)];
    config
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_reload_and_loses_nothing() {
    for (replicas, after_ms) in
        (1..=3).flat_map(|replicas| (0..160).step_by(5).map(move |after_ms| (replicas, after_ms)))
    {
        let World { orchestrator, .. } = start(Env::simulated(5), vec![pool("a", replicas, 1, millisecond())]).await;
        orchestrator.until_ready().await;
        let mut load = Load::on(&orchestrator);
        load.add(20).await;
        orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other")).unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        orchestrator.drain(&pool_id("a"));
        load.ends().await;
        orchestrator.until_pool(&pool_id("a"), |state| state == PoolState::Stopped).await;
        assert_ne!(orchestrator.until_reloaded(&pool_id("a")).await.unwrap().state, ReloadState::Rolling);
    }
}

#[tokio::test(start_paused = true)]
async fn any_actor_may_die_at_any_step_of_a_reload() {
    let (mut done, mut undone) = (0, 0);
    for actor in ["root", "pool_supervisor", "queue", "pool_manager", "worker"] {
        for after_ms in 0..120 {
            let env = Env::simulated(after_ms);
            let World { orchestrator, .. } = start(env.clone(), vec![pool("a", 2, 2, millisecond())]).await;
            orchestrator.until_ready().await;
            let mut load = Load::on(&orchestrator);
            load.add(20).await;
            orchestrator.reload(&pool_id("a"), &ModelChange::to_model("other")).unwrap();
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            env.arm_panic(actor);
            orchestrator.ping_supervisors();
            let reload = orchestrator.until_reloaded(&pool_id("a")).await.unwrap();
            let want = if reload.state == ReloadState::Done { "other" } else { "tiny" };
            tokio::time::sleep(Duration::from_secs(5)).await; // Whoever was killed loads again.
            assert_eq!(served_by_all(&orchestrator), want, "{actor} {after_ms} {reload:?}");
            *(if want == "other" { &mut done } else { &mut undone }) += 1;
            for task in load.tasks {
                let (seen, request, seed) = task.await.unwrap();
                models(&seen, &request, seed); // No text of two models.
                let reset = matches!(&seen.end, Event::Error(error) if error.code == ErrorCode::WorkerReset);
                assert!(reset || matches!(seen.end, Event::End(_)), "{actor} {after_ms} {:?}", seen.end);
                assert!(
                    !reset || !seen.text.is_empty() && actor != "queue",
                    "{actor} {after_ms}: only behind its first token"
                );
            }
            until_idle(&orchestrator).await;
            assert_eq!((view(&orchestrator).unsettled, view(&orchestrator).diverged), (0, 0));
        }
    }
    println!("{done} done, {undone} undone");
    assert!(done > 400 && undone > 10, "both ways are walked");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_serves_another_model_is_no_sibling_until_it_is_one_again() {
    let pools = vec![pool("a", 1, 1, millisecond()), pool_on("b", 7)];
    let World { orchestrator, .. } = start(Env::simulated(5), pools).await;
    orchestrator.until_ready().await;
    let ran_on_b = || orchestrator.pools()[1].replicas[0].started.iter().sum::<u64>();
    for (model, is_sibling) in [("tiny", true), ("other", false), ("tiny", true)] {
        if orchestrator.pools()[1].model != model {
            orchestrator.reload(&pool_id("b"), &ModelChange::to_model(model)).unwrap();
            assert_eq!(orchestrator.until_reloaded(&pool_id("b")).await.unwrap().state, ReloadState::Done);
        }
        assert_eq!(orchestrator.replica_sets().len(), if is_sibling { 1 } else { 2 });
        let before = ran_on_b();
        for _ in 0..10 {
            let request = TaskRequest { task_id: None, model_ref: Some("tiny".into()), ..request("any", 40) };
            let submitted = orchestrator.submit(request.clone()).await.unwrap();
            let seed = orchestrator.task(&submitted.task_id).unwrap().seed;
            let stream = submitted.stream();
            tokio::spawn(async move { assert_eq!(models(&read(stream).await, &request, seed), ["tiny"]) });
        }
        until_idle(&orchestrator).await;
        assert_eq!(ran_on_b() > before, is_sibling, "{model}");
    }
    assert_eq!(orchestrator.pools().iter().map(|pool| pool.completed).sum::<u64>(), 30);
}
