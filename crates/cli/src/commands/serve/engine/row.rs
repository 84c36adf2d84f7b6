//! A text in a slot of the decoder: what is drawn from its logits, and told.

use std::{ops::ControlFlow, time::Instant};

use tinygpt_model::{ModelError, Tokenizer};
use tinygpt_sampler::{Row as SamplerRow, Sampler, TextState};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{
    request::{EndedBy, Event, Failure, GeneratedToken, Measured, TextRequest},
    stats::Counters,
};
use crate::growing_text::GrowingText;

/// Tokens that may lie unread before a text waits for its reader. It keeps its slot meanwhile, and its time runs.
pub const UNREAD: usize = 1024;

/// What a request asks of the engine.
#[derive(Debug)]
pub enum Job {
    Text(Box<TextJob>),
    /// The logits behind a prompt.
    Logits(LogitsJob),
}

/// A text that waits for a slot.
#[derive(Debug)]
pub struct TextJob {
    pub request: TextRequest,
    pub sampler: Sampler,
    pub events: Events,
    pub deadline: Instant,
}

/// A prompt whose logits are asked for.
#[derive(Debug)]
pub struct LogitsJob {
    pub prompt: Vec<u32>,
    pub answer: oneshot::Sender<Result<Vec<f32>, ModelError>>,
}

impl Job {
    /// The tokens that it begins with.
    pub fn prompt(&self) -> &[u32] {
        match self {
            Self::Text(job) => &job.request.prompt,
            Self::Logits(job) => &job.prompt,
        }
    }

    /// Whether nobody waits for it any more.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Text(job) => job.events.is_cancelled(),
            Self::Logits(job) => job.answer.is_closed(),
        }
    }

    /// Whether its time is over.
    pub fn is_late(&self, now: Instant) -> bool {
        matches!(self, Self::Text(job) if job.deadline <= now)
    }

    /// Ends it before it has begun.
    pub fn end(self, by: EndedBy) {
        if let Self::Text(job) = self {
            job.events.end(Event::Ended { by, rest: String::new() });
        }
    }

    /// Tells that it cannot be done.
    pub fn fail(self, error: ModelError) {
        match self {
            Self::Text(job) => job.events.end(Event::Failed(error.into())),
            // Nobody may be there any more.
            Self::Logits(job) => drop(job.answer.send(Err(error))),
        }
    }
}

/// The way to the reader of a text, with room for its last event kept free.
#[derive(Debug)]
pub struct Events {
    tokens: mpsc::Sender<Event>,
    end: mpsc::OwnedPermit<Event>,
}

impl Events {
    /// A way, and its reader.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (tokens, reader) = mpsc::channel(UNREAD + 1);
        #[expect(clippy::expect_used, reason = "the channel has room and its reader is here")]
        let end = tokens.clone().try_reserve_owned().expect("an empty channel");
        (Self { tokens, end }, reader)
    }

    /// Whether the reader is gone.
    fn is_cancelled(&self) -> bool {
        self.tokens.is_closed()
    }

    /// Whether the reader has left room for another token.
    fn has_room(&self) -> bool {
        self.tokens.capacity() > 0
    }

    /// Tells a token.
    ///
    /// # Panics
    /// When there is no room: a token that was not told would leave a hole in the text.
    fn token(&self, token: GeneratedToken) {
        match self.tokens.try_send(Event::Token(token)) {
            // That the reader is gone, the engine sees before the next step.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => unreachable!("a text whose reader has left no room makes no step"),
        }
    }

    fn end(self, event: Event) {
        self.end.send(event);
    }
}

/// A text in a slot.
pub struct Row<'t> {
    job: TextJob,
    text: GrowingText<'t>,
    /// Of the rules that remember.
    state: TextState,
    /// Prompt and drawn tokens.
    history: Vec<u32>,
    /// The logits that a grammar masks, `[V]`.
    masked: Vec<f32>,
}

/// What a row does after its logits have come.
pub type Drawn = ControlFlow<EndedBy, u32>;

impl<'t> Row<'t> {
    /// A text without a token.
    pub fn new(tokenizer: &'t Tokenizer, mut job: TextJob) -> Self {
        let request = &mut job.request;
        let text = GrowingText::new(tokenizer, request.stops.clone(), request.constraint.take());
        let history = request.prompt.clone();
        Self { state: job.sampler.begin_text(), text, history, masked: Vec::new(), job }
    }

    /// Draws the next token from the model's logits `[V]`, counts it and tells it. `Break` ends the text, where a grammar allows no
    /// token without one.
    ///
    /// # Errors
    /// When nothing can be drawn: of this text alone.
    pub fn draw(&mut self, logits: &[f32], counters: &Counters) -> Result<Drawn, Failure> {
        let Self { job: TextJob { request, sampler, events, .. }, text, state, history, masked } = self;
        let allowed: &[f32] = if text.is_constrained() {
            masked.clear();
            masked.extend_from_slice(logits);
            if let ControlFlow::Break(ending) = text.mask(masked)? {
                return Ok(ControlFlow::Break(ending.into()));
            }
            masked
        } else {
            logits
        };
        let here = SamplerRow {
            logits: allowed,
            history: &*history,
            sequence: request.sequence,
            position: history.len() as u64,
        };
        let id = sampler.sample_next(&here, state).map_err(|error| {
            // Logits that are numbers can be drawn from until rules make them others.
            let of_rules = logits.iter().all(|logit| logit.is_finite());
            if of_rules { Failure::Rules(error.to_string()) } else { Failure::Model(error.to_string()) }
        })?;
        history.push(id);
        counters.drew();
        let measured = request.top.map(|top| Measured::of(logits, id, top));
        let (piece, next) = text.push(id)?;
        events.token(GeneratedToken { id, piece, measured });
        Ok(match next {
            ControlFlow::Break(ending) => ControlFlow::Break(ending.into()),
            ControlFlow::Continue(()) if history.len() - request.prompt.len() >= request.max_new_tokens => {
                ControlFlow::Break(EndedBy::Length)
            }
            ControlFlow::Continue(()) => ControlFlow::Continue(id),
        })
    }

    /// Whether nobody reads it any more.
    pub fn is_cancelled(&self) -> bool {
        self.job.events.is_cancelled()
    }

    /// Whether its time is over.
    pub fn is_late(&self, now: Instant) -> bool {
        self.job.deadline <= now
    }

    /// Whether its reader has left room for another token.
    pub fn has_room(&self) -> bool {
        self.job.events.has_room()
    }

    /// Tells the end: why, or what went wrong. A stop in what was held back is why, whatever else would have ended the text.
    pub fn end(mut self, by: Result<EndedBy, Failure>) {
        let ended = |by| match self.text.finish() {
            Ok((rest, ending)) => Ok(Event::Ended { by: ending.map_or(by, EndedBy::from), rest }),
            Err(error) => Err(error.into()),
        };
        self.job.events.end(by.and_then(ended).unwrap_or_else(Event::Failed));
    }
}
