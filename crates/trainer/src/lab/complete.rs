//! Batched decoding with rules of its own for each row.

use rayon::prelude::*;
use tinygpt_model::{Decoder, language_model::NextToken};
use tinygpt_sampler::{Row, Sampler, TextState};

use super::Lab;
use crate::Result;

/// The rows that share a sampler, and hence a thread.
const ROWS_PER_SAMPLER: usize = 8;

/// What a row draws: sequence `sample` by a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowId {
    /// The number of the strategy.
    pub strategy: usize,
    /// The number of the completion, which is that of its sequence.
    pub sample: u64,
}

/// A completion as tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Drawn {
    /// The tokens behind the prompt.
    pub tokens: Vec<u32>,
    /// Whether the last one ends a text.
    pub stopped: bool,
    /// What was measured along the way.
    pub sums: Sums,
}

/// Sums over the tokens of a completion.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// The number of tokens.
    pub steps: usize,
    /// Their log-probabilities in the model itself, at temperature 1 and without rules, in nats.
    pub logprob: f64,
    /// The entropies of the model itself, in nats.
    pub model_entropy: f64,
    /// What was drawn from; `None` where nothing was drawn.
    pub drawn_from: Option<DrawnFrom>,
}

/// Sums over distributions after all rules.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct DrawnFrom {
    /// Their entropies, in nats.
    pub entropy: f64,
    /// The tokens that they kept.
    pub kept: usize,
}

impl Sums {
    /// The sums of two.
    pub fn plus(self, other: Self) -> Self {
        let both = |(a, b): (DrawnFrom, DrawnFrom)| DrawnFrom { entropy: a.entropy + b.entropy, kept: a.kept + b.kept };
        Self {
            steps: self.steps + other.steps,
            logprob: self.logprob + other.logprob,
            model_entropy: self.model_entropy + other.model_entropy,
            drawn_from: self.drawn_from.zip(other.drawn_from).map(both),
        }
    }
}

/// Some rows of one strategy.
struct Group {
    sampler: Sampler,
    rows: Vec<GroupRow>,
}

struct GroupRow {
    /// The row of the batch.
    at: usize,
    sample: u64,
    /// The prompt and what was drawn.
    history: Vec<u32>,
    state: TextState,
    drawn: Drawn,
}

/// Completes a prompt once for each row, all in one batch, and returns what was drawn in the order of rows.
pub(super) fn complete(
    lab: &Lab<'_>,
    decoder: &mut dyn Decoder,
    prompt: &[u32],
    rows: &[RowId],
    on_tokens: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Drawn>> {
    let vocab_size = decoder.vocab_size();
    let mut groups = groups(lab, prompt, rows)?;
    let mut tokens = vec![0; rows.len()];
    let mut logits = decoder.start(prompt, rows.len())?;
    for n in 1..=lab.max_new_tokens {
        let position = (prompt.len() + n - 1) as u64;
        let on_host = logits.to_host()?; // (rows, V)
        let draw = |group: &mut Group| {
            group.rows.iter_mut().filter(|row| !row.drawn.stopped).try_for_each(|row| {
                let logits = &on_host[row.at * vocab_size..][..vocab_size];
                row.draw(&mut group.sampler, logits, position)?;
                row.drawn.stopped = row.drawn.tokens.last().is_some_and(|&token| lab.ends(token));
                Ok(())
            })
        };
        // Errors are collected before the first is taken, so that it does not depend on the threads which one that is.
        let results: Vec<tinygpt_model::Result<()>> = groups.par_iter_mut().map(draw).collect();
        results.into_iter().collect::<tinygpt_model::Result<()>>()?;
        on_tokens(rows.len())?;
        let mut running = false;
        for row in groups.iter().flat_map(|group| &group.rows) {
            // A row that has stopped stays in the batch with its last token, which does not affect the other rows.
            tokens[row.at] = row.drawn.tokens.last().copied().unwrap_or(0);
            running |= !row.drawn.stopped;
        }
        if n == lab.max_new_tokens || !running {
            // All that is left is done too.
            on_tokens(rows.len() * (lab.max_new_tokens - n))?;
            break;
        }
        drop(on_host);
        logits = decoder.step(&tokens)?;
    }
    Ok(groups.into_iter().flat_map(|group| group.rows).map(|row| row.drawn).collect())
}

/// Rows with their samplers, in the order of rows.
fn groups(lab: &Lab<'_>, prompt: &[u32], rows: &[RowId]) -> tinygpt_model::Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut at = 0;
    for of_strategy in rows.chunk_by(|a, b| a.strategy == b.strategy) {
        for ids in of_strategy.chunks(ROWS_PER_SAMPLER) {
            let sampler = lab.sampler(ids[0].strategy, prompt.len())?;
            let state = sampler.begin_text();
            let row = |(i, id): (usize, &RowId)| {
                let sums = Sums { drawn_from: Some(DrawnFrom::default()), ..Sums::default() };
                let drawn = Drawn { sums, ..Drawn::default() };
                GroupRow { at: at + i, sample: id.sample, history: prompt.to_vec(), state, drawn }
            };
            groups.push(Group { sampler, rows: ids.iter().enumerate().map(row).collect() });
            at += ids.len();
        }
    }
    Ok(groups)
}

impl GroupRow {
    /// Draws the next token, and measures what it was drawn from.
    fn draw(&mut self, sampler: &mut Sampler, logits: &[f32], position: u64) -> tinygpt_model::Result<()> {
        let row = Row { logits, history: &self.history, sequence: self.sample, position };
        let draw = sampler.inspect_next(&row, &mut self.state).map_err(|error| error.at_row(self.at))?;
        let next = NextToken::of(logits);
        let step = Sums {
            steps: 1,
            logprob: next.logprob(logits[draw.token as usize]),
            model_entropy: next.entropy,
            drawn_from: Some(DrawnFrom { entropy: draw.entropy, kept: draw.kept }),
        };
        self.drawn.sums = self.drawn.sums.plus(step);
        self.history.push(draw.token);
        self.drawn.tokens.push(draw.token);
        Ok(())
    }
}
