//! Reading a story back: every way in which the grammar can tell it, and what each costs.

use super::grammar::{Grammar, Symbol};

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
    let mut reader = Reader {
        grammar,
        text: text.as_bytes(),
        rows: vec![None; grammar.variables.len()],
        parsed: Parsed { derivations: Vec::new(), furthest: 0, beginnings },
    };
    let start = [Symbol::Rule(grammar.story)];
    reader.read(0, Ahead { symbols: &start, unbinds: &[], up: None }, 0.0);
    reader.parsed
}

/// What is still to be read: symbols, then the end of some variables' scope, then what surrounds it.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    symbols: &'a [Symbol],
    unbinds: &'a [usize],
    up: Option<&'a Ahead<'a>>,
}

struct Reader<'a> {
    grammar: &'a Grammar,
    text: &'a [u8],
    rows: Vec<Option<usize>>,
    parsed: Parsed,
}

impl Reader<'_> {
    /// Follows every derivation from here, having paid `surprisal` for the first `at` bytes. Leaves `rows` as it was.
    fn read(&mut self, at: usize, ahead: Ahead, surprisal: f64) {
        let grammar = self.grammar;
        let Some((symbol, rest)) = ahead.symbols.split_first() else {
            return self.leave(at, ahead, surprisal);
        };
        let after = Ahead { symbols: rest, ..ahead };
        match *symbol {
            Symbol::Text(ref text) => {
                let matching = self.text[at..].iter().zip(text.as_bytes()).take_while(|(a, b)| a == b).count();
                if matching > 0 {
                    self.parsed.furthest = self.parsed.furthest.max(at + matching);
                    // Whatever is chosen later, this derivation has told these bytes; no two that are followed are one.
                    let probability = (-surprisal).exp();
                    self.parsed.beginnings[at + 1..=at + matching].iter_mut().for_each(|sum| *sum += probability);
                }
                if matching == text.len() {
                    self.read(at + matching, after, surprisal);
                }
            }
            Symbol::Rule(id) => {
                let rule = &grammar.rules[id];
                for (choice, cost) in rule.choices.iter().zip(&rule.odds.surprisals) {
                    let inner = Ahead { symbols: &choice.body, unbinds: &choice.binds, up: Some(&after) };
                    self.read(at, inner, surprisal + cost);
                }
            }
            Symbol::Cell { variable, column } => {
                let table = &grammar.tables[grammar.variables[variable].table];
                self.each_row(variable, |reader, row, cost| {
                    let inner = Ahead { symbols: &table.rows[row].cells[column], unbinds: &[], up: Some(&after) };
                    reader.read(at, inner, surprisal + cost);
                });
            }
        }
    }

    /// At the end of some symbols: forgets the variables bound for them, and goes on outside.
    fn leave(&mut self, at: usize, ahead: Ahead, surprisal: f64) {
        if let Some((&variable, unbinds)) = ahead.unbinds.split_first() {
            self.each_row(variable, |reader, _, cost| {
                let bound = reader.rows[variable].take();
                reader.leave(at, Ahead { unbinds, ..ahead }, surprisal + cost);
                reader.rows[variable] = bound;
            });
        } else if let Some(&up) = ahead.up {
            self.read(at, up, surprisal);
        } else if at == self.text.len() {
            self.parsed.derivations.push(surprisal);
        }
    }

    /// The row of a variable, at no cost, or each row in turn if the text has not mentioned it yet.
    fn each_row(&mut self, variable: usize, mut follow: impl FnMut(&mut Self, usize, f64)) {
        if let Some(row) = self.rows[variable] {
            return follow(self, row, 0.0);
        }
        let odds = &self.grammar.tables[self.grammar.variables[variable].table].odds;
        for (row, &cost) in odds.surprisals.iter().enumerate() {
            self.rows[variable] = Some(row);
            follow(self, row, cost);
        }
        self.rows[variable] = None;
    }
}
