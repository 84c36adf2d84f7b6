//! Every way of telling a story, told to somebody who says which to go on with.

use super::grammar::{Grammar, Symbol};

/// Follows derivations from the left, and decides which go on.
pub(super) trait Listener {
    /// A derivation that has told `at` bytes, which the listener agreed to, goes on with `text`, having paid `surprisal` nats for
    /// all choices so far. Whether it is to be followed further.
    fn text(&mut self, at: usize, text: &str, surprisal: f64) -> bool;

    /// A derivation ends with a story of `at` bytes.
    fn end(&mut self, at: usize, surprisal: f64);
}

/// Tries everything that the listener goes on with, depth first: at each choice all alternatives, at the first mention of a
/// variable all rows.
pub(super) fn derive(grammar: &Grammar, listener: &mut impl Listener) {
    let mut walk = Walk { grammar, rows: vec![None; grammar.variables.len()], listener };
    let start = [Symbol::Rule(grammar.story)];
    walk.read(0, Ahead { symbols: &start, unbinds: &[], up: None }, 0.0);
}

/// What is still to be read: symbols, then the end of some variables' scope, then what surrounds it.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    symbols: &'a [Symbol],
    unbinds: &'a [usize],
    up: Option<&'a Ahead<'a>>,
}

struct Walk<'a, L> {
    grammar: &'a Grammar,
    rows: Vec<Option<usize>>,
    listener: &'a mut L,
}

impl<L: Listener> Walk<'_, L> {
    /// Follows every derivation from here, having paid `surprisal` for the first `at` bytes. Leaves `rows` as it was.
    fn read(&mut self, at: usize, ahead: Ahead, surprisal: f64) {
        let grammar = self.grammar;
        let Some((symbol, rest)) = ahead.symbols.split_first() else {
            return self.leave(at, ahead, surprisal);
        };
        let after = Ahead { symbols: rest, ..ahead };
        match *symbol {
            Symbol::Text(ref text) => {
                if self.listener.text(at, text, surprisal) {
                    self.read(at + text.len(), after, surprisal);
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
                self.each_row(variable, |walk, row, cost| {
                    let inner = Ahead { symbols: &table.rows[row].cells[column], unbinds: &[], up: Some(&after) };
                    walk.read(at, inner, surprisal + cost);
                });
            }
        }
    }

    /// At the end of some symbols: forgets the variables bound for them, and goes on outside.
    fn leave(&mut self, at: usize, ahead: Ahead, surprisal: f64) {
        if let Some((&variable, unbinds)) = ahead.unbinds.split_first() {
            self.each_row(variable, |walk, _, cost| {
                let bound = walk.rows[variable].take();
                walk.leave(at, Ahead { unbinds, ..ahead }, surprisal + cost);
                walk.rows[variable] = bound;
            });
        } else if let Some(&up) = ahead.up {
            self.read(at, up, surprisal);
        } else {
            self.listener.end(at, surprisal);
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
