//! From the text of a grammar to its structure: lines into blocks, then names into numbers.

use std::collections::BTreeMap;

use super::grammar::{Choice, Grammar, GrammarError, Odds, Problem, Row, Rule, Symbol, Table, Totals, Variable};

/// The text, cut up but with nothing looked up yet.
#[derive(Default)]
struct Blocks<'t> {
    rules: Vec<Block<'t, RawChoice<'t>>>,
    tables: Vec<Block<'t, RawRow<'t>>>,
}

struct Block<'t, Line> {
    name: &'t str,
    line: usize,
    columns: Vec<&'t str>,
    lines: Vec<Line>,
}

struct RawChoice<'t> {
    line: usize,
    weight: f64,
    /// `with VARIABLE from TABLE`
    binds: Vec<(&'t str, &'t str)>,
    body: &'t str,
}

struct RawRow<'t> {
    line: usize,
    weight: f64,
    cells: Vec<&'t str>,
}

#[derive(Clone, Copy)]
enum BlockKind {
    Rule,
    List,
    Table,
}

/// Reads the text. What comes back has valid numbers everywhere, but is not checked beyond that.
pub(super) fn parse(text: &str) -> Result<Grammar, GrammarError> {
    let blocks = blocks(text)?;
    let mut names = Names::default();
    names.declare(&blocks)?;

    let mut rules = Vec::new();
    for block in &blocks.rules {
        let choices = block.lines.iter().map(|raw| names.choice(raw, &blocks));
        rules.push(Rule {
            name: block.name.to_owned(),
            line: block.line,
            choices: choices.collect::<Result<_, _>>()?,
            odds: Odds::new(&block.lines.iter().map(|c| c.weight).collect::<Vec<_>>()),
        });
    }
    let mut tables = Vec::new();
    for block in &blocks.tables {
        let row = |raw: &RawRow| {
            let cells = raw.cells.iter().map(|cell| names.template(cell, raw.line, &blocks));
            Ok(Row { line: raw.line, cells: cells.collect::<Result<_, _>>()? })
        };
        tables.push(Table {
            name: block.name.to_owned(),
            line: block.line,
            columns: block.columns.iter().map(|&c| c.to_owned()).collect(),
            rows: block.lines.iter().map(row).collect::<Result<_, _>>()?,
            odds: Odds::new(&block.lines.iter().map(|r| r.weight).collect::<Vec<_>>()),
        });
    }
    Ok(Grammar {
        story: *names.rules.get("story").ok_or(Problem::NoStory.at(1))?,
        rules,
        tables,
        variables: names.variables,
        order: Vec::new(),
        totals: Totals::default(),
    })
}

fn blocks(text: &str) -> Result<Blocks<'_>, GrammarError> {
    let mut blocks = Blocks::default();
    let mut kind = None;
    for (line, content) in (1..).zip(text.lines()) {
        let inner = content.trim();
        if inner.is_empty() || inner.starts_with('#') {
            continue;
        }
        if let Some(c) = inner.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(Problem::Character(c).at(line));
        }
        if !content.starts_with(' ') {
            kind = Some(header(inner, line, &mut blocks)?);
            continue;
        }
        match kind {
            None => {
                return Err(
                    Problem::Syntax("a line \"rule NAME:\", \"list NAME:\" or \"table NAME: COLUMNS\"").at(line)
                );
            }
            Some(BlockKind::Rule) => {
                let choice = rule_line(inner, line)?;
                blocks.rules.extend_last(choice);
            }
            Some(BlockKind::List) => {
                for word in inner.split(' ').filter(|word| !word.is_empty()) {
                    blocks.rules.extend_last(list_word(word, line)?);
                }
            }
            Some(BlockKind::Table) => blocks.tables.extend_last(table_line(inner, line)?),
        }
    }
    let empty_rule = blocks.rules.iter().find(|b| b.lines.is_empty()).map(|b| (b.name, b.line));
    let empty_table = blocks.tables.iter().find(|b| b.lines.is_empty()).map(|b| (b.name, b.line));
    if let Some((name, line)) = empty_rule.or(empty_table) {
        return Err(Problem::Empty(name.to_owned()).at(line));
    }
    for table in &blocks.tables {
        if let Some(row) = table.lines.iter().find(|row| row.cells.len() != table.columns.len()) {
            return Err(Problem::Syntax("as many cells as the table has columns").at(row.line));
        }
    }
    Ok(blocks)
}

/// Adds a line to the block that was begun last.
trait ExtendLast<Line> {
    fn extend_last(&mut self, line: Line);
}

impl<Line> ExtendLast<Line> for Vec<Block<'_, Line>> {
    fn extend_last(&mut self, line: Line) {
        if let Some(block) = self.last_mut() {
            block.lines.push(line);
        }
    }
}

fn header<'t>(content: &'t str, line: usize, blocks: &mut Blocks<'t>) -> Result<BlockKind, GrammarError> {
    let parts = content.split_once(':').and_then(|(head, rest)| Some((head.split_once(' ')?, rest)));
    let Some(((keyword, name), rest)) = parts else {
        return Err(Problem::Syntax("\"rule NAME:\", \"list NAME:\" or \"table NAME: COLUMNS\"").at(line));
    };
    let name = identifier(name, line)?;
    let columns: Vec<&str> = rest.split(' ').filter(|column| !column.is_empty()).collect();
    match keyword {
        "rule" | "list" if columns.is_empty() => {
            blocks.rules.push(Block { name, line, columns, lines: Vec::new() });
            Ok(if keyword == "rule" { BlockKind::Rule } else { BlockKind::List })
        }
        "table" if !columns.is_empty() => {
            for (i, column) in columns.iter().enumerate() {
                identifier(column, line)?;
                if columns[..i].contains(column) {
                    return Err(Problem::DuplicateName((*column).to_owned()).at(line));
                }
            }
            blocks.tables.push(Block { name, line, columns, lines: Vec::new() });
            Ok(BlockKind::Table)
        }
        _ => Err(Problem::Syntax("\"rule NAME:\", \"list NAME:\" or \"table NAME: COLUMNS\"").at(line)),
    }
}

fn identifier(name: &str, line: usize) -> Result<&str, GrammarError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.is_empty() && name.chars().all(plain) {
        Ok(name)
    } else {
        Err(Problem::Syntax("a name of letters, digits and underscores").at(line))
    }
}

fn weight(text: &str, line: usize) -> Result<f64, GrammarError> {
    match text.parse::<f64>() {
        Ok(weight) if weight.is_finite() && weight > 0.0 => Ok(weight),
        _ => Err(Problem::Weight(text.to_owned()).at(line)),
    }
}

/// `WEIGHT [with VARIABLE from TABLE, ...] "TEXT"`
fn rule_line(content: &str, line: usize) -> Result<RawChoice<'_>, GrammarError> {
    let wrong = || Problem::Syntax("WEIGHT \"TEXT\", or WEIGHT with NAME from TABLE \"TEXT\"").at(line);
    let (head, body) = content.split_once('"').ok_or_else(wrong)?;
    let body = body.strip_suffix('"').ok_or_else(wrong)?;
    let (amount, head) = head.split_once(' ').ok_or_else(wrong)?;
    let mut binds = Vec::new();
    if !head.trim().is_empty() {
        let list = head.trim().strip_prefix("with ").ok_or_else(wrong)?;
        for bind in list.split(',') {
            let (variable, table) = bind.trim().split_once(" from ").ok_or_else(wrong)?;
            binds.push((identifier(variable, line)?, identifier(table, line)?));
        }
    }
    Ok(RawChoice { line, weight: weight(amount, line)?, binds, body })
}

/// `WORD` or `WORD*WEIGHT`
fn list_word(word: &str, line: usize) -> Result<RawChoice<'_>, GrammarError> {
    let (body, weight) = match word.split_once('*') {
        Some((body, amount)) => (body, weight(amount, line)?),
        None => (word, 1.0),
    };
    Ok(RawChoice { line, weight, binds: Vec::new(), body })
}

/// `WEIGHT CELL | CELL | ...`
fn table_line(content: &str, line: usize) -> Result<RawRow<'_>, GrammarError> {
    let wrong = Problem::Syntax("WEIGHT CELL | CELL | ...").at(line);
    let (amount, cells) = content.split_once(' ').ok_or(wrong)?;
    Ok(RawRow { line, weight: weight(amount, line)?, cells: cells.split('|').map(str::trim).collect() })
}

/// The numbers that names stand for.
#[derive(Default)]
struct Names<'t> {
    rules: BTreeMap<&'t str, usize>,
    tables: BTreeMap<&'t str, usize>,
    variables: Vec<Variable>,
}

impl<'t> Names<'t> {
    fn declare(&mut self, blocks: &Blocks<'t>) -> Result<(), GrammarError> {
        for (i, block) in blocks.rules.iter().enumerate() {
            if self.rules.insert(block.name, i).is_some() {
                return Err(Problem::DuplicateName(block.name.to_owned()).at(block.line));
            }
        }
        for (i, block) in blocks.tables.iter().enumerate() {
            if self.tables.insert(block.name, i).is_some() {
                return Err(Problem::DuplicateName(block.name.to_owned()).at(block.line));
            }
        }
        for choice in blocks.rules.iter().flat_map(|block| &block.lines) {
            for &(name, table) in &choice.binds {
                let undefined = || Problem::UndefinedTable(table.to_owned()).at(choice.line);
                let table = *self.tables.get(table).ok_or_else(undefined)?;
                match self.variable(name) {
                    None => self.variables.push(Variable { name: name.to_owned(), table }),
                    Some(known) if self.variables[known].table != table => {
                        return Err(Problem::Rebound(name.to_owned()).at(choice.line));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn variable(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|variable| variable.name == name)
    }

    fn choice(&self, raw: &RawChoice, blocks: &Blocks) -> Result<Choice, GrammarError> {
        let binds = raw.binds.iter().filter_map(|(name, _)| self.variable(name));
        Ok(Choice { line: raw.line, binds: binds.collect(), body: self.template(raw.body, raw.line, blocks)? })
    }

    /// Text with `[rule]`, `{variable}` and `{variable.column}` in it.
    fn template(&self, text: &str, line: usize, blocks: &Blocks) -> Result<Vec<Symbol>, GrammarError> {
        let mut symbols = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(['[', '{', ']', '}']) {
            if start > 0 {
                symbols.push(Symbol::Text(rest[..start].to_owned()));
            }
            let close = if rest[start..].starts_with('[') { ']' } else { '}' };
            let inner = rest[start + 1..].split_once(close).filter(|_| rest[start..].starts_with(['[', '{']));
            let (name, after) = inner.ok_or(Problem::Syntax("[RULE] or {VARIABLE.COLUMN}, closed").at(line))?;
            symbols.push(if close == ']' {
                let undefined = Problem::UndefinedRule(name.to_owned()).at(line);
                Symbol::Rule(*self.rules.get(name).ok_or(undefined)?)
            } else {
                self.cell(name, line, blocks)?
            });
            rest = after;
        }
        if !rest.is_empty() {
            symbols.push(Symbol::Text(rest.to_owned()));
        }
        Ok(symbols)
    }

    fn cell(&self, name: &str, line: usize, blocks: &Blocks) -> Result<Symbol, GrammarError> {
        let (name, column) = match name.split_once('.') {
            Some((name, column)) => (name, Some(column)),
            None => (name, None),
        };
        let variable = self.variable(name).ok_or(Problem::Unbound(name.to_owned()).at(line))?;
        let table = &blocks.tables[self.variables[variable].table];
        let column = match column {
            None => super::grammar::KEY,
            Some(column) => {
                let undefined = || Problem::UndefinedColumn { table: table.name.to_owned(), column: column.to_owned() };
                table.columns.iter().position(|c| *c == column).ok_or_else(|| undefined().at(line))?
            }
        };
        Ok(Symbol::Cell { variable, column })
    }
}
