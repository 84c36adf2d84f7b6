//! The proof that no text has two derivations.
//!
//! Reading a story from the left, one comes to a choice with the rest of the text ahead. If no alternative can tell a
//! text that begins with a text of another alternative, at most one of them fits what is ahead, and so on to the end:
//! one derivation. The same must hold for the keys of a table, since the first mention of a variable is its key
//! (`check` sees to that) and every later mention is of a row already known.
//!
//! So each pair of alternatives is walked through together, letter by letter, in all the ways in which they agree.
//! Where a variable is mentioned, every row is tried on either side, which errs on the safe side. Where both are about
//! to use the same rule, its texts on either side must be the same one if they are to agree, because of two of them
//! neither begins the other; so both step over it.

use super::grammar::{Grammar, GrammarError, KEY, Problem, Symbol};

/// Pairs of positions that are looked at before two alternatives count as too alike.
const MAX_STEPS: usize = 200_000;

/// Compares every two alternatives of every rule, and every two keys of every table.
pub(super) fn check(grammar: &Grammar) -> Result<(), GrammarError> {
    for rule in &grammar.rules {
        let choices: Vec<_> = rule.choices.iter().map(|choice| (choice.line, &choice.body[..])).collect();
        check_choice(grammar, &choices)?;
    }
    for table in &grammar.tables {
        let keys: Vec<_> = table.rows.iter().map(|row| (row.line, &row.cells[KEY][..])).collect();
        check_choice(grammar, &keys)?;
    }
    Ok(())
}

fn check_choice(grammar: &Grammar, alternatives: &[(usize, &[Symbol])]) -> Result<(), GrammarError> {
    for (i, &(line, symbols)) in alternatives.iter().enumerate() {
        for &(other, other_symbols) in &alternatives[..i] {
            let mut pair = Pair { grammar, common: String::new(), steps: 0 };
            let (a, b) = (Ahead::new("", symbols, None), Ahead::new("", other_symbols, None));
            if pair.overlap(a, b) {
                return Err(Problem::Ambiguous { other, sample: pair.common }.at(line));
            }
            if pair.steps > MAX_STEPS {
                return Err(Problem::TooAlike { other }.at(line));
            }
        }
    }
    Ok(())
}

/// What is still to be told: some text, then symbols, then what surrounds them.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    text: &'a str,
    symbols: &'a [Symbol],
    up: Option<&'a Ahead<'a>>,
}

impl<'a> Ahead<'a> {
    fn new(text: &'a str, symbols: &'a [Symbol], up: Option<&'a Ahead<'a>>) -> Self {
        Ahead { text, symbols, up }
    }

    /// The symbol that comes next, if it does before any text, and what is ahead after it.
    fn next_symbol(self) -> Option<(&'a Symbol, Ahead<'a>)> {
        if !self.text.is_empty() {
            return None;
        }
        match self.symbols.split_first() {
            Some((first, rest)) => Some((first, Ahead { symbols: rest, ..self })),
            None => self.up?.next_symbol(),
        }
    }
}

struct Pair<'g> {
    grammar: &'g Grammar,
    common: String,
    steps: usize,
}

impl<'g> Pair<'g> {
    /// Whether one side can come to its end while the other agrees; `common` is then what both have told.
    fn overlap(&mut self, a: Ahead, b: Ahead) -> bool {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return false;
        }
        if let Some(skipped) = self.common_symbol(a, b) {
            return skipped;
        }
        if a.text.is_empty() {
            return self.advance(a, b);
        }
        if b.text.is_empty() {
            return self.advance(b, a);
        }
        let same = a.text.bytes().zip(b.text.bytes()).take_while(|(x, y)| x == y).count();
        if same < a.text.len().min(b.text.len()) {
            return false;
        }
        let length = self.common.len();
        self.common.push_str(&a.text[..same]);
        if self.overlap(Ahead { text: &a.text[same..], ..a }, Ahead { text: &b.text[same..], ..b }) {
            return true;
        }
        self.common.truncate(length);
        false
    }

    /// Steps over a rule or key that both sides have ahead of them, and says what follows from there.
    fn common_symbol(&mut self, a: Ahead, b: Ahead) -> Option<bool> {
        let (a_first, a) = a.next_symbol()?;
        let (b_first, b) = b.next_symbol()?;
        let name = match *a_first {
            Symbol::Rule(id) => format!("[{}]", self.grammar.rules[id].name),
            Symbol::Cell { variable, column: KEY } => format!("{{{}}}", self.grammar.variables[variable].name),
            _ => return None,
        };
        if a_first != b_first {
            return None;
        }
        let length = self.common.len();
        self.common.push_str(&name);
        let overlap = self.overlap(a, b);
        if !overlap {
            self.common.truncate(length);
        }
        Some(overlap)
    }

    /// Moves `a`, which has no text at hand, on to the next, in every possible way.
    fn advance(&mut self, a: Ahead, b: Ahead) -> bool {
        let grammar = self.grammar;
        let Some((symbol, rest)) = a.symbols.split_first() else {
            return match a.up {
                None => true,
                Some(&up) => self.overlap(up, b),
            };
        };
        let up = Ahead::new("", rest, a.up);
        match *symbol {
            Symbol::Text(ref text) => self.overlap(Ahead::new(text, rest, a.up), b),
            Symbol::Rule(id) => {
                let mut choices = grammar.rules[id].choices.iter();
                choices.any(|choice| self.overlap(Ahead::new("", &choice.body, Some(&up)), b))
            }
            Symbol::Cell { variable, column } => {
                let mut rows = grammar.tables[grammar.variables[variable].table].rows.iter();
                rows.any(|row| self.overlap(Ahead::new("", &row.cells[column], Some(&up)), b))
            }
        }
    }
}
