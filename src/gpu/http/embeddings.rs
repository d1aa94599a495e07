//! Embeddings and ranking: one answer, not a stream. Each input's result is one event of the task's stream, as JSON: a
//! vector, or `{"index":…,"score":…}`.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::core::task::FinishReason;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Job, TokenOutput};
use crate::gpu::engines::openai_api::{Embeddings, Ranked, Rerank};
use crate::gpu::http::server::Server;

/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What an answer may have besides its results.
const REST_BYTES: usize = 64 * 1024;
/// What one vector may have: 16,384 numbers of 32 bytes.
const VECTOR_BYTES: usize = 512 * 1024;
/// What one rank may have besides the document, which some servers send back.
const RANK_BYTES: usize = 4 * 1024;
/// Bytes that JSON may need for one of a document.
const ESCAPED: usize = 6;
/// Most numbers of a vector.
const DIMENSIONS_MAX: usize = 65_536;

/// A vector as it is handed on: the text of a JSON array of numbers. It is made number by number, so that a large
/// answer is in memory as two texts and nothing more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VectorText(String);

impl<'de> Deserialize<'de> for VectorText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Numbers)
    }
}

struct Numbers;

impl<'de> Visitor<'de> for Numbers {
    type Value = VectorText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vector of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<VectorText, A::Error> {
        let (mut text, mut count) = (String::from("["), 0);
        while let Some(number) = numbers.next_element::<f64>()? {
            if count == DIMENSIONS_MAX {
                return Err(A::Error::custom(format!("a vector of more than {DIMENSIONS_MAX} numbers")));
            }
            if count > 0 {
                text.push(',');
            }
            text.push_str(&serde_json::to_string(&number).map_err(A::Error::custom)?);
            count += 1;
        }
        text.push(']');
        Ok(VectorText(text))
    }
}

#[derive(Serialize)]
struct EmbeddingBody<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

#[derive(Serialize)]
struct RerankBody<'a> {
    model: &'a str,
    query: &'a str,
    documents: &'a [String],
}

/// Embeds the task's inputs.
///
/// # Errors
/// [`EngineError`] when the engine does not, or answers for other inputs than were asked for.
pub(crate) async fn embed(
    server: &Server,
    path: &str,
    model: &str,
    job: &Job<'_>,
    out: &mut dyn TokenOutput,
) -> Result<Finish, EngineError> {
    let inputs = &job.request.inputs;
    let body = EmbeddingBody { model, input: inputs, encoding_format: "float" };
    let bytes_max = inputs.len().saturating_mul(VECTOR_BYTES).saturating_add(REST_BYTES).min(ANSWER_BYTES_MAX);
    let answer: Embeddings = server.post(path, &body, bytes_max).await?;
    let tokens_in = answer.usage.and_then(|usage| usage.tokens());
    let results = answer.data.into_iter().map(|entry| (entry.index, entry.embedding.0));
    hand_on(results.collect(), inputs.len(), tokens_in, out)
}

/// Ranks the task's inputs by how well they fit its prompt.
///
/// # Errors
/// [`EngineError`] when the engine does not, or answers for other inputs than were asked for.
pub(crate) async fn rerank(
    server: &Server,
    path: &str,
    model: &str,
    job: &Job<'_>,
    out: &mut dyn TokenOutput,
) -> Result<Finish, EngineError> {
    let inputs = &job.request.inputs;
    let body = RerankBody { model, query: &job.request.prompt, documents: inputs };
    let documents = ESCAPED * inputs.iter().map(String::len).sum::<usize>();
    let bytes_max = (inputs.len() * RANK_BYTES + documents + REST_BYTES).min(ANSWER_BYTES_MAX);
    let answer: Rerank = server.post(path, &body, bytes_max).await?;
    let tokens_in = answer.usage.and_then(|usage| usage.tokens());
    let results = answer.results.into_iter();
    let text = |entry: &Ranked| json!({ "index": entry.index, "score": entry.relevance_score }).to_string();
    let results = results.map(|entry| (entry.index, text(&entry)));
    hand_on(results.collect(), inputs.len(), tokens_in, out)
}

/// Hands the results on in the order of the inputs; each input must have one.
fn hand_on(
    mut results: Vec<(u32, String)>,
    inputs: usize,
    tokens_in: Option<Tokens>,
    out: &mut dyn TokenOutput,
) -> Result<Finish, EngineError> {
    results.sort_by_key(|(index, _)| *index);
    if !results.iter().map(|(index, _)| *index as usize).eq(0..inputs) {
        return Err(EngineError::Garbled(format!("{inputs} inputs, and {} results for them", results.len()).into()));
    }
    for (_, result) in results {
        out.push(&result)?;
    }
    Ok(Finish { reason: FinishReason::Stop, tokens_in })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::engine::Pieces;

    #[test]
    fn results_come_in_the_order_of_the_inputs_and_none_is_missing() {
        let mut out = Pieces::default();
        let text = |text: &str| text.to_owned();
        let finish = hand_on(vec![(1, text("[0.5]")), (0, text("[0.25]"))], 2, None, &mut out);
        assert!(finish.is_ok());
        assert_eq!(out.0, ["[0.25]", "[0.5]"]);
        for wrong in [&[0_u32][..], &[0, 0], &[1, 2]] {
            let wrong = wrong.iter().map(|index| (*index, text("1"))).collect();
            assert!(matches!(hand_on(wrong, 2, None, &mut out), Err(EngineError::Garbled(_))));
        }
    }
    #[test]
    fn a_vector_is_the_numbers_that_were_sent_and_nothing_else_is_one() {
        let read =
            |text: &str| serde_json::from_str::<VectorText>(text).map(|vector| vector.0).map_err(|e| e.to_string());
        assert_eq!(read(" [0.25,\n -1e-3, 3 ] "), Ok("[0.25,-0.001,3.0]".into()));
        assert_eq!(read("[]"), Ok("[]".into()));
        for wrong in ["{}", "[\"a\"]", "[[1]]", "[null]", "1", "\"AAAA\""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let long = format!("[{}0]", "0,".repeat(DIMENSIONS_MAX));
        assert!(read(&long).unwrap_err().contains("more than 65536"));
    }
}
