//! The words of OpenAI's completions, as vLLM and many others speak them: what is sent, and what the events of an
//! answer mean.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::core::task::FinishReason;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Job, TokenOutput};
use crate::gpu::http::embeddings::VectorText;
use crate::gpu::http::in_flight::Run;
use crate::gpu::http::refusal::error_event;
use crate::gpu::http::server::StreamDecoder;

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

/// One event of the answer: any of text, reason and counts, each of which may be left out, null, or empty.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: Option<Choices<'a>>,
    usage: Option<Usage>,
    error: Option<IgnoredAny>,
    /// An error of older servers stands at the top.
    message: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Count,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

/// Text that is borrowed where it can be: inside an `Option` serde would copy a bare `Cow`.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The choice of index 0 of a list: one is asked for. Read without a list of our own: this is done for each token.
struct Choices<'a>(Option<Choice<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Choices<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<'a>(PhantomData<Choice<'a>>);
        impl<'de: 'a, 'a> Visitor<'de> for Entries<'a> {
            type Value = Choices<'a>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Choices<'a>, A::Error> {
                let mut found = None;
                while let Some(choice) = entries.next_element::<Choice<'a>>()? {
                    if choice.index.0.unwrap_or(0) == 0 {
                        found.get_or_insert(choice);
                    }
                }
                Ok(Choices(found))
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
}

/// A number of tokens, of a server that may say null, or nonsense, where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count(Option<u32>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Count;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of tokens")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Count, E> {
                Ok(Count(u32::try_from(number).ok()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Count, E> {
                Ok(Count(u32::try_from(number).ok()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Count, E> {
                Ok(Count((0.0..1e9).contains(&number).then_some(number as u32)))
            }
            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_str<E>(self, _: &str) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Count, E> {
                Ok(Count(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Reads one streamed completion. A reason, a `[DONE]`, or an answer that ends properly each suffice as its end.
pub(crate) struct CompletionDecoder<'a, 'b> {
    run: &'a Run<'b>,
    /// The server has been seen to tell its ends, by a reason or a `[DONE]`.
    tells: &'a AtomicBool,
    /// Tokens that were asked for.
    max_tokens: u32,
    /// Pieces of text so far.
    pieces: u32,
    /// Tokens so far, while the server counts each event; `None` when it was silent about one.
    each: Option<u32>,
    /// The server's newest count.
    counted: Option<u32>,
    tokens_in: Option<Tokens>,
    reason: Option<FinishReason>,
}

impl<'a, 'b> CompletionDecoder<'a, 'b> {
    pub(crate) fn new((run, tells): (&'a Run<'b>, &'a AtomicBool), max_tokens: Tokens) -> Self {
        let (max_tokens, pieces, counted, tokens_in) = (max_tokens.0, 0, None, None);
        CompletionDecoder { run, tells, max_tokens, pieces, each: Some(0), counted, tokens_in, reason: None }
    }

    /// Takes up the server's counts. Returns how many tokens this event carries, as far as that is known.
    fn count(&mut self, usage: Option<Usage>, has_text: bool, out: &mut dyn TokenOutput) -> u32 {
        let (prompt, tokens) = usage.map_or((None, None), |usage| (usage.prompt_tokens.0, usage.completion_tokens.0));
        // Counts only grow; a server that has none yet, or none in its last event, says 0.
        self.tokens_in = prompt.filter(|tokens| *tokens > 0).map(Tokens).max(self.tokens_in);
        let Some(tokens) = tokens.filter(|tokens| *tokens > 0) else {
            self.each = self.each.filter(|_| !has_text);
            return 1;
        };
        self.counted = self.counted.max(Some(tokens));
        out.counted(tokens);
        // Counts that come with the last event alone are of all, and say nothing of this one.
        let new = self.each.map_or(1, |before| tokens.saturating_sub(before));
        self.each = self.each.map(|before| before.max(tokens));
        new.clamp(1, self.max_tokens.saturating_sub(self.pieces).max(1))
    }

    fn end(&self) -> Finish {
        let (asked, computed) = (self.max_tokens, self.counted.unwrap_or(self.pieces));
        if self.reason.is_some() {
            self.tells.store(true, Relaxed);
        }
        let reason = match self.reason {
            // It is full for another reason than the budget: its context is. A server may not count the last token.
            Some(FinishReason::Length) if self.counted.is_some_and(|counted| counted > 0 && counted + 1 < asked) => {
                FinishReason::Context
            }
            Some(reason) => reason,
            None if computed >= asked => FinishReason::Length,
            None => FinishReason::Stop,
        };
        Finish { reason, tokens_in: self.tokens_in }
    }
}

impl StreamDecoder for CompletionDecoder<'_, '_> {
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError> {
        if data.trim_ascii() == b"[DONE]" {
            self.tells.store(true, Relaxed);
            return Ok(Some(self.end()));
        }
        let garbled = |error: serde_json::Error| EngineError::Garbled(error.to_string().into());
        let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(garbled)?;
        let choice = chunk.choices.and_then(|choices| choices.0);
        if chunk.error.is_some() || choice.is_none() && chunk.message.is_some() {
            return Err(error_event(&serde_json::from_slice(data).map_err(garbled)?));
        }
        let text = choice.as_ref().and_then(|choice| choice.text.as_ref()).map_or("", |text| &text.0);
        let tokens = self.count(chunk.usage, !text.is_empty(), out);
        let Some(choice) = &choice else {
            out.is_alive();
            return Ok(None);
        };
        self.run.show();
        if text.is_empty() {
            out.is_alive();
        } else {
            self.pieces += push_tokens(text, tokens, out)?;
        }
        match choice.finish_reason.as_ref().map_or("", |reason| &*reason.0) {
            "" | "null" => {}
            word => {
                let reason = FinishReason::of_word(word);
                self.reason =
                    Some(reason.ok_or_else(|| EngineError::Lost(format!("the run ended by {word:?}").into()))?);
            }
        }
        Ok(None)
    }

    fn is_over(&self) -> bool {
        self.reason.is_some()
    }

    fn ended(&mut self, framed: bool) -> Result<Finish, EngineError> {
        let has_said_something = self.pieces > 0 || self.counted.is_some();
        // A proxy in front may end an answer properly that was cut behind it: of a server that tells its ends, that is
        // none.
        if self.reason.is_some() || framed && has_said_something && !self.tells.load(Relaxed) {
            return Ok(self.end());
        }
        Err(EngineError::Lost("the answer ended without a reason, a [DONE] or an end of its body".into()))
    }
}

/// Hands on the text of one event that carries several tokens; returns in how many pieces. Where one token ends and the
/// next begins is not said, so the text is cut evenly: it comes as smoothly as it was computed, and what is run again
/// is compared byte for byte, however it is cut.
fn push_tokens(text: &str, tokens: u32, out: &mut dyn TokenOutput) -> Result<u32, EngineError> {
    let (mut rest, mut pieces) = (text, 0);
    for left in (1..=tokens).rev() {
        let goal = rest.len().div_ceil(left as usize);
        let end = if left == 1 { rest.len() } else { rest.ceil_char_boundary(goal) };
        let (piece, behind) = rest.split_at(end);
        out.push(piece)?;
        pieces += 1;
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    Ok(pieces)
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
    /// The server lists no model at all: this one is taken for served because it was asked for.
    #[serde(skip)]
    pub(crate) is_unlisted: bool,
}

/// Most models of a server that an error names.
const SERVED_SHOWN: usize = 8;

impl Models {
    /// Whether the model is still served. One that never was listed is, as long as none is.
    ///
    /// # Errors
    /// [`EngineError::Replaced`] when it is not.
    pub(crate) fn has(&self, id: &str, is_unlisted: bool) -> Result<(), EngineError> {
        if is_unlisted && self.data.is_empty() {
            return Ok(());
        }
        let served =
            || self.data.iter().take(SERVED_SHOWN).map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
        let replaced =
            || EngineError::Replaced(format!("the server serves {id:?} no more; it serves {}", served()).into());
        self.data.iter().any(|model| model.id == id).then_some(()).ok_or_else(replaced)
    }

    /// The served model that a pool means: the one of its name, else the only one. Where a server may list none, an
    /// empty list says nothing: `transformers serve` lists what was downloaded, and not the folder that it serves.
    ///
    /// # Errors
    /// [`EngineError::Preload`] with what is served.
    pub(crate) fn find(mut self, name: &str, may_list_none: bool) -> Result<Model, EngineError> {
        if let Some(at) = self.data.iter().position(|model| model.id == name) {
            return Ok(self.data.swap_remove(at));
        }
        let served: Vec<&str> = self.data.iter().map(|model| model.id.as_str()).collect();
        let text = format!("the server has no model {name:?}; it serves {}", served.join(", "));
        match self.data.pop() {
            Some(only) if self.data.is_empty() => Ok(only),
            None if may_list_none => Ok(Model { id: name.into(), root: None, max_model_len: None, is_unlisted: true }),
            _ => Err(EngineError::Preload(text.into())),
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
    pub(crate) embedding: VectorText,
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
    use crate::gpu::http::in_flight::tests::runs;

    fn read(events: &[&str]) -> (Vec<String>, Result<Option<Finish>, EngineError>) {
        let (runs, tells) = (runs(1), AtomicBool::new(false));
        let run = runs.begin(0);
        let (mut reading, mut out) = (CompletionDecoder::new((&run, &tells), Tokens(4)), Pieces::default());
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
        let dead = r#"{"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}"#;
        assert!(matches!(read(&[dead]).1, Err(EngineError::Lost(text)) if text.contains("EngineCore")));
        let bad = r#"{"error":{"message":"too long","code":400}}"#;
        assert!(matches!(read(&[bad]).1, Err(EngineError::Refused(text)) if text == "too long"));
        assert!(matches!(read(&["{]"]).1, Err(EngineError::Garbled(_))));
    }

    #[test]
    fn a_pool_means_the_model_of_its_name_or_the_only_one() {
        let models = |ids: &[&str]| Models {
            data: ids.iter().map(|id| serde_json::from_value(serde_json::json!({ "id": id })).unwrap()).collect(),
        };
        assert_eq!(models(&["a", "b"]).find("b", false).unwrap().id, "b");
        assert_eq!(models(&["a"]).find("b", true).unwrap().id, "a");
        let error = models(&["a", "c"]).find("b", true).err().unwrap().to_string();
        assert!(error.contains("\"b\"") && error.contains("a, c"), "{error}");
        assert!(models(&[]).find("b", false).is_err());
        let unlisted = models(&[]).find("b", true).unwrap();
        assert!(unlisted.id == "b" && unlisted.is_unlisted);
        assert!(models(&[]).has("b", true).is_ok() && models(&[]).has("b", false).is_err());
        assert!(models(&["a"]).has("b", true).is_err(), "now it lists some, and not this one");
    }

    #[test]
    fn whatever_a_server_of_openais_shape_says_is_text_or_an_error() {
        let (runs, tells) = (crate::gpu::http::in_flight::tests::runs(1), AtomicBool::new(false));
        crate::gpu::http::fuzz::feed(|read| read(&mut CompletionDecoder::new((&runs.begin(0), &tells), Tokens(9))));
    }
}
