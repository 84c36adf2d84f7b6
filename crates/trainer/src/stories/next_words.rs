//! How a story can go on.

use std::collections::BTreeMap;

use super::{
    derive::{Listener, derive},
    grammar::Grammar,
};

impl Grammar {
    /// The words that can come next in a story that begins with `beginning`, which ends a word, and their probabilities. A word has
    /// the white space before it, as in `" fox"`, and goes up to the next; a story that ends there goes on with `"\n"`. Sorted by
    /// text; empty where no story begins so.
    pub fn next_words(&self, beginning: &str) -> Vec<(String, f64)> {
        let told = beginning.as_bytes().to_vec();
        let mut reader = Reader { told, beginning: beginning.len(), words: BTreeMap::new() };
        derive(self, &mut reader);
        let total: f64 = reader.words.values().sum();
        // Stories are ASCII.
        let text = |word: Vec<u8>| word.into_iter().map(char::from).collect();
        reader.words.into_iter().map(|(word, probability)| (text(word), probability / total)).collect()
    }
}

struct Reader {
    /// The beginning, and what the derivation that is followed has told behind it.
    told: Vec<u8>,
    /// The length of the beginning.
    beginning: usize,
    /// The probability that a story goes on so.
    words: BTreeMap<Vec<u8>, f64>,
}

impl Reader {
    fn add(&mut self, word: Vec<u8>, surprisal: f64) {
        *self.words.entry(word).or_insert(0.0) += (-surprisal).exp();
    }
}

impl Listener for Reader {
    fn text(&mut self, at: usize, text: &str, surprisal: f64) -> bool {
        let text = text.as_bytes();
        let known = text.len().min(self.beginning.saturating_sub(at));
        if self.told[at..at + known] != text[..known] {
            return false;
        }
        // What an earlier derivation has told from here on is forgotten.
        self.told.truncate(self.beginning.max(at));
        self.told.extend_from_slice(&text[known..]);
        let word = &self.told[self.beginning..];
        let goes_on = |first: &u8| self.beginning > 0 && !first.is_ascii_whitespace();
        if word.first().is_some_and(goes_on) {
            return false; // The beginning does not end a word here.
        }
        let end = (1..word.len()).find(|&i| word[i].is_ascii_whitespace() && !word[i - 1].is_ascii_whitespace());
        if let Some(end) = end {
            self.add(word[..end].to_vec(), surprisal);
        }
        end.is_none()
    }

    fn end(&mut self, at: usize, surprisal: f64) {
        match at.checked_sub(self.beginning) {
            None => {} // This story is shorter.
            Some(0) => self.add(b"\n".to_vec(), surprisal),
            Some(_) => self.add(self.told[self.beginning..at].to_vec(), surprisal),
        }
    }
}
