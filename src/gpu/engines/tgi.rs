//! Hugging Face's Text Generation Inference, reached at a URL or started from a command.
//!
//! It draws tokens only where it is told to and takes no zeros for "off", so neutral values are left out. Special
//! tokens, such as the end of the text, are counted and not shown.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::core::task::resume::DeterminismClass;
use crate::core::task::{FinishReason, Workload};
use crate::core::units::Tokens;
use crate::gpu::engine::{
    Engine, EngineContext, EngineError, EngineInfo, Finish, Job, Repeats, Telemetry, TokenOutput,
};
use crate::gpu::http::in_flight::{InFlight, Run};
use crate::gpu::http::prometheus_text;
use crate::gpu::http::refusal::{error_event, lost};
use crate::gpu::http::server::{ASK_TIMEOUT, Server, StreamDecoder};

/// A TGI server.
pub struct Tgi {
    server: Server,
    runs: InFlight,
}

/// `/info`, as far as it matters.
#[derive(Deserialize)]
struct Info {
    model_id: String,
    #[serde(default)]
    model_sha: Option<String>,
    #[serde(default)]
    model_dtype: Option<String>,
    version: String,
    #[serde(default)]
    max_concurrent_requests: Option<u32>,
    #[serde(default)]
    max_total_tokens: Option<u32>,
}

/// What is sent to `/generate_stream`.
#[derive(Serialize)]
struct Generate<'a> {
    inputs: &'a str,
    parameters: Parameters<'a>,
}

#[derive(Serialize)]
struct Parameters<'a> {
    max_new_tokens: u32,
    seed: u64,
    details: bool,
    do_sample: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

impl<'a> Generate<'a> {
    fn new(job: &'a Job<'a>) -> Result<Self, EngineError> {
        let (request, sampling) = (job.request, &job.request.parameters);
        if sampling.min_p.is_some_and(|min_p| min_p > 0.0) {
            return Err(EngineError::Refused("TGI has no min_p; leave it out".into()));
        }
        let greedy = sampling.temperature == Some(0.0);
        Ok(Generate {
            inputs: &request.prompt,
            parameters: Parameters {
                max_new_tokens: request.max_tokens.0,
                seed: job.seed,
                details: true,
                do_sample: !greedy,
                temperature: sampling.temperature.filter(|temperature| *temperature > 0.0),
                top_p: sampling.top_p.filter(|top_p| !greedy && *top_p < 1.0),
                top_k: sampling.top_k.filter(|top_k| !greedy && *top_k > 0),
                repetition_penalty: sampling.repeat_penalty,
                stop: &request.parameters.stop,
            },
        })
    }
}

/// One event of the answer.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    token: Option<Token<'a>>,
    #[serde(borrow)]
    details: Option<Details<'a>>,
    error: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    generated_text: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Token<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    finish_reason: Cow<'a, str>,
    #[serde(default)]
    generated_tokens: Option<u32>,
    #[serde(default)]
    input_length: Option<u32>,
}

/// Reads one streamed answer.
pub(in crate::gpu) struct Generating<'a, 'b> {
    run: &'a Run<'b>,
    /// Tokens that were asked for, and those that have come, special ones included.
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
        self.run.show();
        self.tokens = self.tokens.saturating_add(u32::from(event.token.is_some()));
        out.counted(self.tokens);
        if let Some(token) = event.token.filter(|token| !token.special) {
            out.push(&token.text)?;
        }
        let Some(details) = event.details else {
            let over = event.generated_text.is_some();
            return if over { Err(EngineError::Garbled("the last event has no details".into())) } else { Ok(None) };
        };
        out.counted(details.generated_tokens.unwrap_or(0));
        let reason = match FinishReason::of_word(&details.finish_reason) {
            Some(FinishReason::Length)
                if details.generated_tokens.is_some_and(|tokens| tokens + 1 < self.max_tokens) =>
            {
                FinishReason::Context
            }
            Some(reason) => reason,
            None => return Err(EngineError::Lost(format!("the run ended by {:?}", details.finish_reason).into())),
        };
        Ok(Some(Finish { reason, tokens_in: details.input_length.map(Tokens) }))
    }
}

impl Tgi {
    /// A server for this worker, at the pool's `url` or from its `command`.
    pub fn new(context: &EngineContext) -> Self {
        Tgi { server: Server::new(context), runs: InFlight::new(context) }
    }

    async fn identify(&self) -> Result<EngineInfo, EngineError> {
        let info: Info = self.server.ask("/info").await?;
        let slots = self.server.context.slots;
        if let Some(most) = info.max_concurrent_requests.filter(|most| *most < slots) {
            let text = format!("the server takes {most} requests at once, the pool is configured for {slots}");
            return Err(EngineError::Preload(text.into()));
        }
        let dtype = info.model_dtype.unwrap_or_default();
        let digest = format!("tgi:{}:{dtype}", info.model_sha.unwrap_or(info.model_id));
        let mut about = EngineInfo::new(format!("tgi-{}", info.version), digest);
        about.ctx = info.max_total_tokens.map(Tokens);
        Ok(about)
    }
}

/// The gauges appear with the first request.
fn busy(text: &str) -> Option<u32> {
    let batch = prometheus_text::count(text, "tgi_batch_current_size").unwrap_or(0);
    Some(batch.saturating_add(prometheus_text::count(text, "tgi_queue_size").unwrap_or(0)))
}

impl Engine for Tgi {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let process_id = self.server.start("/health").await?;
        let info = EngineInfo { process_id, ..self.identify().await? };
        let info = EngineInfo { repeats: Repeats::UpTo(DeterminismClass::BatchInvariant), ..info };
        self.server.knows(&info);
        // Without them nobody could say when a cancelled run has really ended.
        self.server.client()?.get("/metrics", ASK_TIMEOUT).await.map_err(|error| {
            EngineError::Preload(format!("/metrics: {error}; leave the server's metrics on").into())
        })?;
        Ok(info)
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        if job.request.workload != Workload::Completion {
            return Err(EngineError::Refused("TGI serves completions only".into()));
        }
        let body = Generate::new(&job)?;
        self.server.recognise_for_run(|| self.identify()).await?;
        let run = self.runs.begin(job.slot);
        let (mut reading, path) = (Generating::new(&run, job.request.max_tokens), "/generate_stream");
        let silent = (|| (), std::future::pending);
        let result = self.server.stream((path, job.trace()), &body, silent, &mut reading, out).await;
        run.conclude(&result);
        result
    }

    async fn released(&self, slot: u32) {
        self.runs.until_stopped(slot, || self.server.busy(busy)).await;
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.server.client()?.get("/health", ASK_TIMEOUT).await.map_err(lost)?;
        self.server.recognise(|| self.identify()).await?;
        let text = self.server.figures("/metrics").await;
        Ok(Telemetry { slots_busy: text.as_deref().and_then(busy), ..Telemetry::default() })
    }

    async fn failure(&self) -> EngineError {
        self.server.failure().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::engine::Pieces;

    fn read(event: &str) -> (String, Result<Option<Finish>, EngineError>) {
        let (runs, mut out) = (crate::gpu::http::in_flight::tests::runs(1), Pieces::default());
        let run = runs.begin(0);
        let result = Generating::new(&run, Tokens(2)).event(event.as_bytes(), &mut out);
        (out.0.concat(), result)
    }

    #[test]
    fn each_event_of_the_server_is_understood() {
        let token = r#"{"index":1,"token":{"id":5,"text":" sea","logprob":-1.5,"special":false},"generated_text":null,"details":null}"#;
        assert_eq!(read(token), (" sea".into(), Ok(None)));
        let last = r#"{"index":2,"token":{"id":2,"text":"</s>","logprob":0,"special":true},"generated_text":"a sea","details":{"finish_reason":"eos_token","generated_tokens":2,"seed":7,"input_length":4}}"#;
        let finish = Finish { reason: FinishReason::Stop, tokens_in: Some(Tokens(4)) };
        assert_eq!(read(last), (String::new(), Ok(Some(finish))));
    }

    #[test]
    fn its_errors_are_told_apart() {
        let error = |kind: &str| read(&format!(r#"{{"error":"oops","error_type":"{kind}"}}"#)).1;
        assert!(matches!(error("validation"), Err(EngineError::Refused(_))));
        assert!(matches!(error("overloaded"), Err(EngineError::Busy { .. })));
        assert!(matches!(error("generation"), Err(EngineError::Lost(_))));
        assert!(matches!(read(r#"{"generated_text":"x"}"#).1, Err(EngineError::Garbled(_))));
    }

    #[test]
    fn whatever_a_tgi_server_says_is_text_or_an_error() {
        let runs = crate::gpu::http::in_flight::tests::runs(1);
        crate::gpu::http::fuzz::feed(|read| read(&mut Generating::new(&runs.begin(0), Tokens(9))));
    }
}
