//! How far the preparation of a corpus is: what is told on the way, and a way to end it.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Result, TrainError};

/// A part of the preparation, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The built-in corpus is drawn.
    Stories,
    /// The text is read once, to know it again.
    Reading,
    /// A tokenizer is trained: the text is read for it.
    Tokenizer,
    /// Byte-pair encoding merges pairs of what it has read. Nobody is told how far it is.
    Merging,
    /// The text becomes tokens.
    Tokens,
    /// The entropy of the held-out stories is computed.
    Entropy,
    /// All is read and checked. What follows writes the run's files, and is not to be cut short.
    Ready,
}

/// As in `training the tokenizer`.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stories => "drawing the stories",
            Self::Reading => "reading the text",
            Self::Tokenizer => "training the tokenizer",
            Self::Merging => "merging pairs for the tokenizer",
            Self::Tokens => "encoding the text",
            Self::Entropy => "computing the entropy of the stories",
            Self::Ready => "ready",
        })
    }
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageProgress {
    /// Which one.
    pub stage: Stage,
    /// Bytes that were read; 0 at its beginning.
    pub done: u64,
    /// Bytes in all; 0 where that is not known.
    pub all: u64,
}

type OnProgress = dyn Fn(StageProgress) -> ControlFlow<()> + Send + Sync;

/// Follows the preparation of a corpus. The default one tells nobody.
#[derive(Clone, Default)]
pub struct Preparation(Option<Arc<Followed>>);

struct Followed {
    stage: Mutex<Stage>,
    on_progress: Box<OnProgress>,
}

impl fmt::Debug for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Preparation").field(&self.0.is_some()).finish()
    }
}

impl Preparation {
    /// Calls `on_progress` at the beginning of each stage, and for about each MiB of text. Where it breaks, the preparation
    /// ends with [`TrainError::Interrupted`] or [`CorpusError::Stopped`](crate::corpus::CorpusError::Stopped).
    pub fn new(on_progress: impl Fn(StageProgress) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        let (stage, on_progress) = (Mutex::new(Stage::Reading), Box::new(on_progress));
        Self(Some(Arc::new(Followed { stage, on_progress })))
    }

    /// A stage begins.
    pub(crate) fn begin(&self, stage: Stage) -> Result<()> {
        let Some(followed) = &self.0 else { return Ok(()) };
        *followed.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        match (followed.on_progress)(StageProgress { stage, done: 0, all: 0 }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(TrainError::Interrupted),
        }
    }

    /// So much of the stage that was begun last is done.
    pub(crate) fn at(&self, done: u64, all: u64) -> ControlFlow<()> {
        let Some(followed) = &self.0 else { return ControlFlow::Continue(()) };
        let stage = *followed.stage.lock().unwrap_or_else(PoisonError::into_inner);
        (followed.on_progress)(StageProgress { stage, done, all })
    }
}
