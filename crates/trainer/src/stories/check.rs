//! What a grammar must fulfil before a story is drawn: no rule leads back to itself, everything is used, and every
//! variable is bound, once, and first mentioned by its key.

use std::collections::BTreeSet;

use super::grammar::{Choice, Grammar, GrammarError, KEY, Problem, Symbol};

/// All rules, each after those it uses, if everything is in order.
pub(super) fn check(grammar: &Grammar) -> Result<Vec<usize>, GrammarError> {
    duplicates(grammar)?;
    let mut visit =
        Visit { grammar, state: vec![State::New; grammar.rules.len()], order: Vec::new(), cells: BTreeSet::new() };
    visit.rule(grammar.story)?;
    let (order, cells) = (visit.order, visit.cells);
    unused(grammar, &order, &cells)?;
    variables(grammar, &order)?;
    Ok(order)
}

fn duplicates(grammar: &Grammar) -> Result<(), GrammarError> {
    for rule in &grammar.rules {
        for (i, choice) in rule.choices.iter().enumerate() {
            if let Some(other) = rule.choices[..i].iter().find(|other| other.body == choice.body) {
                return Err(Problem::DuplicateAlternative(other.line).at(choice.line));
            }
        }
    }
    for table in &grammar.tables {
        for (i, row) in table.rows.iter().enumerate() {
            if let Some(other) = table.rows[..i].iter().find(|other| other.cells[KEY] == row.cells[KEY]) {
                return Err(Problem::DuplicateAlternative(other.line).at(row.line));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Open,
    Done,
}

/// Depth first from the story.
struct Visit<'g> {
    grammar: &'g Grammar,
    state: Vec<State>,
    order: Vec<usize>,
    /// Every (table, column) that is mentioned.
    cells: BTreeSet<(usize, usize)>,
}

impl Visit<'_> {
    fn rule(&mut self, id: usize) -> Result<(), GrammarError> {
        let rule = &self.grammar.rules[id];
        match self.state[id] {
            State::Done => return Ok(()),
            State::Open => return Err(Problem::Recursion(rule.name.clone()).at(rule.line)),
            State::New => self.state[id] = State::Open,
        }
        for choice in &rule.choices {
            self.symbols(&choice.body)?;
        }
        self.state[id] = State::Done;
        self.order.push(id);
        Ok(())
    }

    fn symbols(&mut self, symbols: &[Symbol]) -> Result<(), GrammarError> {
        let grammar = self.grammar;
        for symbol in symbols {
            match *symbol {
                Symbol::Text(_) => {}
                Symbol::Rule(id) => self.rule(id)?,
                Symbol::Cell { variable, column } => {
                    let table = grammar.variables[variable].table;
                    self.cells.insert((table, column));
                    for row in &grammar.tables[table].rows {
                        self.symbols(&row.cells[column])?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn unused(grammar: &Grammar, order: &[usize], cells: &BTreeSet<(usize, usize)>) -> Result<(), GrammarError> {
    for (id, rule) in grammar.rules.iter().enumerate() {
        if !order.contains(&id) {
            return Err(Problem::Unused(rule.name.clone()).at(rule.line));
        }
    }
    for (id, table) in grammar.tables.iter().enumerate() {
        if !cells.iter().any(|&(used, _)| used == id) {
            return Err(Problem::Unused(table.name.clone()).at(table.line));
        }
        for (column, name) in table.columns.iter().enumerate() {
            if !cells.contains(&(id, column)) {
                return Err(Problem::Unused(format!("{}.{name}", table.name)).at(table.line));
            }
        }
    }
    Ok(())
}

/// How a piece of text can mention a variable first.
#[derive(Clone, Copy, Default)]
struct First {
    nowhere: bool,
    by_key: bool,
    otherwise: bool,
}

fn variables(grammar: &Grammar, order: &[usize]) -> Result<(), GrammarError> {
    let count = grammar.variables.len();
    // Of each rule: the variables it needs bound, those it binds somewhere inside, and how it mentions each first.
    let mut needs = vec![BTreeSet::new(); grammar.rules.len()];
    let mut binds = vec![BTreeSet::new(); grammar.rules.len()];
    let mut first = vec![vec![First::default(); count]; grammar.rules.len()];
    for &id in order {
        for choice in &grammar.rules[id].choices {
            let inner = needed(&choice.body, &needs);
            let bound_within: BTreeSet<usize> = rules_of(&choice.body).flat_map(|r| binds[r].iter().copied()).collect();
            let mentions = (0..count).map(|v| first_mention(&choice.body, v, &first));
            let mentions: Vec<First> = mentions.collect();
            for (i, &variable) in choice.binds.iter().enumerate() {
                let name = || grammar.variables[variable].name.clone();
                if bound_within.contains(&variable) || choice.binds[..i].contains(&variable) {
                    return Err(Problem::Rebound(name()).at(choice.line));
                }
                let mention = mentions[variable];
                if mention.nowhere || mention.otherwise {
                    return Err(Problem::FirstMention(name()).at(choice.line));
                }
            }
            needs[id].extend(inner.into_iter().filter(|v| !choice.binds.contains(v)));
            binds[id].extend(bound_within.into_iter().chain(choice.binds.iter().copied()));
            for (all, one) in first[id].iter_mut().zip(mentions) {
                all.nowhere |= one.nowhere;
                all.by_key |= one.by_key;
                all.otherwise |= one.otherwise;
            }
        }
    }
    // A cell is read wherever its variable is mentioned: it must stand by itself.
    for row in grammar.tables.iter().flat_map(|table| &table.rows) {
        if let Some(&v) = row.cells.iter().flat_map(|cell| needed(cell, &needs)).collect::<Vec<_>>().first() {
            return Err(Problem::Unbound(grammar.variables[v].name.clone()).at(row.line));
        }
    }
    match needs[grammar.story].first() {
        None => Ok(()),
        Some(&variable) => {
            let line = mention_line(grammar, variable, &needs);
            Err(Problem::Unbound(grammar.variables[variable].name.clone()).at(line))
        }
    }
}

fn rules_of(symbols: &[Symbol]) -> impl Iterator<Item = usize> {
    symbols.iter().filter_map(|symbol| match symbol {
        Symbol::Rule(id) => Some(*id),
        _ => None,
    })
}

fn needed(symbols: &[Symbol], needs: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for symbol in symbols {
        match *symbol {
            Symbol::Text(_) => {}
            Symbol::Rule(id) => all.extend(&needs[id]),
            Symbol::Cell { variable, .. } => all.extend([variable]),
        }
    }
    all
}

fn first_mention(symbols: &[Symbol], variable: usize, rules: &[Vec<First>]) -> First {
    let mut first = First { nowhere: true, ..First::default() };
    for symbol in symbols {
        let next = match *symbol {
            Symbol::Rule(id) => rules[id][variable],
            Symbol::Cell { variable: v, column } if v == variable => {
                First { nowhere: false, by_key: column == KEY, otherwise: column != KEY }
            }
            _ => continue,
        };
        first = First {
            nowhere: next.nowhere,
            by_key: first.by_key || next.by_key,
            otherwise: first.otherwise || next.otherwise,
        };
        if !first.nowhere {
            break;
        }
    }
    first
}

/// A line below the story's rule in which the variable is mentioned without being bound.
fn mention_line(grammar: &Grammar, variable: usize, needs: &[BTreeSet<usize>]) -> usize {
    let mut rule = grammar.story;
    loop {
        let choices = &grammar.rules[rule].choices;
        let unbound =
            |choice: &&Choice| !choice.binds.contains(&variable) && needed(&choice.body, needs).contains(&variable);
        let Some(choice) = choices.iter().find(unbound) else {
            return grammar.rules[rule].line;
        };
        match rules_of(&choice.body).find(|&r| needs[r].contains(&variable)) {
            Some(deeper) => rule = deeper,
            None => return choice.line,
        }
    }
}
