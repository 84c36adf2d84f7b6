//! The words that stories are made of, without telling them all.

use std::collections::BTreeSet;

use super::grammar::{Grammar, Symbol};

/// What the texts of some piece of the grammar look like, cut into words. A word can reach over the ends of a piece.
#[derive(Clone, Default)]
struct Shape {
    /// Words that are complete.
    inner: BTreeSet<String>,
    /// Texts that are one piece of a word and nothing else (or empty).
    whole: BTreeSet<String>,
    /// What stands before the first break, and after the last, in texts that have one.
    head: BTreeSet<String>,
    tail: BTreeSet<String>,
}

/// The words of all stories, in lower case: unbroken runs of letters and apostrophes.
pub(super) fn words(grammar: &Grammar) -> BTreeSet<String> {
    let mut rules = vec![Shape::default(); grammar.rules.len()];
    for &id in &grammar.order {
        for choice in &grammar.rules[id].choices {
            let shape = sequence(&choice.body, grammar, &rules);
            rules[id].join(shape);
        }
    }
    let story = std::mem::take(&mut rules[grammar.story]);
    let ends = story.whole.into_iter().chain(story.head).chain(story.tail);
    story.inner.into_iter().chain(ends).filter(|word| !word.is_empty()).collect()
}

fn sequence(symbols: &[Symbol], grammar: &Grammar, rules: &[Shape]) -> Shape {
    let start = Shape { whole: [String::new()].into(), ..Shape::default() };
    symbols.iter().fold(start, |shape, symbol| match *symbol {
        Symbol::Text(ref text) => shape.then(&Shape::of_text(text)),
        Symbol::Rule(id) => shape.then(&rules[id]),
        Symbol::Cell { variable, column } => {
            let mut any = Shape::default();
            for row in &grammar.tables[grammar.variables[variable].table].rows {
                any.join(sequence(&row.cells[column], grammar, rules));
            }
            shape.then(&any)
        }
    })
}

impl Shape {
    fn of_text(text: &str) -> Shape {
        let text = text.to_ascii_lowercase();
        let mut parts: Vec<String> =
            text.split(|c: char| !c.is_ascii_alphabetic() && c != '\'').map(str::to_owned).collect();
        let tail = parts.pop().unwrap_or_default();
        if parts.is_empty() {
            return Shape { whole: [tail].into(), ..Shape::default() };
        }
        let head = parts.remove(0);
        Shape { inner: parts.into_iter().collect(), head: [head].into(), tail: [tail].into(), whole: BTreeSet::new() }
    }

    /// The texts of either.
    fn join(&mut self, other: Shape) {
        self.inner.extend(other.inner);
        self.whole.extend(other.whole);
        self.head.extend(other.head);
        self.tail.extend(other.tail);
    }

    /// A text of this, then a text of `next`.
    fn then(self, next: &Shape) -> Shape {
        let glue = |left: &BTreeSet<String>, right: &BTreeSet<String>| -> BTreeSet<String> {
            left.iter().flat_map(|l| right.iter().map(move |r| format!("{l}{r}"))).collect()
        };
        let mut shape = Shape {
            whole: glue(&self.whole, &next.whole),
            head: glue(&self.whole, &next.head),
            tail: glue(&self.tail, &next.whole),
            inner: glue(&self.tail, &next.head),
        };
        shape.inner.extend(self.inner);
        shape.inner.extend(next.inner.iter().cloned());
        // Either side alone can hold the break.
        if !next.whole.is_empty() {
            shape.head.extend(self.head.iter().cloned());
        }
        if !self.whole.is_empty() {
            shape.tail.extend(next.tail.iter().cloned());
        }
        if !self.tail.is_empty() && !next.head.is_empty() {
            shape.head.extend(self.head);
            shape.tail.extend(next.tail.iter().cloned());
        }
        shape
    }
}
