//! Reading a story back: every way in which the grammar can tell it, and what each costs.

use super::{
    derive::{Listener, derive},
    grammar::Grammar,
};

/// A text that the grammar cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a story from character {position} on")]
pub struct Rejected {
    /// The length of the longest beginning of the text that is the beginning of some story, in characters (which are
    /// bytes, stories being ASCII). It is the length of the text where the text only breaks off too soon.
    pub position: usize,
}

impl Grammar {
    /// The surprisal of a story in nats, if the grammar can tell it.
    ///
    /// # Errors
    ///
    /// [`Rejected`] with the place from which on the text is not the beginning of any story.
    pub fn accept(&self, story: &str) -> Result<f64, Rejected> {
        let parsed = parse(self, story);
        match parsed.derivations.first() {
            Some(&surprisal) => Ok(surprisal),
            None => Err(Rejected { position: parsed.furthest }),
        }
    }

    /// The surprisal of each byte of a story given those before it, in nats; their sum is the story's.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    pub fn surprisal_per_byte(&self, story: &str) -> Result<Vec<f64>, Rejected> {
        let parsed = parse(self, story);
        if parsed.derivations.is_empty() {
            return Err(Rejected { position: parsed.furthest });
        }
        Ok(parsed.beginnings.windows(2).map(|p| (p[0] / p[1]).ln()).collect())
    }
}

/// The outcome of reading a text.
pub(super) struct Parsed {
    /// The surprisal of each derivation of the whole text, in nats.
    pub(super) derivations: Vec<f64>,
    /// The length of the longest beginning of the text with which some story begins too.
    pub(super) furthest: usize,
    /// The probability that a story begins with the first 0, 1, 2, ... bytes of the text.
    pub(super) beginnings: Vec<f64>,
}

/// Tries everything: at each choice all alternatives, at the first mention of a variable all rows.
pub(super) fn parse(grammar: &Grammar, text: &str) -> Parsed {
    let mut beginnings = vec![0.0; text.len() + 1];
    beginnings[0] = 1.0;
    let parsed = Parsed { derivations: Vec::new(), furthest: 0, beginnings };
    let mut reader = Reader { text: text.as_bytes(), parsed };
    derive(grammar, &mut reader);
    reader.parsed
}

struct Reader<'a> {
    text: &'a [u8],
    parsed: Parsed,
}

impl Listener for Reader<'_> {
    fn text(&mut self, at: usize, text: &str, surprisal: f64) -> bool {
        let matching = self.text[at..].iter().zip(text.as_bytes()).take_while(|(a, b)| a == b).count();
        if matching > 0 {
            self.parsed.furthest = self.parsed.furthest.max(at + matching);
            // Whatever is chosen later, this derivation has told these bytes; no two that are followed are one.
            let probability = (-surprisal).exp();
            self.parsed.beginnings[at + 1..=at + matching].iter_mut().for_each(|sum| *sum += probability);
        }
        matching == text.len()
    }

    fn end(&mut self, at: usize, surprisal: f64) {
        if at == self.text.len() {
            self.parsed.derivations.push(surprisal);
        }
    }
}
