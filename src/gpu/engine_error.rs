//! What goes wrong in an engine, told apart by whose fault it is and what may follow.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use crate::core::task::failure::Cause;
use crate::core::text::line::{LastLines, Line, Message};
use crate::gpu::engine::Stopped;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody can say.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("its end cannot be known"),
        }
    }
}

impl EngineError {
    /// An error of a library that the engine uses, its sources included.
    ///
    /// ```
    /// # use orchestrator_core::gpu::EngineError;
    /// let number = "x".parse::<u32>().map_err(EngineError::other);
    /// assert_eq!(number.unwrap_err().to_string(), "the engine failed: invalid digit found in string");
    /// ```
    pub fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        EngineError::Other(OtherError(error.into().into()))
    }

    /// The error with the last lines of a process that has ended: they may have words of anybody's requests.
    pub fn whole(&self) -> Message {
        match self {
            EngineError::Exited { said, .. } if !said.is_empty() => format!("{self}; it said last: {said}").into(),
            _ => self.to_string().into(),
        }
    }

    /// What an attempt was lost to, or a worker died of.
    pub fn cause(&self) -> Cause {
        match self {
            EngineError::Preload(text) => Cause::of_words(text).unwrap_or(Cause::Load),
            EngineError::Unreachable(_) | EngineError::Recalled => Cause::Unreachable,
            EngineError::Lost(text) | EngineError::Failed(text) => Cause::of_words(text).unwrap_or(Cause::Lost),
            EngineError::Garbled(_) => Cause::Garbled,
            EngineError::Refused(_) | EngineError::Stopped(_) => Cause::Client,
            EngineError::Busy { .. } => Cause::Busy,
            EngineError::ContextFull { .. } => Cause::ContextFull,
            EngineError::Replaced(_) => Cause::Load,
            EngineError::OutOfMemory(_) => Cause::OutOfMemory,
            EngineError::OutOfVram(_) => Cause::OutOfVram,
            EngineError::DeviceLost(_) => Cause::DeviceLost,
            EngineError::Hung(_) => Cause::Hung,
            EngineError::Other(error) => Cause::of_words(&error.to_string()).unwrap_or(Cause::Lost),
            EngineError::Panicked { .. } => Cause::EnginePanic,
            EngineError::Exited { how, said } => Cause::of_words(said).unwrap_or(match how {
                Exit::Signal(_) => Cause::Signal,
                Exit::Code(_) | Exit::Unknown => Cause::ExitCode,
            }),
        }
    }
}

/// An error of a library that an engine uses. Shown with its sources, on one line.
#[derive(Clone)]
pub struct OtherError(Arc<dyn Error + Send + Sync>);

impl OtherError {
    /// The error as the library gave it, for whoever wants to look at it with `downcast_ref`.
    pub fn get(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }

    fn line(&self) -> Line {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text.into()
    }
}

impl std::fmt::Display for OtherError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::fmt::Debug for OtherError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for OtherError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Equal when they say the same.
impl PartialEq for OtherError {
    fn eq(&self, other: &Self) -> bool {
        self.line() == other.line()
    }
}

impl Eq for OtherError {}

impl From<std::io::Error> for EngineError {
    fn from(error: std::io::Error) -> Self {
        EngineError::other(error)
    }
}

impl From<Box<dyn Error + Send + Sync>> for EngineError {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        EngineError::other(error)
    }
}

/// What went wrong in an engine, told apart by whose fault it is and what may follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// It could not be loaded.
    #[error("preload failed: {0}")]
    Preload(Line),
    /// It could not be reached: nothing of the run has happened.
    #[error("the engine cannot be reached: {0}")]
    Unreachable(Line),
    /// It was lost in the middle of a run.
    #[error("the engine was lost: {0}")]
    Lost(Line),
    /// It has answered that it failed, and nothing of the run has come.
    #[error("the engine failed the request: {0}")]
    Failed(Line),
    /// It says something that its protocol does not have.
    #[error("the engine's answer makes no sense: {0}")]
    Garbled(Line),
    /// It does not take this request, and would not take it again.
    #[error("the engine refuses the request: {0}")]
    Refused(Line),
    /// It has too much to do, or is not ready yet: nothing of the run has happened, and it takes requests again later.
    #[error("the engine is busy: {said}")]
    Busy {
        /// In its words.
        said: Line,
        /// How long it asks to be left alone, if it says so.
        retry_after: Option<Duration>,
    },
    /// The context that its runs share is full: each may have room alone, and together they have none.
    #[error("the context that the engine's runs share is full: {said}")]
    ContextFull {
        /// In its words.
        said: Line,
        /// Tokens that it holds, when that is known.
        tokens: Option<u64>,
    },
    /// It serves another model, or another engine answers in its place.
    #[error("the engine is another one now: {0}")]
    Replaced(Line),
    /// The host has no memory left for it.
    #[error("the engine is out of memory: {0}")]
    OutOfMemory(Line),
    /// Its device has no memory left for it.
    #[error("the engine is out of device memory: {0}")]
    OutOfVram(Line),
    /// Its device is lost.
    #[error("the engine's device is lost: {0}")]
    DeviceLost(Line),
    /// It does not go on, or does not stop.
    #[error("the engine hangs: {0}")]
    Hung(Line),
    /// Its process has ended.
    #[error("the engine's process has ended: {how}")]
    Exited {
        /// With an exit code, or by a signal.
        how: Exit,
        /// The last lines that it wrote.
        said: LastLines,
    },
    /// Its code panicked.
    #[error("the engine panicked in {during}: {said}")]
    Panicked {
        /// The method, or what else of it ran: `the factory`, `drop`.
        during: &'static str,
        /// The panic's text.
        said: Line,
    },
    /// Something else, in the words of whatever library it uses. Counts as [`EngineError::Lost`] in a run, and as
    /// [`EngineError::Preload`] in a load.
    #[error("the engine failed: {0}")]
    Other(#[source] OtherError),
    /// It waited at another node and has not begun: there is a place elsewhere.
    #[error("it waited at another node, and there is a place elsewhere")]
    Recalled,
    /// The output wanted no more.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}
