//! What a host program sees and hears of its runtime, and where it may step in.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchestrator_core::prelude::*;
use orchestrator_core::{Cause, Priority, Stage};
use parking_lot::Mutex;

use super::{Words, words};
use crate::support::{client, until_idle};

async fn start() -> Orchestrator {
    let pool = PoolConfig::new("p", "words", "m");
    Orchestrator::builder().pool(pool, |_| Words).env(Env::simulated(9)).start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_a_stream_and_its_events_are_json_as_the_services_are() {
    let orchestrator = start().await;
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(2).seed(7)).await.unwrap();
    let lines = submitted.stream().map(|(_, event)| (event.name(), serde_json::to_value(&event).unwrap()));
    let lines: Vec<_> = StreamExt::collect::<Vec<_>>(lines).await;
    let names: Vec<_> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["started", "token", "token", "end"]);
    assert_eq!((&lines[0].1["seed"], &lines[0].1["replica_id"]), (&7.into(), &"p/0".into()));
    assert_eq!(lines[1].1, serde_json::json!({"t": "0 ", "i": 0}));
    assert_eq!(lines[3].1["finish_reason"], "length");
    assert!(format!("{orchestrator:?} {submitted:?} {:?}", submitted.stream()).contains("TaskStream"));
}

#[tokio::test(start_paused = true)]
async fn a_percentile_has_a_name() {
    let orchestrator = start().await;
    orchestrator.submit(TaskRequest::completion("x").priority(Priority::Batch)).await.unwrap().stream().collect().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let latency = orchestrator.pools()[0].latency.clone();
    assert_eq!(latency.of(Priority::Batch, Stage::Total).quantiles.count, 1);
    assert_eq!(latency.of(Priority::Interactive, Stage::Total).quantiles.count, 0);
    assert!(serde_json::to_value(&*latency).unwrap()["stages"].is_array());
}

/// Panics in its first run.
struct PanicsOnce(std::sync::atomic::AtomicBool);

impl Engine for PanicsOnce {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("panics-1", "none"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        assert!(job.is_self_test || self.0.swap(true, std::sync::atomic::Ordering::SeqCst), "the first run");
        Words.generate(job, out).await
    }

    async fn failure(&self) -> EngineError {
        tokio::time::sleep(Duration::from_secs(60)).await;
        EngineError::DeviceLost("after a minute".into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_hears_of_resumptions_ends_and_deaths_and_how_much_it_missed() {
    let pool = PoolConfig::new("p", "panics", "m");
    let builder = Orchestrator::builder().pool(pool, |_| PanicsOnce(Default::default()));
    let orchestrator = builder.env(Env::simulated(9)).start().await.unwrap();
    let mut events = orchestrator.subscribe();
    let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(2)).await.unwrap();
    let Some(RuntimeEvent::TaskResumed { task_id, .. }) = events.next().await else { panic!("it runs again") };
    assert_eq!(task_id, submitted.task_id);
    let Some(RuntimeEvent::TaskEnded { task }) = events.next().await else { panic!("it ends") };
    assert!(task.task_id == task_id && task.attempts == 2 && task.end.is_some());
    let Some(RuntimeEvent::WorkerDied { cause, message, .. }) = events.next().await else { panic!("it dies") };
    assert!(cause == Cause::DeviceLost && message.contains("after a minute"), "{message}");
    for number in 0..1_500 {
        orchestrator.submit_when_room(TaskRequest::completion(format!("{number}")).max_tokens(1)).await.unwrap();
    }
    until_idle(&orchestrator).await;
    let Some(RuntimeEvent::Missed { events: missed }) = events.next().await else { panic!("it was slow") };
    assert!(missed >= 476, "{missed}");
    assert!(serde_json::to_string(&RuntimeEvent::Missed { events: 3 }).unwrap().contains("\"event\":\"missed\""));
}

#[tokio::test(start_paused = true)]
async fn a_hook_refuses_reroutes_and_marks() {
    let builder = Orchestrator::builder()
        .pool(PoolConfig::new("small", "words", "tiny"), |_| Words)
        .pool(PoolConfig::new("large", "words", "huge"), |_| Words)
        .before_admission(|request| {
            if request.prompt.contains("forbidden") {
                return Err(TaskError::new(ErrorCode::InvalidParams, "field 'prompt': not in this house"));
            }
            let model = if request.prompt.len() < 10 { "tiny" } else { "huge" };
            request.model_ref.get_or_insert(model.to_owned());
            request.client_id = ClientId::try_from("marked").expect("valid");
            Ok(())
        });
    let orchestrator = builder.env(Env::simulated(9)).start().await.unwrap();
    let error = orchestrator.submit(TaskRequest::completion("forbidden")).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::InvalidParams, "field 'prompt': not in this house"));
    for (prompt, pool) in [("short", "small"), ("a longer prompt", "large")] {
        let submitted = orchestrator.submit(TaskRequest::completion(prompt).max_tokens(1)).await.unwrap();
        let view = orchestrator.task(&submitted.task_id).unwrap();
        assert_eq!((view.pool_id.unwrap().as_str(), view.client_id), (pool, client("marked")));
    }
    assert_eq!(orchestrator.view().rejected[&ErrorCode::InvalidParams], 1);
}

#[tokio::test(start_paused = true)]
async fn every_part_of_a_request_can_be_built() {
    let request = TaskRequest::completion("x")
        .task_id("mine".parse().unwrap())
        .session("talk".parse().unwrap())
        .client("alice".parse().unwrap())
        .model("m")
        .engine("words")
        .ctx(128)
        .deadline(Duration::from_secs(9))
        .expected_tokens(3)
        .parameters(Sampling { temperature: Some(0.5), ..Sampling::default() })
        .on_disconnect(OnDisconnect::Cancel)
        .pools(["p".parse().unwrap()])
        .max_tokens(3);
    let orchestrator = start().await;
    let submitted = orchestrator.submit(request).await.unwrap();
    assert_eq!(submitted.task_id.to_string(), "mine");
    assert_eq!(submitted.stream().collect().await.0, words(3));
    assert_eq!(format!("{} {:?}", Priority::Batch, Tokens::from(3)), "batch Tokens(3)");
}

/// Keeps the names of the spans that an engine runs in.
struct Spans(Arc<Mutex<Vec<String>>>);

impl Engine for Spans {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("spans-1", "none"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if !job.is_self_test {
            tokio::task::yield_now().await;
            let span = tracing::Span::current();
            self.0.lock().push(span.metadata().map_or_else(|| "none".into(), |metadata| metadata.name().to_owned()));
        }
        Words.generate(job, out).await
    }
}

/// A subscriber that records spans by name and nothing else, and the levels of lines of tasks.
#[derive(Default)]
struct Recorder {
    lines: Arc<Mutex<Vec<(String, tracing::Level)>>>,
    spans: Mutex<Vec<&'static tracing::Metadata<'static>>>,
    inside: Mutex<Vec<tracing::span::Id>>,
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut spans = self.spans.lock();
        spans.push(span.metadata());
        tracing::span::Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.lines.lock().push((event.metadata().target().to_owned(), *event.metadata().level()));
    }

    fn enter(&self, span: &tracing::span::Id) {
        self.inside.lock().push(span.clone());
    }

    fn exit(&self, span: &tracing::span::Id) {
        let mut inside = self.inside.lock();
        if let Some(at) = inside.iter().rposition(|other| other == span) {
            inside.remove(at);
        }
    }

    fn current_span(&self) -> tracing_core::span::Current {
        match self.inside.lock().last() {
            Some(id) => tracing_core::span::Current::new(id.clone(), self.spans.lock()[id.into_u64() as usize - 1]),
            None => tracing_core::span::Current::none(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hosts_span_reaches_its_engine_and_a_tasks_lines_are_quiet_and_the_crates() {
    use tracing::Instrument;
    let recorder = Recorder::default();
    let lines = recorder.lines.clone();
    let _default = tracing::subscriber::set_default(recorder);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let spans = seen.clone();
    let builder = Orchestrator::builder().pool(PoolConfig::new("p", "spans", "m"), move |_| Spans(spans.clone()));
    let orchestrator = builder.env(Env::simulated(9)).start().await.unwrap();
    let submit = orchestrator.submit(TaskRequest::completion("x").max_tokens(1));
    let submitted = submit.instrument(tracing::info_span!("request_of_the_host")).await.unwrap();
    submitted.stream().collect().await;
    assert_eq!(*seen.lock(), ["request_of_the_host"]);
    let lines = lines.lock();
    let of_tasks: Vec<_> = lines.iter().filter(|(target, _)| target == "orchestrator_core::task").collect();
    assert!(!of_tasks.is_empty() && of_tasks.iter().all(|(_, level)| *level == tracing::Level::DEBUG), "{of_tasks:?}");
    assert!(lines.iter().all(|(target, _)| target.starts_with("orchestrator_core") || target.starts_with("ractor")));
}
