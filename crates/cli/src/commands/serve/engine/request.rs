//! What the engine is asked for, and what it tells.

use tinygpt_model::{
    ModelError,
    constraint::Constraint,
    language_model::{NextToken, most_probable},
    tokenizer::StopStrings,
};
use tinygpt_sampler::SamplingParams;

use crate::growing_text::Ending;

/// A text to generate.
#[derive(Debug, Clone)]
pub struct TextRequest {
    /// What it starts with; at least one token.
    pub prompt: Vec<u32>,
    pub rules: SamplingParams,
    /// Greedy wherever the largest probability, after all rules, exceeds this.
    pub adaptive: Option<f64>,
    /// The number of the sample: what its draws depend on, beside the seed.
    pub sequence: u64,
    pub max_new_tokens: usize,
    /// The text ends before the first of these.
    pub stops: StopStrings,
    /// How many of the most probable tokens are told beside each token; none of the model's distribution is told without.
    pub top: Option<usize>,
    /// What the text must be.
    pub constraint: Option<Constraint>,
}

/// What is told of a text as it grows.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Token(GeneratedToken),
    /// The last event of a text.
    Ended {
        by: EndedBy,
        /// The text that was held back, as the possible start of a stop or the part of a character.
        rest: String,
    },
    /// Why the text could not go on: the last event of such a text.
    Failed(Failure),
}

/// Why a text could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// From the model's logits, the rules of the request make numbers that no token can be drawn from, such as penalties that no
    /// number is large enough for.
    #[error("the rules leave nothing to draw from: {0}")]
    Rules(String),
    /// The request is not to blame.
    #[error("{0}")]
    Model(String),
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::Model(error.to_string())
    }
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    pub id: u32,
    /// The text that this token settles; empty where a character or a possible stop is unfinished.
    pub piece: String,
    /// In the model's own distribution, where it was asked for.
    pub measured: Option<Measured>,
}

/// A token in the model's own distribution: temperature 1, before penalties, grammars and all other rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// In nats.
    pub logprob: f64,
    /// From 1, of the most probable.
    pub rank: usize,
    /// Of the distribution, in nats.
    pub entropy: f64,
    /// The most probable tokens with their log-probabilities, that one first.
    pub top: Vec<(u32, f64)>,
}

impl Measured {
    /// A token in the distribution of logits `[V]`, with the `top` most probable ones.
    pub fn of(logits: &[f32], id: u32, top: usize) -> Self {
        let next = NextToken::of(logits);
        let logit = logits[id as usize];
        let top = most_probable(logits, top).into_iter().map(|(id, logit)| (id, next.logprob(logit))).collect();
        let before = |(other, &x): (usize, &f32)| x > logit || (x == logit && other < id as usize);
        let rank = 1 + logits.iter().enumerate().filter(|&at| before(at)).count();
        Self { logprob: next.logprob(logit), rank, entropy: next.entropy, top }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// By a stop string, or the token that ends texts.
    Stop,
    /// At the most tokens that were asked for.
    Length,
    /// The text of the grammar is complete.
    Grammar,
    /// The request took as long as one may.
    TimedOut,
    /// The engine was shut down.
    ShutDown,
}

impl From<Ending> for EndedBy {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Stop => Self::Stop,
            Ending::Grammar => Self::Grammar,
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("all texts that may wait are waiting: come back in a moment")]
    QueueFull,
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Its thread has panicked.
    #[error("the engine of the model has failed: restart the server")]
    EngineFailed,
    /// No text follows from the request, whenever it comes.
    #[error("{0}")]
    BadRequest(String),
}
