//! How a task ends: the one terminal event, and why a generation stopped.

use serde::{Deserialize, Serialize};

use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::text::line::Message;
use crate::core::units::Tokens;

/// Why a generation stopped without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it, or a stop text did.
    Stop,
    /// The budget is used up.
    Length,
    /// The client ended it.
    Canceled,
    /// The engine's context was full before the budget was used up. Written as `length`; the end says `cut_by: context`
    /// beside it.
    #[serde(rename(serialize = "length", deserialize = "context"))]
    Context,
    /// A filter of the engine's ended it.
    #[serde(rename = "content_filter")]
    ContentFilter,
    /// The model asks for a tool.
    #[serde(rename = "tool_calls")]
    ToolCalls,
}

impl FinishReason {
    /// The reason in the words of OpenAI's shape and of servers that are like it; `None` for one that says that the
    /// engine failed. The empty word and `null` are no reason, and the caller's to leave out.
    pub fn of_word(word: &str) -> Option<FinishReason> {
        match word {
            "stop" | "eos" | "eos_token" | "stop_sequence" | "stop_token" | "end_turn" | "stop_str" | "repetition" => {
                Some(FinishReason::Stop)
            }
            "length" | "max_tokens" | "limit" => Some(FinishReason::Length),
            "content_filter" => Some(FinishReason::ContentFilter),
            "tool_calls" | "function_call" | "tool_use" => Some(FinishReason::ToolCalls),
            _ => None,
        }
    }
}

/// The one terminal event of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Terminal {
    /// It ended as it should, or as the client wished.
    End {
        /// Why.
        reason: FinishReason,
        /// Prompt tokens by the engine's count; `None` leaves our estimate.
        tokens_in: Option<Tokens>,
    },
    /// It failed.
    Error(TaskError),
}

impl Terminal {
    /// The end of a task that its client cancelled (ORCH-3017).
    pub const CANCELED: Terminal = Terminal::End { reason: FinishReason::Canceled, tokens_in: None };

    /// The end of a task whose own deadline passed while it waited.
    pub fn missed_deadline() -> Terminal {
        Terminal::error(ErrorCode::DecodeTimeout, "the deadline passed before the task could start")
    }

    /// A failure with this code and text.
    pub fn error(code: ErrorCode, message: impl Into<Message>) -> Self {
        Terminal::Error(TaskError::new(code, message))
    }
}
