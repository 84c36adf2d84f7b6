//! What a grammar is once it has been read: rules, tables, variables, and what can be wrong with them.

/// A weighted grammar of stories, checked when it was read: it is finite, and no text has two derivations.
///
/// The format is described at the top of `data/stories.grammar`.
#[derive(Debug, Clone)]
pub struct Grammar {
    pub(super) rules: Vec<Rule>,
    pub(super) tables: Vec<Table>,
    pub(super) variables: Vec<Variable>,
    /// The rule every story is drawn from.
    pub(super) story: usize,
    /// All rules, each after those it uses: the order in which a dynamic program visits them.
    pub(super) order: Vec<usize>,
    pub(super) totals: Totals,
}

/// The figures of a whole grammar.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) entropy: f64,
    pub(super) binding_entropy: f64,
    pub(super) expected_len: f64,
    pub(super) max_len: usize,
}

/// A choice between alternatives.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) choices: Vec<Choice>,
    pub(super) odds: Odds,
}

/// One alternative of a rule.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) line: usize,
    /// The variables that are bound here, for as long as the body lasts.
    pub(super) binds: Vec<usize>,
    pub(super) body: Vec<Symbol>,
}

/// The rows a variable can be bound to.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Row>,
    pub(super) odds: Odds,
}

/// One row of a table: a short text for each column. The first column is the key.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) cells: Vec<Vec<Symbol>>,
}

/// Something that stays the same within a story.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) table: usize,
}

/// A piece of an alternative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Symbol {
    Text(String),
    Rule(usize),
    Cell { variable: usize, column: usize },
}

/// The column by which a variable is recognised.
pub(super) const KEY: usize = 0;

/// The probabilities of a choice, as it is drawn from and as it is paid for.
#[derive(Debug, Clone)]
pub(super) struct Odds {
    /// -ln p of each alternative.
    pub(super) surprisals: Vec<f64>,
    cumulative: Vec<f64>,
}

impl Odds {
    /// From positive weights, at least one of them.
    pub(super) fn new(weights: &[f64]) -> Odds {
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let cumulative = weights.iter().map(|weight| {
            sum += weight;
            sum / total
        });
        Odds { cumulative: cumulative.collect(), surprisals: weights.iter().map(|w| (total / w).ln()).collect() }
    }

    /// The alternative that a uniform number in [0, 1) falls on.
    pub(super) fn pick(&self, uniform: f64) -> usize {
        let index = self.cumulative.partition_point(|&c| c <= uniform);
        index.min(self.surprisals.len() - 1)
    }

    /// The expectation of `value` over the alternatives.
    pub(super) fn mean(&self, value: impl Fn(usize) -> f64) -> f64 {
        let terms = self.surprisals.iter().enumerate();
        terms.map(|(i, surprisal)| (-surprisal).exp() * value(i)).sum()
    }

    /// The expected nats of the choice.
    pub(super) fn entropy(&self) -> f64 {
        self.mean(|i| self.surprisals[i])
    }
}

impl Grammar {
    /// The expected nats of a story, exactly: what the best possible model pays for one.
    pub fn entropy(&self) -> f64 {
        self.totals.entropy
    }

    /// The part of [`entropy`](Self::entropy) that is spent on binding variables: who, where and what the story is
    /// about. A model that comes in after the binding was read has to pay for it again, where it is next mentioned.
    pub fn binding_entropy(&self) -> f64 {
        self.totals.binding_entropy
    }

    /// The expected length of a story, exactly, in characters, without the end of its line.
    pub fn expected_len(&self) -> f64 {
        self.totals.expected_len
    }

    /// The floor of the loss on a long corpus, in nats per character. The newline after each story counts as a
    /// character, and costs nothing: no story is the beginning of another.
    pub fn nats_per_char(&self) -> f64 {
        self.entropy() / (self.expected_len() + 1.0)
    }

    /// The length of the longest story, in characters, without the end of its line.
    pub fn max_len(&self) -> usize {
        self.totals.max_len
    }
}

/// What is wrong with the text of a grammar, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("grammar, line {line}: {problem}")]
pub struct GrammarError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// The ways in which the text of a grammar can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The line is not in the format; the text says what was expected.
    #[error("expected {0}")]
    Syntax(&'static str),
    /// A character that no story may hold.
    #[error("the character {0:?} is not printable ASCII")]
    Character(char),
    /// A weight that is not a positive number.
    #[error("the weight {0:?} is not a positive number")]
    Weight(String),
    /// A rule, list or table without a line.
    #[error("{0:?} has no alternatives")]
    Empty(String),
    /// Two rules, tables or columns with the same name.
    #[error("{0:?} is defined twice")]
    DuplicateName(String),
    /// Two alternatives, or two keys of a table, with the same text.
    #[error("this repeats the alternative of line {0}")]
    DuplicateAlternative(usize),
    /// There is no rule `story` to begin with.
    #[error("there is no rule named \"story\"")]
    NoStory,
    /// A rule that does not exist.
    #[error("there is no rule or list named {0:?}")]
    UndefinedRule(String),
    /// A table that does not exist.
    #[error("there is no table named {0:?}")]
    UndefinedTable(String),
    /// A column that does not exist.
    #[error("the table {table:?} has no column {column:?}")]
    UndefinedColumn {
        /// The table that was looked in.
        table: String,
        /// The column that was looked for.
        column: String,
    },
    /// A rule, table or column that no story can come to use.
    #[error("{0:?} is never used")]
    Unused(String),
    /// A rule that leads back to itself.
    #[error("the rule {0:?} leads back to itself")]
    Recursion(String),
    /// A variable that is mentioned where nothing binds it.
    #[error("nothing binds the variable {0:?} here")]
    Unbound(String),
    /// A variable that is bound while it is bound already, or to another table than elsewhere.
    #[error("the variable {0:?} is bound a second time, or to two tables")]
    Rebound(String),
    /// A variable whose first mention is not the key column, or which may not be mentioned at all: from the text
    /// alone one could not always tell its row.
    #[error("the variable {0:?} is not certain to be mentioned by its key first")]
    FirstMention(String),
    /// Two alternatives of which one can begin with the other: the text would not say which was drawn.
    #[error("this and line {other} can both begin with {sample:?}, and one of them can end there")]
    Ambiguous {
        /// The line of the other alternative.
        other: usize,
        /// A text that one of them tells whole, and the other tells or goes on from.
        sample: String,
    },
    /// Two alternatives that begin alike in too many ways to tell them apart.
    #[error("this and line {other} begin alike in too many ways; let them differ earlier")]
    TooAlike {
        /// The line of the other alternative.
        other: usize,
    },
}

impl Problem {
    pub(super) fn at(self, line: usize) -> GrammarError {
        GrammarError { line, problem: self }
    }
}
