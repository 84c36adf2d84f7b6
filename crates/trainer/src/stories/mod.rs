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
//! assert!((grammar.accept(&story.text).unwrap() - story.nats).abs() < 1e-9);
//!
//! let corpus = StoryCorpus::synth(grammar, 10_000, 7);
//! assert!(corpus.text.starts_with(&story.text));
//! ```

mod accept;
mod ambiguity;
mod check;
mod draw;
mod entropy;
mod grammar;
mod parse;
#[cfg(test)]
mod tests;
mod words;

pub use grammar::{Grammar, GrammarError, Problem};

/// The text of [`Grammar::builtin`].
const BUILTIN_TEXT: &str = include_str!("../../data/stories.grammar");

/// A story that was drawn from a grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// One line of printable ASCII, without its end.
    pub text: String,
    /// -ln of the probability of the text.
    pub nats: f64,
}

/// A text that the grammar cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a story from character {position} on")]
pub struct Rejected {
    /// The length of the longest beginning of the text that is the beginning of some story, in characters (which are
    /// bytes, stories being ASCII). It is the length of the text where the text only breaks off too soon.
    pub position: usize,
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
    pub nats: f64,
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
            stories.push(StorySpan { end: text.len(), nats: story.nats });
            if text.len() >= min_bytes {
                break;
            }
        }
        StoryCorpus { text, stories }
    }

    /// -ln of the probability of the whole text.
    pub fn nats(&self) -> f64 {
        self.stories.iter().map(|story| story.nats).sum()
    }

    /// The least loss that a model can have on this very text, on average, in nats per character: newlines count.
    pub fn nats_per_char(&self) -> f64 {
        self.nats() / self.text.len() as f64
    }
}
