//! What can be said of all stories at once: expected nats, expected length and greatest length, exactly.
//!
//! Choices do not depend on one another, and a cell costs and measures the same wherever its row is mentioned. So
//! expectations add up: that of a rule is the mean over its alternatives of the sum over their symbols, and that of a
//! mention is the mean over the rows. A binding is paid for once, where it is made.

use super::grammar::{Grammar, Odds, Symbol, Totals};

/// Computes the figures; `grammar.order` must be known.
pub(super) fn totals(grammar: &Grammar) -> Totals {
    let choosing = |odds: &Odds| odds.entropy();
    let nothing = |_: &Odds| 0.0;
    let length = |text: &str| text.len() as f64;
    Totals {
        entropy: expectation(grammar, choosing, choosing, |_| 0.0),
        binding_entropy: expectation(grammar, nothing, choosing, |_| 0.0),
        expected_len: expectation(grammar, nothing, nothing, length),
        max_len: Longest { grammar, rows: vec![0; grammar.variables.len()] }.rule(grammar.story),
    }
}

/// The expected sum over a story: `of_choice` for every choice of an alternative, `of_binding` for every binding of a
/// variable, `of_text` for every piece of text.
fn expectation(
    grammar: &Grammar,
    of_choice: impl Fn(&Odds) -> f64,
    of_binding: impl Fn(&Odds) -> f64,
    of_text: impl Fn(&str) -> f64,
) -> f64 {
    let mut rules = vec![0.0; grammar.rules.len()];
    for &id in &grammar.order {
        let rule = &grammar.rules[id];
        let table = |variable: usize| &grammar.tables[grammar.variables[variable].table];
        let sum = |symbols: &[Symbol], cell: &dyn Fn(usize, usize) -> f64| -> f64 {
            let terms = symbols.iter().map(|symbol| match *symbol {
                Symbol::Text(ref text) => of_text(text),
                Symbol::Rule(id) => rules[id],
                Symbol::Cell { variable, column } => cell(variable, column),
            });
            terms.sum()
        };
        let cell = |variable: usize, column: usize| {
            let table = table(variable);
            table.odds.mean(|row| sum(&table.rows[row].cells[column], &|_, _| 0.0))
        };
        let value = rule.odds.mean(|i| {
            let choice = &rule.choices[i];
            let binding: f64 = choice.binds.iter().map(|&variable| of_binding(&table(variable).odds)).sum();
            binding + sum(&choice.body, &cell)
        });
        rules[id] = of_choice(&rule.odds) + value;
    }
    rules[grammar.story]
}

/// The longest story, given the rows of the variables that are bound.
struct Longest<'g> {
    grammar: &'g Grammar,
    rows: Vec<usize>,
}

impl Longest<'_> {
    fn rule(&mut self, id: usize) -> usize {
        let grammar = self.grammar;
        let choices = grammar.rules[id].choices.iter();
        choices.map(|choice| self.bound(&choice.binds, &choice.body)).max().unwrap_or(0)
    }

    /// The longest text of `body`, over all rows that `binds` can take.
    fn bound(&mut self, binds: &[usize], body: &[Symbol]) -> usize {
        let Some((&variable, others)) = binds.split_first() else {
            return self.symbols(body);
        };
        let rows = self.long_rows(self.grammar.variables[variable].table);
        let lengths = rows.into_iter().map(|row| {
            self.rows[variable] = row;
            self.bound(others, body)
        });
        lengths.max().unwrap_or(0)
    }

    fn symbols(&mut self, symbols: &[Symbol]) -> usize {
        let grammar = self.grammar;
        let lengths = symbols.iter().map(|symbol| match *symbol {
            Symbol::Text(ref text) => text.len(),
            Symbol::Rule(id) => self.rule(id),
            Symbol::Cell { variable, column } => {
                let table = &grammar.tables[grammar.variables[variable].table];
                self.symbols(&table.rows[self.rows[variable]].cells[column])
            }
        });
        lengths.sum()
    }

    /// The rows that could be part of a longest story: those that no other row equals or exceeds in every column.
    fn long_rows(&mut self, table: usize) -> Vec<usize> {
        let mut lengths: Vec<(usize, Vec<usize>)> = Vec::new();
        for (i, row) in self.grammar.tables[table].rows.iter().enumerate() {
            let row: Vec<usize> = row.cells.iter().map(|cell| self.symbols(cell)).collect();
            let within = |a: &[usize], b: &[usize]| a.iter().zip(b).all(|(a, b)| a <= b);
            if lengths.iter().any(|(_, other)| within(&row, other)) {
                continue;
            }
            lengths.retain(|(_, other)| !within(other, &row));
            lengths.push((i, row));
        }
        lengths.into_iter().map(|(i, _)| i).collect()
    }
}
