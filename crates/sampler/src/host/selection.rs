//! The selection of one row: which tokens the rules keep, how much each weighs, and the draw among them.
//!
//! The first pass over the row finds the largest logit, whether there is a NaN, and the lane maxima of each block.
//! Where the weights of all tokens are needed, the same pass sums them, relative to a large logit that a sample of the
//! row has shown. What follows depends on the rules:
//!
//! - a rule about the whole distribution, or numbers beyond f32: `f64_selection`, after the pass that finds the largest;
//! - greedy: the first token of the largest logit, in the first block that has it;
//! - top-k: the k-th largest lane maximum is a lower bound of the k-th largest logit. The logits that reach it (rarely
//!   many more than k, from few blocks) are the shortlist, which is cut at exactly k, then at top-p;
//! - top-p without top-k (`nucleus`): the shortlist is what reaches a threshold guessed from the sample or, if the mass of that is
//!   less than p, all but the lightest tokens; it is cut where the heaviest tokens reach p, most often between two logits that the
//!   sample suggests too;
//! - min-p alone: the shortlist is what reaches the smallest logit that qualifies;
//! - none of these: the draw finds its block by the block sums, and computes the weights of that block alone.

use super::blocks::BLOCK;
use super::cut_search::{from_total_order_key, total_order_key};
use super::f64_selection::{self, RowNumbers, WeightedToken};
use super::nucleus::Nucleus;
use super::row_kernels::{FirstBlockReaching, LaneMaxima, MaximaAndSums, RowMax, sample_vectors};
use super::shortlist::{RowScan, Shortlist, find_block, find_in_block};
use super::softmax_scale::{BlockSums, SoftmaxScale, SoftmaxWeights};
use crate::simd::{Lanes, SimdLevel};
use crate::{SamplingError, SamplingParams};

/// The largest top-p below 1 that f32 weights cut at; above it `f64_selection` does.
const MAX_F32_TOP_P: f64 = 1.0 - 1.0 / 4096.0;
/// The sample of a row has one vector of every so many blocks.
const BLOCKS_PER_SAMPLED_VECTOR: usize = 4;
/// The length from which on a row is sampled.
const MIN_SAMPLED_ROW: usize = 1 << 13;

/// Whether a row that is not greedy is left to `f64_selection`: rules about the whole distribution, or numbers beyond f32.
pub(super) fn is_in_f64(params: &SamplingParams, temperature: f64) -> bool {
    let close_to_one = params.top_p < 1.0 && params.top_p > MAX_F32_TOP_P;
    params.draws_on_host() || close_to_one || !SoftmaxScale::TEMPERATURES.contains(&temperature)
}

/// The tokens that the rules keep of a row. The buffers are reused from row to row.
#[derive(Debug)]
pub(super) struct Selection {
    level: SimdLevel,
    kind: SelectionKind,
    scale: SoftmaxScale,
    /// The largest logit of the row.
    max: f32,
    /// The lane maxima of the row's blocks.
    maxima: Vec<Lanes>,
    /// A sample of the vectors of a long row.
    sample: Vec<Lanes>,
    /// The sum of the weights of each block of the row (top-p and `AllTokens` only).
    block_sums: Vec<f64>,
    /// The sum of `block_sums`.
    total_weight: f64,
    shortlist: Shortlist,
    f64_tokens: Vec<WeightedToken>,
}

/// Which tokens of the row may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum SelectionKind {
    /// This token alone.
    Greedy(u32),
    /// Every token with a finite logit.
    AllTokens,
    /// The tokens of `Selection::shortlist` that its cut keeps.
    Shortlist,
    /// The tokens of `Selection::f64_tokens`.
    F64,
}

impl Selection {
    pub(super) fn new(level: SimdLevel) -> Self {
        Self {
            level,
            kind: SelectionKind::Greedy(0),
            scale: SoftmaxScale::new(0.0, 1.0),
            max: 0.0,
            maxima: Vec::new(),
            sample: Vec::new(),
            block_sums: Vec::new(),
            total_weight: 0.0,
            shortlist: Shortlist::new(level),
            f64_tokens: Vec::new(),
        }
    }

    /// Applies the rules to a row of penalised logits; `temperature` replaces that of `params`.
    ///
    /// # Errors
    /// A NaN, a +infinity or no finite logit, as of row 0.
    pub(super) fn select(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        temperature: f64,
        numbers: RowNumbers,
    ) -> Result<(), SamplingError> {
        if temperature == 0.0 || params.top_k == 1 {
            self.scan_maxima(row)?;
            self.kind = SelectionKind::Greedy(self.first_index_of(row, self.max));
            return Ok(());
        }
        if is_in_f64(params, temperature) {
            self.scan_maxima(row)?;
            self.kind = SelectionKind::F64;
            f64_selection::select(row, self.max, params, temperature, numbers, &mut self.f64_tokens);
            return Ok(());
        }
        let top_k = params.top_k > 0 && params.top_k < row.len();
        let top_p = !top_k && params.top_p < 1.0;
        let filtered = top_k || top_p || params.min_p > 0.0;
        if top_p || !filtered {
            self.scan_maxima_and_weights(row, temperature)?;
        } else {
            self.scan_maxima(row)?;
            self.scale = SoftmaxScale::new(self.max, temperature);
        }
        if !filtered {
            self.kind = SelectionKind::AllTokens;
            return Ok(());
        }
        self.kind = SelectionKind::Shortlist;
        let Self { max, maxima, sample, scale, shortlist, .. } = self;
        let scan = RowScan { row, max: *max, maxima, scale: *scale };
        if top_k {
            shortlist.keep_top_k(scan, params.top_k, params.top_p);
        } else if top_p {
            let nucleus = Nucleus { top_p: params.top_p, temperature, origin: scale.origin };
            shortlist.keep_nucleus(scan, nucleus, sample, self.total_weight);
        } else {
            shortlist.keep_at_least(scan, min_p_threshold(*max, temperature, params.min_p));
        }
        if params.min_p > 0.0 {
            shortlist.raise_cut(min_p_threshold(*max, temperature, params.min_p));
        }
        shortlist.apply_cut();
        Ok(())
    }

    /// The token that `u` in `[0, 1)` draws: the first in vocabulary order whose cumulative weight exceeds `u` times
    /// the total. `row` is the row that was selected from.
    pub(super) fn draw(&self, row: &[f32], u: f64) -> u32 {
        match self.kind {
            SelectionKind::Greedy(token) => token,
            SelectionKind::F64 => f64_selection::draw(&self.f64_tokens, u),
            SelectionKind::Shortlist => self.shortlist.draw(row, u),
            SelectionKind::AllTokens => {
                let target = u * self.total_weight;
                let (block, before) = find_block(&self.block_sums, target);
                let start = block * BLOCK;
                let mut weights = [0.0; BLOCK];
                self.level.run(SoftmaxWeights {
                    values: &row[start..(start + BLOCK).min(row.len())],
                    scale: self.scale,
                    weights: &mut weights,
                    block_sums: None,
                });
                (start + find_in_block(&weights, before, target)) as u32
            }
        }
    }

    /// The probability of the most probable token.
    pub(super) fn largest_probability(&self) -> f64 {
        match self.kind {
            SelectionKind::Greedy(_) => 1.0,
            SelectionKind::F64 => {
                let largest = self.f64_tokens.iter().map(|entry| entry.weight).fold(0.0, f64::max);
                largest / f64_selection::total_weight(&self.f64_tokens)
            }
            SelectionKind::AllTokens => self.max_weight() / self.total_weight,
            SelectionKind::Shortlist => self.max_weight() / self.shortlist.total_weight(),
        }
    }

    /// Keeps the most probable of the kept tokens alone, of equal ones the lowest.
    pub(super) fn make_greedy(&mut self, row: &[f32]) {
        match self.kind {
            // XTC and typical-p may have dropped the largest logit.
            SelectionKind::F64 => f64_selection::keep_largest(&mut self.f64_tokens),
            _ => self.kind = SelectionKind::Greedy(self.first_index_of(row, self.max)),
        }
    }

    /// How surprising `token`, which was drawn by the rules of `f64_selection`, is among the tokens that are kept, in bits.
    pub(super) fn surprise(&self, token: u32) -> Option<f64> {
        let place = self.f64_tokens.binary_search_by_key(&token, |entry| entry.token).ok();
        let of = |place: usize| -(self.f64_tokens[place].weight / f64_selection::total_weight(&self.f64_tokens)).log2();
        place.filter(|_| self.kind == SelectionKind::F64).map(of)
    }

    /// The tokens that may be drawn and their weights, in vocabulary order.
    pub(super) fn kept(&self, row: &[f32]) -> Vec<(u32, f64)> {
        match self.kind {
            SelectionKind::Greedy(token) => vec![(token, 1.0)],
            SelectionKind::F64 => self.f64_tokens.iter().map(|c| (c.token, c.weight)).collect(),
            SelectionKind::Shortlist => self.shortlist.kept(row),
            SelectionKind::AllTokens => {
                let mut weights = vec![0.0; row.len().next_multiple_of(BLOCK)];
                self.level.run(SoftmaxWeights {
                    values: row,
                    scale: self.scale,
                    weights: &mut weights,
                    block_sums: None,
                });
                (0..row.len())
                    .filter(|&n| row[n] > f32::NEG_INFINITY)
                    .map(|n| (n as u32, f64::from(weights[n])))
                    .collect()
            }
        }
    }

    /// Finds the largest logit and the lane maxima.
    fn scan_maxima(&mut self, row: &[f32]) -> Result<(), SamplingError> {
        let (max, may_have_nan) = self.level.run(LaneMaxima { row, maxima: &mut self.maxima });
        self.max = max;
        self.check(row, may_have_nan)
    }

    /// Finds the largest logit, the lane maxima, and the sums of all weights; chooses the scale.
    fn scan_maxima_and_weights(&mut self, row: &[f32], temperature: f64) -> Result<(), SamplingError> {
        let origin = self.sample(row);
        if origin.is_finite() {
            // Weights relative to a large logit need not wait for the largest: one read of the row instead of two.
            let Self { level, maxima, block_sums, .. } = self;
            let scale = SoftmaxScale::new(origin, temperature);
            let max = level.run(MaximaAndSums { row, scale, maxima, block_sums });
            let total_weight: f64 = self.block_sums.iter().sum();
            // Neither a NaN nor a +infinity, and the guess at the largest was not too far off.
            if total_weight.is_finite() && max < f32::INFINITY && scale.is_near(max) {
                (self.scale, self.max, self.total_weight) = (scale, max, total_weight);
                return Ok(());
            }
        }
        self.scan_maxima(row)?;
        self.scale = SoftmaxScale::new(self.max, temperature);
        self.level.run(BlockSums { row, scale: self.scale, block_sums: &mut self.block_sums });
        self.total_weight = self.block_sums.iter().sum();
        Ok(())
    }

    /// Samples a long row; returns the largest logit of the sample, -infinity of a short row.
    fn sample(&mut self, row: &[f32]) -> f32 {
        self.sample.clear();
        if row.len() >= MIN_SAMPLED_ROW {
            sample_vectors(row, BLOCKS_PER_SAMPLED_VECTOR, &mut self.sample);
        }
        self.level.run(RowMax { row: self.sample.as_flattened() })
    }

    /// Refuses a row with a NaN, a +infinity or no finite logit.
    fn check(&self, row: &[f32], may_have_nan: bool) -> Result<(), SamplingError> {
        if may_have_nan && let Some(index) = row.iter().position(|x| x.is_nan()) {
            return Err(SamplingError::NotANumber { row: 0, index });
        }
        if self.max == f32::INFINITY {
            let index = row.iter().position(|&x| x == self.max).unwrap_or(0);
            return Err(SamplingError::PositiveInfinity { row: 0, index });
        }
        if self.max == f32::NEG_INFINITY {
            return Err(SamplingError::NothingFinite { row: 0, vocab: row.len() });
        }
        Ok(())
    }

    /// The weight of the largest logit.
    fn max_weight(&self) -> f64 {
        let mut weights = [0.0; BLOCK];
        self.level.run(SoftmaxWeights {
            values: &[self.max],
            scale: self.scale,
            weights: &mut weights,
            block_sums: None,
        });
        f64::from(weights[0])
    }

    /// The first token whose logit is `max`, the largest of the row.
    fn first_index_of(&self, row: &[f32], max: f32) -> u32 {
        let start = BLOCK * self.level.run(FirstBlockReaching { maxima: &self.maxima, threshold: max });
        let within = row[start..].iter().position(|&x| x == max);
        (start + within.unwrap_or(0)) as u32
    }
}

/// The smallest logit that min-p keeps by the comparison of the definition, found by bisection over all floats.
fn min_p_threshold(max: f32, temperature: f64, min_p: f64) -> f32 {
    let keeps = |x: f32| ((f64::from(x) - f64::from(max)) / temperature).exp() >= min_p;
    let (mut low, mut high) = (total_order_key(f32::MIN), total_order_key(max));
    while low < high {
        let middle = low + (high - low) / 2;
        if keeps(from_total_order_key(middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    from_total_order_key(low)
}
