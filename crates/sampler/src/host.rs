//! The sampler on the host.

use crate::params::check_share;
use crate::penalties::adjust;
use crate::philox::uniform;
use crate::selection::Selection;
use crate::simd::SimdLevel;
use crate::{Distribution, SamplingError, SamplingParams, Schedule};
use rayon::prelude::*;
use std::cmp::Ordering;

/// Below this many logits in a batch, starting threads costs more than it saves.
pub(crate) const PARALLEL_LOGITS: usize = 1 << 16;

/// One row of a batch: the logits of the next token and what its draw depends on.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// One logit for each token of the vocabulary.
    pub logits: &'a [f32],
    /// The tokens so far, for the penalties; may be empty if there are none.
    pub history: &'a [u32],
    /// Which text of the run this is.
    pub sequence: u64,
    /// Which token of that text this is.
    pub position: u64,
}

/// Draws tokens on the host.
///
/// A draw depends on the logits, the history, the parameters and (seed, sequence, position), and on nothing else:
/// not on the batch, its order, the number of threads or the draws before.
#[derive(Debug)]
pub struct Sampler {
    rules: Rules,
    level: SimdLevel,
    /// One for each thread; never empty.
    scratch: Vec<Scratch>,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) params: SamplingParams,
    schedule: Schedule,
    /// The position at which the schedule begins.
    schedule_start: u64,
    /// Greedy where the largest probability exceeds this.
    pub(crate) adaptive: Option<f64>,
}

/// The buffers of one thread, kept from row to row.
#[derive(Debug)]
struct Scratch {
    /// The row after its penalties, where it has any.
    row: Vec<f32>,
    adjusted: bool,
    history: Vec<u32>,
    selection: Selection,
}

impl Sampler {
    /// A sampler with these rules.
    ///
    /// # Errors
    /// The first parameter outside its range; see [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        Self::with_level(params, SimdLevel::detect())
    }

    /// A sampler with the instructions of a level that the processor has.
    pub(crate) fn with_level(params: SamplingParams, level: SimdLevel) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self { rules: Rules::new(params), level, scratch: vec![Scratch::new(level)] })
    }

    /// The same sampler with a temperature that follows the row's position.
    ///
    /// # Errors
    /// See [`Schedule::validate`].
    pub fn with_schedule(self, schedule: Schedule) -> Result<Self, SamplingError> {
        self.with_schedule_from(schedule, 0)
    }

    /// [`Sampler::with_schedule`] with position 0 of the schedule at position `start` of the rows: after a prompt of so
    /// many tokens. Positions before it have the schedule's first temperature.
    ///
    /// # Errors
    /// See [`Schedule::validate`].
    pub fn with_schedule_from(mut self, schedule: Schedule, start: u64) -> Result<Self, SamplingError> {
        schedule.validate(self.rules.params.temperature)?;
        self.rules.schedule = schedule;
        self.rules.schedule_start = start;
        Ok(self)
    }

    /// The same sampler, greedy on each row where the largest probability, after all rules, exceeds `threshold`.
    ///
    /// # Errors
    /// A threshold outside `[0, 1]`.
    pub fn with_adaptive(mut self, threshold: f64) -> Result<Self, SamplingError> {
        check_share("adaptive", threshold)?;
        self.rules.adaptive = Some(threshold);
        Ok(self)
    }

    /// The rules.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.rules.params
    }

    /// All that is asked for, for a sampler elsewhere.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Draws the next token of one row; `history` is read by the penalties only.
    ///
    /// # Errors
    /// A NaN, a +infinity or no finite logit; a token of the history or bias outside the vocabulary. The row is 0.
    pub fn sample_row(
        &mut self,
        logits: &[f32],
        history: &[u32],
        sequence: u64,
        position: u64,
    ) -> Result<u32, SamplingError> {
        let row = Row { logits, history, sequence, position };
        self.rules.draw(&row, &mut self.scratch[0])
    }

    /// Draws the next token of each row, on the threads of the current rayon pool. A bad row is an error in its place
    /// that names it, and leaves the others as they are.
    pub fn sample_batch(&mut self, rows: &[Row<'_>]) -> Vec<Result<u32, SamplingError>> {
        let mut tokens = Vec::new();
        self.sample_batch_into(rows, &mut tokens);
        tokens
    }

    /// [`Sampler::sample_batch`] into a buffer that is used again from step to step.
    pub fn sample_batch_into(&mut self, rows: &[Row<'_>], tokens: &mut Vec<Result<u32, SamplingError>>) {
        tokens.clear();
        tokens.resize(rows.len(), Ok(0));
        let logits: usize = rows.iter().map(|row| row.logits.len()).sum();
        let threads = if logits < PARALLEL_LOGITS { 1 } else { rayon::current_num_threads().min(rows.len()).max(1) };
        let Self { rules, level, scratch } = self;
        if scratch.len() < threads {
            scratch.resize_with(threads, || Scratch::new(*level));
        }
        let per_thread = rows.len().div_ceil(threads).max(1);
        let work = |group: usize, tokens: &mut [Result<u32, SamplingError>], scratch: &mut Scratch| {
            for (n, token) in tokens.iter_mut().enumerate() {
                let row = group * per_thread + n;
                *token = rules.draw(&rows[row], scratch).map_err(|error| error.at_row(row));
            }
        };
        if threads == 1 {
            work(0, tokens, &mut scratch[0]);
        } else {
            let groups = tokens.par_chunks_mut(per_thread).zip(scratch.par_iter_mut()).enumerate();
            groups.for_each(|(group, (tokens, scratch))| work(group, tokens, scratch));
        }
    }

    /// Draws `count` times from the same logits, at the row's position and those that follow it: the tokens that as
    /// many calls of [`Sampler::sample_row`] give, without selecting and weighing anew for each.
    ///
    /// # Errors
    /// As for one draw.
    pub fn sample_row_repeatedly(&mut self, row: &Row<'_>, count: usize) -> Result<Vec<u32>, SamplingError> {
        let Self { rules, scratch, .. } = self;
        let scratch = &mut scratch[0];
        let mut selected_at = None;
        (0..count as u64)
            .map(|draw| {
                let row = Row { position: row.position.wrapping_add(draw), ..*row };
                let temperature = rules.temperature(row.position);
                if selected_at != Some(temperature) {
                    rules.select(&row, scratch)?;
                    selected_at = Some(temperature);
                }
                Ok(rules.draw_selected(&row, scratch))
            })
            .collect()
    }

    /// The distribution that the draw of a row is made from. Its sequence does not matter; its position does with a
    /// schedule.
    ///
    /// # Errors
    /// As for a draw.
    pub fn distribution(&mut self, row: &Row<'_>) -> Result<Distribution, SamplingError> {
        let scratch = &mut self.scratch[0];
        self.rules.select(row, scratch)?;
        let logits = scratch.logits(row);
        let mut kept = scratch.selection.kept(logits);
        // Stable: equal logits stay in vocabulary order.
        kept.sort_by(|a, b| {
            let (a, b) = (logits[a.0 as usize], logits[b.0 as usize]);
            b.partial_cmp(&a).unwrap_or(Ordering::Equal)
        });
        let (tokens, weights) = kept.into_iter().unzip();
        Ok(Distribution::from_weights(tokens, weights))
    }
}

impl Rules {
    /// These rules at one temperature, and no others.
    pub(crate) fn new(params: SamplingParams) -> Self {
        Self { params, schedule: Schedule::Constant, schedule_start: 0, adaptive: None }
    }

    pub(crate) fn temperature(&self, position: u64) -> f64 {
        self.schedule.temperature(self.params.temperature, position.saturating_sub(self.schedule_start))
    }

    fn draw(&self, row: &Row<'_>, scratch: &mut Scratch) -> Result<u32, SamplingError> {
        self.select(row, scratch)?;
        Ok(self.draw_selected(row, scratch))
    }

    /// Applies all rules; what they leave is in the scratch.
    fn select(&self, row: &Row<'_>, scratch: &mut Scratch) -> Result<(), SamplingError> {
        scratch.adjusted = self.params.adjusts(row.history);
        let mut logits = row.logits;
        if scratch.adjusted {
            scratch.row.clear();
            scratch.row.extend_from_slice(logits);
            adjust(&mut scratch.row, &self.params, row.history, &mut scratch.history)?;
            logits = &scratch.row;
        }
        let selection = &mut scratch.selection;
        selection.select(logits, &self.params, self.temperature(row.position))?;
        if self.adaptive.is_some_and(|threshold| selection.largest_probability() > threshold) {
            selection.make_greedy(logits);
        }
        Ok(())
    }

    /// A draw from what [`Rules::select`] left.
    fn draw_selected(&self, row: &Row<'_>, scratch: &Scratch) -> u32 {
        let u = uniform(self.params.seed, row.sequence, row.position);
        scratch.selection.draw(scratch.logits(row), u)
    }
}

impl Scratch {
    fn new(level: SimdLevel) -> Self {
        Self { row: Vec::new(), adjusted: false, history: Vec::new(), selection: Selection::new(level) }
    }

    /// The row as selected from: after its penalties, where it has any.
    fn logits<'a>(&'a self, row: &Row<'a>) -> &'a [f32] {
        if self.adjusted { &self.row } else { row.logits }
    }
}
