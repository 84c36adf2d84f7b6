//! The host path: drawing tokens on the CPU, by SIMD kernels, without a sort of the row.
//!
//! [`Sampler`] applies the penalties and hands each row to a `Selection` (`selection`), which keeps tokens by these
//! parts:
//!
//! - `blocks`: a row in blocks of 256 logits;
//! - `row_kernels`: the passes over a whole row (maxima, sums, collecting what reaches a threshold);
//! - `softmax_scale`: from logits to weights, `exp((x - origin) / temperature)`;
//! - `shortlist`: the few logits among which top-k, top-p or min-p cut;
//! - `nucleus`: where that of top-p may be, by a sample of the row;
//! - `cut` and `cut_search`: where the cut is, found by pivots instead of a sort;
//! - `f64_selection`: the same in f64, for temperatures and top-p where f32 would not be exact, and all other rules;
//! - `sharing`: whether a batch is worth more than one thread;
//! - `read_limit`: one read of the rows, the limit that benchmarks compare with.

mod blocks;
mod cut;
mod cut_search;
mod f64_selection;
mod nucleus;
mod read_limit;
mod row_kernels;
mod selection;
mod sharing;
mod shortlist;
mod softmax_scale;
#[cfg(test)]
mod tests;

use crate::params::check_probability;
use crate::penalties::apply_penalties;
use crate::rng::uniform;
use crate::rules::Rules;
use crate::simd::SimdLevel;
use crate::{Distribution, SamplingError, SamplingParams, Schedule};
use f64_selection::RowNumbers;
use rayon::prelude::*;
use selection::Selection;
use std::cmp::Ordering;

pub use read_limit::one_read;

/// One row of a batch: the logits of the next token, and what its draw depends on.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The logits, one for each token of the vocabulary.
    pub logits: &'a [f32],
    /// The tokens so far, for the penalties; may be empty if no penalty is on.
    pub history: &'a [u32],
    /// The number of this text in the run.
    pub sequence: u64,
    /// The position of the drawn token in its text.
    pub position: u64,
}

/// What the draws of a text leave behind for the next one, beside its tokens: the largest surprise of mirostat. Other rules
/// have no state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextState {
    /// In bits.
    mu: f64,
}

/// A draw, and what is known of the distribution that it was drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InspectedDraw {
    /// The token that was drawn.
    pub token: u32,
    /// How many tokens could have been drawn: those that the rules keep.
    pub kept: usize,
    /// The entropy of the distribution after all rules, in nats.
    pub entropy: f64,
}

/// Draws tokens on the host.
///
/// A draw is a function of the logits, the history, the parameters and `(seed, sequence, position)`: it does not depend
/// on the batch or its order, the number of threads, the vector instructions, or earlier draws. Mirostat alone looks at the
/// draws before, of the same text, which a caller's [`TextState`] stands for.
#[derive(Debug)]
pub struct Sampler {
    rules: Rules,
    level: SimdLevel,
    /// Scratch of each thread. Never empty: a single row uses the first.
    scratch: Vec<HostScratch>,
}

/// The buffers of one thread, reused from row to row.
#[derive(Debug)]
struct HostScratch {
    /// The logits after penalties and biases, where `is_penalised`.
    penalised: Vec<f32>,
    is_penalised: bool,
    sorted_history: Vec<u32>,
    selection: Selection,
}

impl Sampler {
    /// A sampler with these parameters, at a constant temperature.
    ///
    /// # Errors
    /// The first parameter outside its range; see [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        Self::with_level(params, SimdLevel::detect())
    }

    /// [`Sampler::new`] with the vector instructions of a given level.
    fn with_level(params: SamplingParams, level: SimdLevel) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self { level, scratch: vec![HostScratch::new(level)], ..Self::from_rules(Rules::new(params)) })
    }

    /// Makes the temperature follow the position of the row.
    ///
    /// # Errors
    /// See [`Schedule::validate`].
    pub fn with_schedule(self, schedule: Schedule) -> Result<Self, SamplingError> {
        self.with_schedule_from(schedule, 0)
    }

    /// [`Sampler::with_schedule`], with position 0 of the schedule at position `start` of the rows: the length of a
    /// prompt. Positions before `start` have the schedule's first temperature.
    ///
    /// # Errors
    /// See [`Schedule::validate`].
    pub fn with_schedule_from(mut self, schedule: Schedule, start: u64) -> Result<Self, SamplingError> {
        schedule.validate(self.rules.params.temperature)?;
        self.rules.schedule = schedule;
        self.rules.schedule_start = start;
        Ok(self)
    }

    /// Makes rows greedy whose largest probability, after all other rules, exceeds `threshold`.
    ///
    /// # Errors
    /// A threshold outside `[0, 1]`.
    pub fn with_adaptive(mut self, threshold: f64) -> Result<Self, SamplingError> {
        check_probability("adaptive", threshold)?;
        self.rules.adaptive = Some(threshold);
        Ok(self)
    }

    /// The sampling parameters.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.rules.params
    }

    /// The sampler of all rules of a sampler on a device.
    pub(crate) fn from_rules(rules: Rules) -> Self {
        let level = SimdLevel::detect();
        Self { rules, level, scratch: vec![HostScratch::new(level)] }
    }

    /// All rules, for a sampler on a device.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The state of a text that nothing was drawn for yet. A text has one of its own.
    #[must_use]
    pub fn begin_text(&self) -> TextState {
        TextState { mu: 2.0 * self.rules.params.mirostat_tau }
    }

    /// Draws the next token of a text and carries its state on. All other functions draw from a row as the first of its
    /// text, which only matters to mirostat.
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`]; the state is then as before.
    pub fn sample_next(&mut self, row: &Row<'_>, state: &mut TextState) -> Result<u32, SamplingError> {
        self.scratch[0].select(&self.rules, row, *state)?;
        Ok(self.draw_next(row, state))
    }

    /// Draws from the row that was selected from, and carries the state on.
    fn draw_next(&self, row: &Row<'_>, state: &mut TextState) -> u32 {
        let (params, scratch) = (&self.rules.params, &self.scratch[0]);
        let token = scratch.draw(&self.rules, row);
        if params.mirostat_tau > 0.0 {
            // A greedy draw is no surprise.
            let surprise = scratch.selection.surprise(token).unwrap_or(0.0);
            state.mu -= params.mirostat_eta * (surprise - params.mirostat_tau);
        }
        token
    }

    /// Draws the next token of one row of logits, `[V]`. Only the penalties read `history`, the tokens so far.
    ///
    /// # Errors
    /// A NaN, a +infinity or no finite logit; a token of the history or bias that is not below V. The row is called row
    /// 0.
    pub fn sample_row(
        &mut self,
        logits: &[f32],
        history: &[u32],
        sequence: u64,
        position: u64,
    ) -> Result<u32, SamplingError> {
        let row = Row { logits, history, sequence, position };
        let first = self.begin_text();
        self.scratch[0].sample(&self.rules, &row, first)
    }

    /// Draws the next token of each row, on the threads of the current rayon pool where one would take more than some 50
    /// microseconds. The answer of a row that cannot be
    /// drawn from is an error that names its index; it does not affect the other rows.
    pub fn sample_batch(&mut self, rows: &[Row<'_>]) -> Vec<Result<u32, SamplingError>> {
        let mut tokens = Vec::new();
        self.sample_batch_into(rows, &mut tokens);
        tokens
    }

    /// [`Sampler::sample_batch`] into a buffer, which is cleared first and can be reused from step to step.
    pub fn sample_batch_into(&mut self, rows: &[Row<'_>], tokens: &mut Vec<Result<u32, SamplingError>>) {
        tokens.clear();
        tokens.resize(rows.len(), Ok(0));
        let threads = sharing::threads(&self.rules, rows, rayon::current_num_threads);
        let first = self.begin_text();
        let Self { rules, level, scratch } = self;
        if scratch.len() < threads {
            scratch.resize_with(threads, || HostScratch::new(*level));
        }
        let per_thread = rows.len().div_ceil(threads).max(1);
        let sample_group = |group: usize, tokens: &mut [Result<u32, SamplingError>], scratch: &mut HostScratch| {
            for (n, token) in tokens.iter_mut().enumerate() {
                let row = group * per_thread + n;
                *token = scratch.sample(rules, &rows[row], first).map_err(|error| error.at_row(row));
            }
        };
        if threads == 1 {
            sample_group(0, tokens, &mut scratch[0]);
        } else {
            let groups = tokens.par_chunks_mut(per_thread).zip(scratch.par_iter_mut()).enumerate();
            groups.for_each(|(group, (tokens, scratch))| sample_group(group, tokens, scratch));
        }
    }

    /// Draws `count` times from the same logits, at the position of the row and those that follow it. The tokens are
    /// those of `count` calls of [`Sampler::sample_row`], but the row is selected from only where the temperature or XTC
    /// changes what is kept.
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`].
    pub fn sample_row_repeatedly(&mut self, row: &Row<'_>, count: usize) -> Result<Vec<u32>, SamplingError> {
        self.sample_places(row, (0..count as u64).map(|n| (row.sequence, row.position.wrapping_add(n))))
    }

    /// Draws from the same logits for `count` texts, at the same position: that of the row and those that follow it. The
    /// tokens are those of `count` calls of [`Sampler::sample_row`], as fast as [`Sampler::sample_row_repeatedly`].
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`].
    pub fn sample_row_in_sequences(&mut self, row: &Row<'_>, count: usize) -> Result<Vec<u32>, SamplingError> {
        self.sample_places(row, (0..count as u64).map(|n| (row.sequence.wrapping_add(n), row.position)))
    }

    /// Draws from the same logits at other places, `(sequence, position)`.
    fn sample_places(
        &mut self,
        row: &Row<'_>,
        places: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Vec<u32>, SamplingError> {
        let first = self.begin_text();
        let Self { rules, scratch, .. } = self;
        let scratch = &mut scratch[0];
        let mut selected_at = None;
        places
            .map(|(sequence, position)| {
                let row = Row { sequence, position, ..*row };
                let here = (rules.temperature(row.position), rules.xtc_acts(row.sequence, row.position));
                if selected_at != Some(here) {
                    scratch.select(rules, &row, first)?;
                    selected_at = Some(here);
                }
                Ok(scratch.draw(rules, &row))
            })
            .collect()
    }

    /// Draws the token that [`Sampler::sample_row`] draws, and measures what it is drawn from: one selection for both, and no
    /// sort as for [`Sampler::distribution`].
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`].
    pub fn inspect_row(&mut self, row: &Row<'_>) -> Result<InspectedDraw, SamplingError> {
        self.inspect_next(row, &mut self.begin_text())
    }

    /// [`Sampler::inspect_row`] of the next token of a text, as [`Sampler::sample_next`].
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`]; the state is then as before.
    pub fn inspect_next(&mut self, row: &Row<'_>, state: &mut TextState) -> Result<InspectedDraw, SamplingError> {
        let scratch = &mut self.scratch[0];
        scratch.select(&self.rules, row, *state)?;
        let kept = scratch.selection.kept(scratch.logits(row));
        // Of weights w with the sum W, -sum w/W ln w/W is ln W - sum(w ln w) / W.
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let surprise: f64 = kept.iter().map(|&(_, w)| if w > 0.0 { w * w.ln() } else { 0.0 }).sum();
        // Rounding may leave the entropy of a near-certain token a little below 0.
        let entropy = (total.ln() - surprise / total).max(0.0);
        Ok(InspectedDraw { kept: kept.len(), token: self.draw_next(row, state), entropy })
    }

    /// The distribution that [`Sampler::sample_row`] draws this row from. It depends on the position only with a schedule or
    /// XTC, and on the sequence only with XTC.
    ///
    /// # Errors
    /// As for [`Sampler::sample_row`].
    pub fn distribution(&mut self, row: &Row<'_>) -> Result<Distribution, SamplingError> {
        let first = self.begin_text();
        let scratch = &mut self.scratch[0];
        scratch.select(&self.rules, row, first)?;
        let logits = scratch.logits(row);
        let mut kept = scratch.selection.kept(logits);
        // The sort is stable: equal logits stay in vocabulary order.
        kept.sort_by(|a, b| {
            let (a, b) = (logits[a.0 as usize], logits[b.0 as usize]);
            b.partial_cmp(&a).unwrap_or(Ordering::Equal)
        });
        let (tokens, weights) = kept.into_iter().unzip();
        Ok(Distribution::from_weights(tokens, weights))
    }
}

impl HostScratch {
    fn new(level: SimdLevel) -> Self {
        Self {
            penalised: Vec::new(),
            is_penalised: false,
            sorted_history: Vec::new(),
            selection: Selection::new(level),
        }
    }

    fn sample(&mut self, rules: &Rules, row: &Row<'_>, state: TextState) -> Result<u32, SamplingError> {
        self.select(rules, row, state)?;
        Ok(self.draw(rules, row))
    }

    /// Applies all rules to the row, which leaves the tokens that may be drawn in `self.selection`.
    fn select(&mut self, rules: &Rules, row: &Row<'_>, state: TextState) -> Result<(), SamplingError> {
        self.is_penalised = rules.params.changes_logits(row.history);
        let mut logits = row.logits;
        if self.is_penalised {
            self.penalised.clear();
            self.penalised.extend_from_slice(logits);
            apply_penalties(&mut self.penalised, &rules.params, row.history, &mut self.sorted_history)?;
            logits = &self.penalised;
        }
        let selection = &mut self.selection;
        let numbers = RowNumbers { xtc_acts: rules.xtc_acts(row.sequence, row.position), mu: state.mu };
        selection.select(logits, &rules.params, rules.temperature(row.position), numbers)?;
        if rules.adaptive.is_some_and(|threshold| selection.largest_probability() > threshold) {
            selection.make_greedy(logits);
        }
        Ok(())
    }

    /// Draws a token of the row that was selected from last.
    fn draw(&self, rules: &Rules, row: &Row<'_>) -> u32 {
        let u = uniform(rules.params.seed, row.sequence, row.position);
        self.selection.draw(self.logits(row), u)
    }

    /// The logits of the row that was selected from last, after its penalties.
    fn logits<'a>(&'a self, row: &Row<'a>) -> &'a [f32] {
        if self.is_penalised { &self.penalised } else { row.logits }
    }
}
