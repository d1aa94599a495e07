//! What kinds of work there are.

use serde::{Deserialize, Serialize};

/// Most texts of one embedding or ranking.
pub const INPUTS_MAX: usize = 2_048;

/// What kind of answer a task wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema, schemars::JsonSchema))]
pub enum Workload {
    /// Text that goes on from the prompt.
    #[default]
    Completion,
    /// A vector for each input.
    Embedding,
    /// A score for each input.
    Rerank,
}

impl Workload {
    /// The workload as it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Workload::Completion => "completion",
            Workload::Embedding => "embedding",
            Workload::Rerank => "rerank",
        }
    }
}
