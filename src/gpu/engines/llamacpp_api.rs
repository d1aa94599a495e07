//! The words of llama.cpp's server: what it says of itself, what it is sent, and what the events of an answer mean.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::core::task::{Determinism, FinishReason, KvHint};
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Job, TokenOutput};
use crate::gpu::engines::openai_api::Text;
use crate::gpu::http::refusal::error_event;
use crate::gpu::http::server::StreamDecoder;

/// `/props`, as far as it matters.
#[derive(Deserialize)]
pub(in crate::gpu) struct Props {
    /// `router` where it serves several models, each by a server of its own.
    pub(in crate::gpu) role: Option<String>,
    pub(in crate::gpu) total_slots: Option<u32>,
    #[serde(default)]
    pub(in crate::gpu) build_info: String,
    #[serde(default)]
    pub(in crate::gpu) model_path: String,
    #[serde(default)]
    pub(in crate::gpu) chat_template: String,
    pub(in crate::gpu) default_generation_settings: Option<Settings>,
}

#[derive(Deserialize)]
pub(in crate::gpu) struct Settings {
    pub(in crate::gpu) n_ctx: u32,
}

/// One entry of `/slots`.
#[derive(Deserialize)]
pub(in crate::gpu) struct Slot {
    pub(in crate::gpu) id: u32,
    pub(in crate::gpu) is_processing: bool,
    /// Tokens of the prompt that have been evaluated.
    #[serde(default)]
    pub(in crate::gpu) n_prompt_tokens_processed: u64,
    #[serde(default)]
    pub(in crate::gpu) next_token: serde_json::Value,
}

/// `/v1/models`, as far as it matters: what the loaded file is made of.
#[derive(Deserialize)]
pub(in crate::gpu) struct Models {
    pub(in crate::gpu) data: Vec<Model>,
}

#[derive(Deserialize)]
pub(in crate::gpu) struct Model {
    #[serde(default)]
    pub(in crate::gpu) id: String,
    pub(in crate::gpu) meta: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What `/v1/models` says of a file; what else it says, or a later build adds, may be of how the file is served.
pub(in crate::gpu) const OF_THE_FILE: [&str; 7] =
    ["n_params", "n_vocab", "n_embd", "n_ctx_train", "size", "ftype", "vocab_type"];

/// What we send to `/completion`.
#[derive(Serialize)]
pub(in crate::gpu) struct Completion<'a> {
    pub(in crate::gpu) prompt: &'a str,
    pub(in crate::gpu) n_predict: u32,
    pub(in crate::gpu) seed: u64,
    pub(in crate::gpu) stream: bool,
    pub(in crate::gpu) cache_prompt: bool,
    pub(in crate::gpu) id_slot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::gpu) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::gpu) top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::gpu) top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::gpu) min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::gpu) repeat_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(in crate::gpu) stop: &'a [String],
}

/// One event of the answer.
#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow)]
    pub(in crate::gpu) content: Option<Text<'a>>,
    #[serde(default)]
    pub(in crate::gpu) stop: bool,
    #[serde(default, borrow)]
    pub(in crate::gpu) stop_type: Cow<'a, str>,
    /// Older builds say so instead of naming a type.
    #[serde(default)]
    pub(in crate::gpu) stopped_limit: bool,
    /// The context was full before the budget was used up.
    #[serde(default)]
    pub(in crate::gpu) truncated: bool,
    /// Tokens of this run so far: an event may carry several, or none that has text.
    pub(in crate::gpu) tokens_predicted: Option<u32>,
    pub(in crate::gpu) tokens_evaluated: Option<u32>,
    pub(in crate::gpu) error: Option<serde::de::IgnoredAny>,
}

impl<'a> Completion<'a> {
    /// The request for a run.
    pub(in crate::gpu) fn new(job: &'a Job<'a>) -> Self {
        let request = job.request;
        let repeatable = request.determinism == Determinism::Strict || request.kv_hint == KvHint::Cold;
        Completion {
            prompt: &request.prompt,
            n_predict: request.max_tokens.0,
            seed: job.seed,
            stream: true,
            cache_prompt: !repeatable,
            id_slot: job.slot,
            temperature: request.parameters.temperature,
            top_p: request.parameters.top_p,
            top_k: request.parameters.top_k,
            min_p: request.parameters.min_p,
            repeat_penalty: request.parameters.repeat_penalty,
            stop: &request.parameters.stop,
        }
    }
}

/// Whether the server says that this slot computes nothing.
pub(in crate::gpu) fn is_idle(slots: &[u8], slot: u32) -> bool {
    let slots: Option<Vec<Slot>> = serde_json::from_slice(slots).ok();
    slots.is_some_and(|slots| slots.iter().all(|known| known.id != slot || !known.is_processing))
}

/// What stands for progress in a prompt once text has come.
pub(in crate::gpu) const HAS_TEXT: u64 = u64::MAX;

/// Reads one streamed completion.
#[derive(Default)]
pub(in crate::gpu) struct CompletionDecoder<'a> {
    /// Set to [`HAS_TEXT`] with the first text.
    pub(in crate::gpu) progress: Option<&'a AtomicU64>,
}

impl StreamDecoder for CompletionDecoder<'_> {
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError> {
        let garbled = |error: serde_json::Error| EngineError::Garbled(error.to_string().into());
        let piece: Piece<'_> = serde_json::from_slice(data).map_err(garbled)?;
        if piece.error.is_some() {
            return Err(error_event(&serde_json::from_slice(data).map_err(garbled)?));
        }
        out.counted(piece.tokens_predicted.unwrap_or(0));
        match piece.content.as_ref().filter(|text| !text.0.is_empty()) {
            Some(text) => {
                if let Some(progress) = self.progress.take() {
                    progress.store(HAS_TEXT, Relaxed);
                }
                out.push(&text.0)?;
            }
            None => out.is_alive(),
        }
        if !piece.stop {
            return Ok(None);
        }
        let reason = match (piece.stop_type == "limit" || piece.stopped_limit, piece.truncated) {
            (true, true) => FinishReason::Context,
            (true, false) => FinishReason::Length,
            (false, _) => FinishReason::Stop,
        };
        Ok(Some(Finish { reason, tokens_in: piece.tokens_evaluated.map(Tokens) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::engine::Pieces;

    fn read(event: &str) -> (String, Result<Option<Finish>, EngineError>) {
        let mut out = Pieces::default();
        let result = CompletionDecoder::default().event(event.as_bytes(), &mut out);
        (out.0.concat(), result)
    }

    #[test]
    fn each_event_of_the_server_is_understood() {
        let text = r#"{"index":0,"content":" think","tokens":[348],"stop":false,"id_slot":-1,"tokens_predicted":2}"#;
        assert_eq!(read(text), (" think".into(), Ok(None)));
        let last = r#"{"content":"","stop":true,"tokens_evaluated":15,"stop_type":"limit"}"#;
        let finish = Finish { reason: FinishReason::Length, tokens_in: Some(Tokens(15)) };
        assert_eq!(read(last), (String::new(), Ok(Some(finish))));
    }

    #[test]
    fn its_errors_are_told_apart() {
        let client = r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#;
        assert!(matches!(read(client).1, Err(EngineError::Refused(text)) if text == "too long"));
        let server = r#"{"error":{"code":500,"message":"oops"}}"#;
        assert!(matches!(read(server).1, Err(EngineError::Lost(_))));
        assert!(matches!(read("{]").1, Err(EngineError::Garbled(_))));
    }

    #[test]
    fn whatever_a_llamacpp_server_says_is_text_or_an_error() {
        crate::gpu::http::fuzz::feed(|read| read(&mut CompletionDecoder::default()));
    }
}
