//! A host with a model in its own process: `cargo run --release --manifest-path examples/candle/Cargo.toml`.
//!
//! The model is a small recurrent network of candle's tensors, with weights that are made on the spot, so it says
//! nothing that makes sense. What matters is its shape: `step` blocks its thread, as inference does, and knows no
//! `await`.

use std::error::Error;
use std::time::Duration;

use candle_core::{D, Device, Tensor};
use orchestrator_core::core::resume::DeterminismClass;
use orchestrator_core::gpu::Repeats;
use orchestrator_core::prelude::*;

/// What the model can say, one word for each token.
const WORDS: [&str; 16] = [
    "the ", "a ", "sky ", "sea ", "sun ", "is ", "was ", "red ", "deep ", "and ", "or ", "not ", "very ", "wide ",
    "old ", "new ",
];
const HIDDEN: usize = 64;

/// A recurrent network: `hidden = tanh(hidden · recurrent + embedding[token])`, `logits = hidden · output`.
struct Model {
    embedding: Tensor,
    recurrent: Tensor,
    output: Tensor,
}

impl Model {
    fn new() -> candle_core::Result<Self> {
        // The same weights in every process: the digest that the engine reports stands for them.
        let mut dice = fastrand::Rng::with_seed(1);
        let mut weights = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|_| (dice.f32() - 0.5) * 0.7).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu)
        };
        Ok(Model {
            embedding: weights(WORDS.len(), HIDDEN)?,
            recurrent: weights(HIDDEN, HIDDEN)?,
            output: weights(HIDDEN, WORDS.len())?,
        })
    }

    /// The state behind one token more, and how likely each next one is.
    fn step(&self, hidden: &Tensor, token: usize) -> candle_core::Result<(Tensor, Vec<f32>)> {
        let hidden = (hidden.matmul(&self.recurrent)? + self.embedding.narrow(0, token, 1)?)?.tanh()?;
        let logits = (hidden.matmul(&self.output)? * 4.0)?;
        let scaled = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        let likely = scaled.broadcast_div(&scaled.sum_keepdim(D::Minus1)?)?;
        Ok((hidden, likely.flatten_all()?.to_vec1()?))
    }
}

/// The model as an engine whose calls block.
struct Recurrent(Model);

impl BlockingEngine for Recurrent {
    fn preload(&self) -> Result<EngineInfo, EngineError> {
        let info = EngineInfo::new("recurrent-1", "seed-1");
        // Nothing is batched: runs may show that the same seed gives the same tokens, alone and beside others.
        Ok(info.repeats(Repeats::UpTo(DeterminismClass::BatchInvariant)))
    }

    fn generate(&self, job: &BlockingJob, out: &mut BlockingOutput) -> Result<Finish, EngineError> {
        let mut dice = fastrand::Rng::with_seed(job.seed);
        let mut hidden =
            Tensor::zeros((1, HIDDEN), candle_core::DType::F32, &Device::Cpu).map_err(EngineError::other)?;
        let mut likely = vec![1.0 / WORDS.len() as f32; WORDS.len()];
        for byte in job.request.prompt.bytes() {
            (hidden, likely) = self.0.step(&hidden, usize::from(byte) % WORDS.len()).map_err(EngineError::other)?;
        }
        loop {
            let mut roll = dice.f32();
            let token = likely
                .iter()
                .position(|share| {
                    roll -= share;
                    roll < 0.0
                })
                .unwrap_or(0);
            out.push(WORDS[token])?; // Stopped: cancelled, timed out, or all that it may say.
            (hidden, likely) = self.0.step(&hidden, token).map_err(EngineError::other)?;
        }
    }
}

async fn start() -> Result<Orchestrator, StartError> {
    let mut pool = PoolConfig::new("recurrent", "candle", "recurrent");
    (pool.slots, pool.ctx) = (2, Some(65_536));
    // The factory may fail and may block: it runs on a thread for that.
    let factory =
        |_: &EngineContext| Model::new().map(|model| Blocking::new(Recurrent(model))).map_err(EngineError::other);
    Orchestrator::builder().pool(pool, factory).start().await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let orchestrator = start().await?;
    let submitted = orchestrator.submit(TaskRequest::completion("The sky").max_tokens(24).seed(7)).await?;
    let mut stream = submitted.stream();
    while let Some((_, event)) = stream.next().await {
        if let Event::Token { text, .. } = event {
            print!("{text}");
        }
    }
    println!();
    orchestrator.stop(Duration::from_secs(10)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(orchestrator: &Orchestrator, seed: u64) -> String {
        let request = TaskRequest::completion("The sky").max_tokens(32).seed(seed);
        let (text, end) = orchestrator.submit(request).await.expect("accepted").stream().collect().await;
        assert!(matches!(&end, Some(Event::End(end)) if end.attempts == 1), "{end:?}");
        text
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_model_in_this_process_streams_repeats_itself_and_stops() {
        let orchestrator = start().await.expect("it starts");
        assert!(orchestrator.until_ready().await);
        let (one, other) = tokio::join!(text(&orchestrator, 7), text(&orchestrator, 7));
        assert!(one == other && one.split_whitespace().count() == 32, "{one:?} {other:?}");
        assert_ne!(one, text(&orchestrator, 8).await);

        // Millions of tokens: it is stopped in the middle, and its slot is free behind that.
        let endless = orchestrator.submit(TaskRequest::completion("x").max_tokens(30_000)).await.expect("accepted");
        let mut stream = endless.stream();
        while !matches!(stream.next().await, Some((_, Event::Token { .. }))) {}
        orchestrator.cancel(&endless.task_id);
        let view = orchestrator.task(&endless.task_id).expect("known");
        assert!(view.tokens_out < 30_000, "{view:?}");
        orchestrator.stop(Duration::from_secs(10)).await;
    }

    /// Long runs beside the work, alone and in every slot at once, show what may be relied upon.
    #[tokio::test(flavor = "multi_thread")]
    async fn its_determinism_class_is_measured() {
        let orchestrator = start().await.expect("it starts");
        assert!(orchestrator.until_ready().await);
        let shown = || orchestrator.pools()[0].replicas[0].self_test.map(|shown| shown.determinism_class);
        assert_eq!(shown(), Some(DeterminismClass::None), "a few tokens show nothing");
        let measured = async {
            while shown() != Some(DeterminismClass::BatchInvariant) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), measured).await.expect("measured within two minutes");
        orchestrator.stop(Duration::from_secs(10)).await;
    }
}
