//! The library inside a host program: a stranger's engine, a host's habits.

#[path = "embedding/broken.rs"]
mod broken;
#[path = "embedding/lives.rs"]
mod lives;
#[path = "embedding/matrix.rs"]
mod matrix;
#[path = "embedding/figures.rs"]
mod prometheus_text;
#[path = "embedding/waiting.rs"]
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use orchestrator_core::prelude::*;

/// An engine that says as many words as it may, at once.
pub struct Words;

impl Engine for Words {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("words-1", "none"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        for index in 0..job.request.max_tokens.0 {
            out.push(&format!("{index} "))?;
        }
        Ok(Finish { reason: FinishReason::Length, tokens_in: None })
    }
}

/// Counts what is there of something.
#[derive(Clone, Default)]
pub struct Alive(Arc<AtomicUsize>);

impl Alive {
    pub fn one(&self) -> OneAlive {
        self.0.fetch_add(1, SeqCst);
        OneAlive(self.0.clone())
    }

    pub fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

pub struct OneAlive(Arc<AtomicUsize>);

impl Drop for OneAlive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The text that a task of this budget gets from [`Words`].
pub fn words(tokens: u32) -> String {
    (0..tokens).map(|index| format!("{index} ")).collect()
}
