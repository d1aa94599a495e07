//! The words of OpenAI's completions, as vLLM and many others speak them: what is sent, and what the events of an answer mean.

use std::borrow::Cow;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::core::task::FinishReason;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Job, TokenOutput};
use crate::gpu::runs::Run;
use crate::gpu::server::{Reading, refusal};

/// What is sent to `/v1/completions`. Fields that only some servers have are left out unless they are asked for.
#[derive(Serialize)]
pub(crate) struct Completion<'a> {
    model: &'a str,
    prompt: &'a str,
    max_tokens: u32,
    seed: u64,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
    /// vLLM's: each event counts its tokens.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continuous_usage_stats: bool,
}

impl<'a> Completion<'a> {
    /// The request for a run; `counts` asks for each event's count of tokens.
    pub(crate) fn new(model: &'a str, job: &'a Job<'a>, counts: bool) -> Self {
        let (request, sampling) = (job.request, &job.request.parameters);
        Completion {
            model,
            prompt: &request.prompt,
            max_tokens: request.max_tokens.0,
            seed: job.seed,
            stream: true,
            stream_options: StreamOptions { include_usage: true, continuous_usage_stats: counts },
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repeat_penalty,
            stop: &sampling.stop,
        }
    }
}

/// One event of the answer.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: First<Choice<'a>>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    text: Cow<'a, str>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

/// Text that is borrowed where it can be: inside an `Option` serde would copy a bare `Cow`.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The first entry of a list; we ask for one. Read without a list of our own: this is done for each token.
struct First<T>(Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        First(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = First<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<First<T>, A::Error> {
                let first = entries.next_element()?;
                while entries.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// Reads one streamed completion.
pub(crate) struct Completing<'a, 'b> {
    run: &'a Run<'b>,
    /// Tokens so far, by the server's count.
    tokens: u32,
    tokens_in: Option<Tokens>,
    reason: Option<FinishReason>,
}

impl<'a, 'b> Completing<'a, 'b> {
    pub(crate) fn new(run: &'a Run<'b>) -> Self {
        Completing { run, tokens: 0, tokens_in: None, reason: None }
    }
}

impl Reading for Completing<'_, '_> {
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError> {
        if data == b"[DONE]" {
            let reason = self.reason.ok_or_else(|| EngineError::Lost("the answer ended without a reason".into()))?;
            return Ok(Some(Finish { reason, tokens_in: self.tokens_in }));
        }
        let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(|error| EngineError::Garbled(error.to_string()))?;
        if let Some(error) = chunk.error {
            return Err(error_event(&error));
        }
        let mut new = 1;
        if let Some(usage) = chunk.usage {
            self.tokens_in = Some(Tokens(usage.prompt_tokens));
            new = usage.completion_tokens.saturating_sub(self.tokens).max(1);
            self.tokens = usage.completion_tokens;
        }
        let Some(choice) = chunk.choices.0 else { return Ok(None) };
        self.run.show();
        push_tokens(&choice.text, new, out)?;
        match choice.finish_reason.as_ref().map(|reason| &*reason.0) {
            None => {}
            Some("length") => self.reason = Some(FinishReason::Length),
            Some("stop" | "eos" | "stop_sequence") => self.reason = Some(FinishReason::Stop),
            Some(other) => return Err(EngineError::Lost(format!("the run ended by {other:?}"))),
        }
        Ok(None)
    }
}

/// An error in the middle of a stream: its code is a status where it has one.
fn error_event(error: &serde_json::Value) -> EngineError {
    let code = error.get("code").and_then(serde_json::Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let text = error.get("message").unwrap_or(error);
    let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
    match code.and_then(|code| hyper::StatusCode::from_u16(code).ok()) {
        Some(status) => refusal(status, &text),
        None => EngineError::Lost(text),
    }
}

/// Hands on the text of one event that carries several tokens. Where one ends and the next begins is not said, so it is cut
/// evenly: tokens are counted right, and text that is run again is compared byte for byte, however it is cut.
pub(crate) fn push_tokens(text: &str, tokens: u32, out: &mut dyn TokenOutput) -> Result<(), EngineError> {
    let mut rest = text;
    for left in (1..=tokens).rev() {
        let goal = rest.len().div_ceil(left as usize);
        let end = if left == 1 { rest.len() } else { rest.ceil_char_boundary(goal) };
        let (piece, behind) = rest.split_at(end);
        out.push(piece)?;
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    Ok(())
}

/// `/v1/models`, as far as it matters.
#[derive(Deserialize)]
pub(crate) struct Models {
    pub(crate) data: Vec<Model>,
}

#[derive(Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) root: Option<String>,
    #[serde(default)]
    pub(crate) max_model_len: Option<u32>,
}

impl Models {
    /// Whether the model is still served.
    ///
    /// # Errors
    /// [`EngineError::Lost`] when it is not.
    pub(crate) fn has(&self, id: &str) -> Result<(), EngineError> {
        let lost = || EngineError::Lost(format!("the server serves {id:?} no more"));
        self.data.iter().any(|model| model.id == id).then_some(()).ok_or_else(lost)
    }

    /// The served model that a pool means: the one of its name, else the only one.
    ///
    /// # Errors
    /// [`EngineError::Preload`] with what is served.
    pub(crate) fn find(mut self, name: &str) -> Result<Model, EngineError> {
        if let Some(at) = self.data.iter().position(|model| model.id == name) {
            return Ok(self.data.swap_remove(at));
        }
        let served: Vec<&str> = self.data.iter().map(|model| model.id.as_str()).collect();
        let text = format!("the server has no model {name:?}; it serves {}", served.join(", "));
        match self.data.pop() {
            Some(only) if self.data.is_empty() => Ok(only),
            _ => Err(EngineError::Preload(text)),
        }
    }
}

/// The answer of `/v1/embeddings`.
#[derive(Deserialize)]
pub(crate) struct Embeddings {
    pub(crate) data: Vec<Embedding>,
    #[serde(default)]
    pub(crate) usage: Option<PromptUsage>,
}

#[derive(Deserialize)]
pub(crate) struct Embedding {
    pub(crate) index: u32,
    pub(crate) embedding: Vec<f64>,
}

/// The answer of `/v1/rerank`.
#[derive(Deserialize)]
pub(crate) struct Rerank {
    pub(crate) results: Vec<Ranked>,
    #[serde(default)]
    pub(crate) usage: Option<PromptUsage>,
}

#[derive(Deserialize)]
pub(crate) struct Ranked {
    pub(crate) index: u32,
    pub(crate) relevance_score: f64,
}

#[derive(Deserialize)]
pub(crate) struct PromptUsage {
    #[serde(default)]
    pub(crate) prompt_tokens: Option<u32>,
    #[serde(default)]
    pub(crate) total_tokens: Option<u32>,
}

impl PromptUsage {
    pub(crate) fn tokens(&self) -> Option<Tokens> {
        self.prompt_tokens.or(self.total_tokens).map(Tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::engine::Pieces;
    use crate::gpu::runs::tests::runs;

    fn read(events: &[&str]) -> (Vec<String>, Result<Option<Finish>, EngineError>) {
        let runs = runs(1);
        let run = runs.begin(0);
        let (mut reading, mut out) = (Completing::new(&run), Pieces::default());
        let mut last = Ok(None);
        for event in events {
            last = reading.event(event.as_bytes(), &mut out);
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        (out.0, last)
    }

    #[test]
    fn an_event_of_several_tokens_becomes_as_many() {
        let (pieces, end) = read(&[
            r#"{"choices":[{"index":0,"text":"one","finish_reason":null}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#,
            r#"{"choices":[{"index":0,"text":" twoß three","finish_reason":null}],"usage":{"prompt_tokens":2,"completion_tokens":4}}"#,
            r#"{"choices":[{"index":0,"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":2,"completion_tokens":4}}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":4}}"#,
            "[DONE]",
        ]);
        assert_eq!(pieces.concat(), "one twoß three");
        assert_eq!(pieces.iter().filter(|piece| !piece.is_empty()).count(), 4);
        assert_eq!(end, Ok(Some(Finish { reason: FinishReason::Length, tokens_in: Some(Tokens(2)) })));
    }

    #[test]
    fn what_is_no_good_end_is_none() {
        let aborted = r#"{"choices":[{"index":0,"text":"x","finish_reason":"abort"}]}"#;
        assert!(matches!(read(&[aborted]).1, Err(EngineError::Lost(_))));
        assert!(matches!(read(&["[DONE]"]).1, Err(EngineError::Lost(_))), "without a reason");
        let dead = r#"{"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}"#;
        assert!(matches!(read(&[dead]).1, Err(EngineError::Lost(text)) if text.contains("EngineCore")));
        let bad = r#"{"error":{"message":"too long","code":400}}"#;
        assert!(matches!(read(&[bad]).1, Err(EngineError::Refused(text)) if text == "too long"));
        assert!(matches!(read(&["{]"]).1, Err(EngineError::Garbled(_))));
    }

    #[test]
    fn a_pool_means_the_model_of_its_name_or_the_only_one() {
        let models = |ids: &[&str]| Models {
            data: ids.iter().map(|id| Model { id: (*id).into(), root: None, max_model_len: None }).collect(),
        };
        assert_eq!(models(&["a", "b"]).find("b").unwrap().id, "b");
        assert_eq!(models(&["a"]).find("b").unwrap().id, "a");
        let error = models(&["a", "c"]).find("b").err().unwrap().to_string();
        assert!(error.contains("\"b\"") && error.contains("a, c"), "{error}");
        assert!(models(&[]).find("b").is_err());
    }

    #[test]
    fn whatever_a_server_of_openais_shape_says_is_text_or_an_error() {
        let runs = crate::gpu::runs::tests::runs(1);
        crate::gpu::fuzz::feed(|read| read(&mut Completing::new(&runs.begin(0))));
    }
}
