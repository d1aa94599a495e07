//! NVIDIA's Triton server with a model that generates text (`generate_stream`), reached at a URL or started from a
//! command.
//!
//! What a model takes is its own affair: the server says which inputs it has, and a parameter that it has no input for
//! is refused instead of being ignored. A stream has no last event; it ends with the answer. Triton counts requests
//! that have ended and none that run, so a stopped run counts as left when as many have ended as were sent.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::task::resume::DeterminismClass;
use crate::core::task::{FinishReason, Workload};
use crate::core::units::Tokens;
use crate::gpu::engine::{
    Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Repeats, Telemetry, TokenOutput,
};
use crate::gpu::engines::openai_api::Text;
use crate::gpu::http::HttpError;
use crate::gpu::http::in_flight::{Busy, InFlight, Run};
use crate::gpu::http::refusal::{error_event, lost, said};
use crate::gpu::http::server::{ASK_TIMEOUT, Server, StreamDecoder};

/// A Triton server.
pub struct Triton {
    server: Server,
    runs: InFlight,
    /// The inputs that the model has; set by a successful load.
    inputs: OnceLock<BTreeSet<String>>,
    counted: Mutex<Counted>,
}

/// What the server's count of ended requests is held against. Begun anew whenever none of ours is out: others may send
/// some, and of those that it refuses some are counted and some are not.
#[derive(Default)]
struct Counted {
    /// Requests that the server counts, or is going to, since then.
    sent: u64,
    /// Requests that had ended before.
    ended_before: u64,
    /// Looks in a row at which none of ours was out and the count stood still below what we had sent.
    still: u32,
    ended_last: u64,
}

/// Still looks after which what is missing in the server's count is not late, but was never counted. One a second while
/// nothing runs.
const STILL_LOOKS: u32 = 3;

impl Counted {
    /// Takes up the server's count while none of ours is out. An end is counted a moment after it is told, so a count
    /// that is behind may only be late.
    fn on_idle(&mut self, ended: u64) {
        let is_behind = ended.saturating_sub(self.ended_before) < self.sent;
        self.still = if is_behind && ended == self.ended_last { self.still + 1 } else { 0 };
        self.ended_last = ended;
        if !is_behind || self.still >= STILL_LOOKS {
            *self = Counted { ended_before: ended, ended_last: ended, ..Counted::default() };
        }
    }
}

/// `/v2`.
#[derive(Deserialize)]
struct ServerInfo {
    version: String,
}

/// `/v2/models/{m}`, as far as it matters.
#[derive(Deserialize)]
struct ModelInfo {
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    platform: String,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
}

#[derive(Deserialize)]
struct TensorInfo {
    name: String,
}

/// `/v2/models/{m}/stats`, as far as it matters.
#[derive(Deserialize)]
struct Stats {
    model_stats: Vec<ModelStats>,
}

#[derive(Deserialize)]
struct ModelStats {
    inference_stats: Outcomes,
}

#[derive(Deserialize)]
struct Outcomes {
    success: Count,
    fail: Count,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

/// One event of the answer.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    text_output: Option<Text<'a>>,
    error: Option<serde::de::IgnoredAny>,
}

pub(in crate::gpu) struct Generating<'a, 'b> {
    run: &'a Run<'b>,
    /// Tokens that were asked for, and those that have come.
    max_tokens: u32,
    tokens: u32,
}

impl<'a, 'b> Generating<'a, 'b> {
    pub(in crate::gpu) fn new(run: &'a Run<'b>, max_tokens: Tokens) -> Self {
        Generating { run, max_tokens: max_tokens.0, tokens: 0 }
    }
}

impl StreamDecoder for Generating<'_, '_> {
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError> {
        let garbled = |error: serde_json::Error| EngineError::Garbled(error.to_string().into());
        let event: Event<'_> = serde_json::from_slice(data).map_err(garbled)?;
        if event.error.is_some() {
            return Err(error_event(&serde_json::from_slice(data).map_err(garbled)?));
        }
        let Some(Text(text)) = event.text_output else {
            return Err(EngineError::Garbled("an event without text_output".into()));
        };
        self.run.show();
        self.tokens += u32::from(!text.is_empty());
        out.push(&text)?;
        Ok(None)
    }

    fn ended(&mut self, framed: bool) -> Result<Finish, EngineError> {
        if !framed {
            // A server that dies closes its connections too.
            return Err(EngineError::Lost("the connection ended, and the answer's end was not told".into()));
        }
        if self.tokens == 0 {
            return Err(EngineError::Lost("the answer ended without a token".into()));
        }
        let reason = if self.tokens >= self.max_tokens { FinishReason::Length } else { FinishReason::Stop };
        Ok(Finish { reason, tokens_in: None })
    }
}

impl Triton {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        Triton {
            server: Server::new(context),
            runs: InFlight::new(context),
            inputs: OnceLock::new(),
            counted: Mutex::default(),
        }
    }

    fn path(&self, behind: &str) -> String {
        format!("/v2/models/{}{behind}", self.server.pool().model)
    }

    async fn identify(&self) -> Result<EngineInfo, EngineError> {
        let server: ServerInfo = self.server.ask("/v2").await?;
        let model: ModelInfo = self.server.ask(&self.path("")).await.map_err(|error| match error {
            EngineError::Refused(text) | EngineError::Lost(text) => EngineError::Preload(text), // No such model.
            other => other,
        })?;
        let inputs: BTreeSet<String> = model.inputs.into_iter().map(|input| input.name).collect();
        for needed in ["text_input", "max_tokens"] {
            if !inputs.contains(needed) {
                let known: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let text = format!("the model has no input {needed:?}; it has {}", known.join(", "));
                return Err(EngineError::Preload(text.into()));
            }
        }
        if !model.outputs.iter().any(|output| output.name == "text_output") {
            return Err(EngineError::Preload("the model has no output \"text_output\"".into()));
        }
        // The server knows no digest of a model: its configuration stands in for it.
        let config: Value = self.server.ask(&self.path("/config")).await?;
        let what = format!("{}\0{:?}\0{}\0{config}", self.server.pool().model, model.versions, model.platform);
        let digest = format!("triton:{:016x}", xxh3_64(what.as_bytes()));
        let _ = self.inputs.set(inputs); // Loaded once.
        Ok(EngineInfo::new(format!("triton-{}", server.version), digest))
    }

    /// Requests for the model that have ended, however they did.
    async fn ended(&self) -> Result<u64, EngineError> {
        let stats: Stats = self.server.ask(&self.path("/stats")).await?;
        let outcomes = stats.model_stats.iter().map(|stats| &stats.inference_stats);
        Ok(outcomes.map(|stats| stats.success.count.saturating_add(stats.fail.count)).sum())
    }

    /// Requests of ours that have not ended, by the server's count.
    async fn busy(&self) -> Busy {
        let (was_idle, sent) = (self.runs.is_idle(), self.counted.lock().sent);
        match self.ended().await {
            Ok(ended) => {
                let mut counted = self.counted.lock();
                if was_idle && self.runs.is_idle() && counted.sent == sent {
                    counted.on_idle(ended);
                    return Busy::InFlight(0);
                }
                let ended = ended.saturating_sub(counted.ended_before);
                Busy::InFlight(u32::try_from(sent.saturating_sub(ended)).unwrap_or(u32::MAX))
            }
            Err(EngineError::Unreachable(_)) => Busy::Gone,
            Err(_) => Busy::Unknown,
        }
    }

    fn body(&self, job: &Job<'_>) -> Result<Map<String, Value>, EngineError> {
        let inputs = self.inputs.get().ok_or_else(|| EngineError::Unreachable("the model is not loaded".into()))?;
        let (request, sampling) = (job.request, &job.request.parameters);
        let mut body = Map::new();
        body.insert("text_input".into(), json!(request.prompt));
        body.insert("max_tokens".into(), json!(request.max_tokens.0));
        // Those that are always given, where the model has them.
        for (name, value) in [("random_seed", json!(job.seed)), ("seed", json!(job.seed)), ("stream", json!(true))] {
            if inputs.contains(name) {
                body.insert(name.into(), value);
            }
        }
        let stop = (!sampling.stop.is_empty()).then(|| json!(sampling.stop));
        let asked: [(&[&str], Option<Value>); 6] = [
            (&["temperature"], sampling.temperature.map(|value| json!(value))),
            (&["top_p"], sampling.top_p.map(|value| json!(value))),
            (&["top_k"], sampling.top_k.map(|value| json!(value))),
            (&["min_p"], sampling.min_p.map(|value| json!(value))),
            (&["repetition_penalty"], sampling.repeat_penalty.map(|value| json!(value))),
            (&["stop_words", "stop"], stop),
        ];
        for (names, value) in asked {
            let Some(value) = value else { continue };
            let Some(name) = names.iter().find(|name| inputs.contains(**name)) else {
                let text = format!("the model {} has no input {:?}; leave it out", self.server.pool().model, names[0]);
                return Err(EngineError::Refused(text.into()));
            };
            body.insert((*name).into(), value);
        }
        Ok(body)
    }
}

impl Engine for Triton {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        // The server may be ready before the model is.
        let process_id = self.server.start(&self.path("/ready")).await?;
        self.server.client()?.get("/v2/health/ready", ASK_TIMEOUT).await.map_err(lost)?;
        let info = EngineInfo { process_id, ..self.identify().await? };
        let info = EngineInfo { repeats: Repeats::UpTo(DeterminismClass::BatchInvariant), ..info };
        self.server.knows(&info);
        self.counted.lock().ended_before = self.ended().await?;
        Ok(info)
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if job.request.workload != Workload::Completion {
            return Err(EngineError::Refused("Triton's generate endpoint serves completions only".into()));
        }
        let body = self.body(&job)?;
        self.server.recognise_for_run(|| self.identify()).await?;
        let run = self.runs.begin(job.slot);
        self.counted.lock().sent += 1;
        let mut reading = Generating::new(&run, job.request.max_tokens);
        let path = self.path("/generate_stream");
        let silent = (|| (), std::future::pending);
        let result = self.server.stream((&path, job.trace()), &body, silent, &mut reading, out).await;
        if matches!(result, Err(EngineError::Refused(_) | EngineError::Unreachable(_) | EngineError::Busy { .. })) {
            self.counted.lock().sent -= 1; // It never reached the model, and is not counted.
        }
        run.conclude(&result);
        result
    }

    async fn released(&self, slot: u32) {
        self.runs.until_stopped(slot, || self.busy()).await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.server.client()?.get(&self.path("/ready"), ASK_TIMEOUT).await.map_err(|error| match error {
            HttpError::Status { status, body, .. } if status.is_client_error() => {
                EngineError::Unreachable(format!("it is not ready: {}", said(&body)).into())
            }
            other => lost(other),
        })?;
        self.server.recognise(|| self.identify()).await?;
        let busy = match self.busy().await {
            Busy::InFlight(runs) => Some(runs.max(self.runs.counted())), // What gives text computes, whoever else has ended.
            Busy::Unknown | Busy::Gone => None,
        };
        Ok(Telemetry { slots_busy: busy, ..Telemetry::default() })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_late_is_waited_for_and_one_that_never_comes_is_not() {
        let mut counted = Counted { sent: 3, ..Counted::default() };
        counted.on_idle(2);
        assert_eq!((counted.sent, counted.ended_before), (3, 0), "the third may only be late");
        counted.on_idle(3);
        assert_eq!((counted.sent, counted.ended_before), (0, 3), "all are counted");
        counted.sent = 2;
        for _ in 0..=STILL_LOOKS {
            assert_eq!(counted.ended_before, 3);
            counted.on_idle(4);
        }
        assert_eq!((counted.sent, counted.ended_before), (0, 4), "one of them was never counted");
        counted.on_idle(9);
        assert_eq!(counted.ended_before, 9, "others have sent some");
    }

    #[test]
    fn whatever_a_triton_server_says_is_text_or_an_error() {
        let runs = crate::gpu::http::in_flight::tests::runs(1);
        crate::gpu::http::fuzz::feed(|read| read(&mut Generating::new(&runs.begin(0), Tokens(9))));
    }
}
