//! The built-in corpus: little stories whose entropy is known.
//!
//! `data/stories.grammar` says how a story is told: at each turn there is a weighted choice, some choices are made
//! once and kept through the story (who it is about, what was lost). The probability of a story is the product of the
//! probabilities of its choices, and since no text comes about in two ways, -ln of it is exactly the number of nats
//! that a perfect model pays for the text. The mean of that over all stories, [`Grammar::entropy`], is the floor below
//! which no model's loss can come; [`Grammar::accept`] says whether a text a model wrote is a story, and where it
//! ceases to be one.
//!
//! ```
//! use tinygpt_trainer::stories::{Grammar, StoryCorpus};
//!
//! let grammar = Grammar::builtin();
//! let story = grammar.draw(7, 0);
//! assert!((grammar.accept(&story.text).unwrap() - story.surprisal).abs() < 1e-9);
//!
//! let corpus = StoryCorpus::synth(grammar, 10_000, 7);
//! assert!(corpus.text.starts_with(&story.text));
//! ```

mod accept;
mod ambiguity;
mod check;
mod derive;
mod draw;
mod entropy;
mod grammar;
mod next_words;
mod parse;
#[cfg(test)]
mod tests;
mod truth;
#[cfg(test)]
mod words;

use std::sync::OnceLock;

pub use accept::Rejected;
pub use draw::Story;
pub use grammar::{Grammar, GrammarError, Problem};
pub use truth::{StoryTruth, TruthError};

/// The text of [`Grammar::builtin`].
const BUILTIN_TEXT: &str = include_str!("../../data/stories.grammar");

impl Grammar {
    /// The grammar compiled into the program, `data/stories.grammar`.
    #[expect(clippy::expect_used, reason = "the text is a constant of the program, and a test reads it")]
    pub fn builtin() -> &'static Grammar {
        static BUILTIN: OnceLock<Grammar> = OnceLock::new();
        BUILTIN.get_or_init(|| Grammar::parse(BUILTIN_TEXT).expect("data/stories.grammar is well formed"))
    }

    /// The text of [`Grammar::builtin`].
    pub(crate) fn builtin_text() -> &'static str {
        BUILTIN_TEXT
    }

    /// Reads a grammar and proves it fit for use.
    ///
    /// # Errors
    ///
    /// The first thing wrong with the text, with its line: see [`Problem`].
    pub fn parse(text: &str) -> Result<Grammar, GrammarError> {
        let mut grammar = parse::parse(text)?;
        grammar.order = check::check(&grammar)?;
        ambiguity::check(&grammar)?;
        grammar.totals = entropy::totals(&grammar);
        Ok(grammar)
    }
}

/// Stories one after another, each on its line.
#[derive(Debug, Clone, PartialEq)]
pub struct StoryCorpus {
    /// The stories, each followed by "\n".
    pub text: String,
    /// Where each story ends and what it costs, in order.
    pub stories: Vec<StorySpan>,
}

/// The place of one story in a [`StoryCorpus`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StorySpan {
    /// The byte just past the story's "\n": where the next story begins.
    pub end: usize,
    /// -ln of the probability of the story.
    pub surprisal: f64,
}

impl StoryCorpus {
    /// The stories 0, 1, 2, ... of `seed`, until there are at least `min_bytes` bytes; at least one story.
    pub fn synth(grammar: &Grammar, min_bytes: usize, seed: u64) -> Self {
        let mut text = String::with_capacity(min_bytes.saturating_add(grammar.max_len() + 1));
        let mut stories = Vec::new();
        for index in 0.. {
            let story = grammar.draw(seed, index);
            text.push_str(&story.text);
            text.push('\n');
            stories.push(StorySpan { end: text.len(), surprisal: story.surprisal });
            if text.len() >= min_bytes {
                break;
            }
        }
        StoryCorpus { text, stories }
    }

    /// -ln of the probability of the whole text.
    pub fn surprisal(&self) -> f64 {
        self.stories.iter().map(|story| story.surprisal).sum()
    }

    /// The least loss that a model can have on this very text, on average, in nats per character: newlines count.
    pub fn nats_per_char(&self) -> f64 {
        self.surprisal() / self.text.len() as f64
    }
}
