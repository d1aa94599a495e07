//! Embeddings and ranking: one answer, not a stream. Each input's result is one event of the task's stream, as JSON: a vector, or
//! `{"index":…,"score":…}`.

use serde::Serialize;
use serde_json::json;

use crate::core::task::FinishReason;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Job, TokenOutput};
use crate::gpu::openai_api::{Embeddings, Rerank};
use crate::gpu::server::Server;

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
    let answer: Embeddings = server.post(path, &body).await?;
    let tokens_in = answer.usage.and_then(|usage| usage.tokens());
    let results = answer.data.into_iter().map(|entry| (entry.index, json!(entry.embedding)));
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
    let answer: Rerank = server.post(path, &body).await?;
    let tokens_in = answer.usage.and_then(|usage| usage.tokens());
    let results = answer.results.into_iter();
    let results = results.map(|entry| (entry.index, json!({ "index": entry.index, "score": entry.relevance_score })));
    hand_on(results.collect(), inputs.len(), tokens_in, out)
}

/// Hands the results on in the order of the inputs; each input must have one.
fn hand_on(
    mut results: Vec<(u32, serde_json::Value)>,
    inputs: usize,
    tokens_in: Option<Tokens>,
    out: &mut dyn TokenOutput,
) -> Result<Finish, EngineError> {
    results.sort_by_key(|(index, _)| *index);
    if !results.iter().map(|(index, _)| *index as usize).eq(0..inputs) {
        return Err(EngineError::Garbled(format!("{inputs} inputs, and {} results for them", results.len()).into()));
    }
    for (_, result) in results {
        out.push(&result.to_string())?;
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
        let finish = hand_on(vec![(1, json!([0.5])), (0, json!([0.25]))], 2, None, &mut out);
        assert!(finish.is_ok());
        assert_eq!(out.0, ["[0.25]", "[0.5]"]);
        for wrong in [vec![(0, json!(1))], vec![(0, json!(1)), (0, json!(1))], vec![(1, json!(1)), (2, json!(1))]] {
            assert!(matches!(hand_on(wrong, 2, None, &mut out), Err(EngineError::Garbled(_))));
        }
    }
}
