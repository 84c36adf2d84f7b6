//! One row on the fast path: which tokens stay, how much each weighs, and the draw among them.
//!
//! Every way starts with one read of the row, which finds the maximum, a NaN, and the lane maxima of each block. Then:
//!
//! - greedy: the first token of the maximum, from the first block that has it;
//! - top-k: the k-th largest lane maximum is a bound below which nothing can be kept; collect what reaches it (rarely
//!   more than k tokens, from few blocks), cut at k exactly, and weigh only those;
//! - top-p alone: weigh and sum the row; all tokens lighter than (1 - p) / V of the sum weigh less than 1 - p together,
//!   so collect the others and cut where the heaviest reach p;
//! - min-p alone: collect what reaches the least logit that qualifies;
//! - no filter: weigh and sum the row by block; the draw looks into one block.

use crate::SamplingError;
use crate::SamplingParams;
use crate::cutoff::{Search, from_rising_bits, rising_bits};
use crate::exact::{self, Candidate};
use crate::exponent::{Exponent, Sums, Weigh};
use crate::kernels::{BLOCK, Collect, Cut, FirstBlock, KeepOnly, Maxima, Retain};
use crate::simd::{LANES, Lanes, Level};

/// The cut that drops nothing.
const EVERYTHING: Cut = Cut { value: f32::NEG_INFINITY, position: u32::MAX };

/// How close to 1 top-p may be for sums of f32 weights to place its cut; beyond, f64 does.
const CLOSEST_TOP_P: f64 = 1.0 - 1.0 / 4096.0;

/// What was selected from a row, with the buffers to do so; they are kept from row to row.
#[derive(Debug)]
pub(crate) struct Selection {
    level: Level,
    kind: Kind,
    exponent: Exponent,
    maxima: Vec<Lanes>,
    /// Logits, tokens and weights of the tokens that may be drawn, in vocabulary order (`Kind::List`).
    values: Vec<f32>,
    tokens: Vec<u32>,
    weights: Vec<f32>,
    len: usize,
    /// What of the list may be drawn; the weights of the others are zero.
    cut: Cut,
    /// The weight of each block of the row or list, and of all.
    sums: Vec<f64>,
    total: f64,
    ones: Vec<f32>,
    exact: Vec<Candidate>,
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Greedy(u32),
    /// Every token of the row.
    Row,
    /// What the cut keeps of the list.
    List,
    /// Those of the list of f64 candidates.
    Exact,
}

impl Selection {
    pub(crate) fn new(level: Level) -> Self {
        Self {
            level,
            kind: Kind::Greedy(0),
            exponent: Exponent::new(0.0, 1.0),
            maxima: Vec::new(),
            values: Vec::new(),
            tokens: Vec::new(),
            weights: Vec::new(),
            len: 0,
            cut: EVERYTHING,
            sums: Vec::new(),
            total: 0.0,
            ones: Vec::new(),
            exact: Vec::new(),
            search: Search::default(),
        }
    }

    /// Applies the rules to a row (after its penalties), at this temperature instead of that of `params`.
    pub(crate) fn select(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        temperature: f64,
    ) -> Result<(), SamplingError> {
        let max = self.largest(row)?;
        if temperature == 0.0 || params.top_k == 1 {
            self.kind = Kind::Greedy(self.first_of(row, max));
            return Ok(());
        }
        let close = params.top_p < 1.0 && params.top_p > CLOSEST_TOP_P;
        if close || !Exponent::TEMPERATURES.contains(&temperature) {
            self.kind = Kind::Exact;
            exact::keep(row, max, params, temperature, &mut self.exact);
            return Ok(());
        }
        self.exponent = Exponent::new(max, temperature);
        let top_k = params.top_k > 0 && params.top_k < row.len();
        let filtered = top_k || params.top_p < 1.0 || params.min_p > 0.0;
        if !filtered {
            self.kind = Kind::Row;
            self.sum_row(row);
            return Ok(());
        }
        self.kind = Kind::List;
        if top_k {
            self.collect_top_k(row, params.top_k);
        } else if params.top_p < 1.0 {
            self.sum_row(row);
            let least_share = (1.0 - params.top_p) * self.total / row.len() as f64;
            // A little lower than the bound, for the rounding of weights; dropping less is always right.
            let least = f64::from(max) + temperature * (least_share.ln() - 1e-4);
            self.collect(row, (least as f32).next_down().max(f32::MIN));
        } else {
            self.collect(row, least_for_min_p(max, temperature, params.min_p));
        }
        // The mass is that of what top-k left, or of the whole row, of which the list is the heavy part.
        let row_total = self.total;
        self.weigh_list();
        self.cut = EVERYTHING;
        if params.top_p < 1.0 {
            let mass = if top_k { self.total } else { row_total };
            self.cut = self.search.cutoff(
                self.level,
                &self.values[..self.len],
                &self.weights[..self.len],
                params.top_p * mass,
                self.total,
            );
        }
        if params.min_p > 0.0 {
            let least = least_for_min_p(max, temperature, params.min_p);
            if least > self.cut.value {
                self.cut = Cut { value: least, position: u32::MAX };
            }
        }
        if self.cut != EVERYTHING {
            self.level.run(KeepOnly {
                cut: self.cut,
                values: &self.values[..self.len],
                weights: &mut self.weights,
                sums: &mut self.sums,
            });
            self.total = self.sums.iter().sum();
        }
        Ok(())
    }

    /// The token for a uniform number: the first in vocabulary order whose cumulative weight exceeds `u` x total.
    pub(crate) fn draw(&self, row: &[f32], u: f64) -> u32 {
        match self.kind {
            Kind::Greedy(token) => token,
            Kind::Exact => exact::draw(&self.exact, u),
            Kind::List => {
                let (block, before) = self.find_block(u);
                let start = block * BLOCK;
                let end = (start + BLOCK).min(self.len);
                let n = find_in_block(&self.weights[start..end], before, u * self.total);
                self.tokens[start + n]
            }
            Kind::Row => {
                let (block, before) = self.find_block(u);
                let start = block * BLOCK;
                let mut weights = [0.0; BLOCK];
                self.level.run(Weigh {
                    values: &row[start..(start + BLOCK).min(row.len())],
                    exponent: self.exponent,
                    weights: &mut weights,
                    sums: None,
                });
                (start + find_in_block(&weights, before, u * self.total)) as u32
            }
        }
    }

    /// The first block in which the cumulative weight exceeds `u` x total, and the weight before it.
    fn find_block(&self, u: f64) -> (usize, f64) {
        let target = u * self.total;
        let (mut cumulative, mut found) = (0.0, (0, 0.0));
        for (block, &sum) in self.sums.iter().enumerate() {
            if sum > 0.0 {
                found = (block, cumulative);
            }
            cumulative += sum;
            if cumulative > target {
                break;
            }
        }
        found
    }

    /// The largest probability of what may be drawn.
    pub(crate) fn largest_probability(&self) -> f64 {
        match self.kind {
            Kind::Greedy(_) => 1.0,
            Kind::Exact => 1.0 / self.exact.iter().map(|c| c.weight).sum::<f64>(),
            // The largest weight is 1.
            Kind::Row | Kind::List => 1.0 / self.total,
        }
    }

    /// Makes the most probable token the only one.
    pub(crate) fn make_greedy(&mut self, row: &[f32]) {
        let max = self.maxima.as_flattened().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.kind = Kind::Greedy(self.first_of(row, max));
    }

    /// The tokens that may be drawn and their weights relative to the largest, in vocabulary order.
    pub(crate) fn kept(&self, row: &[f32]) -> Vec<(u32, f64)> {
        match self.kind {
            Kind::Greedy(token) => vec![(token, 1.0)],
            Kind::Exact => self.exact.iter().map(|c| (c.token, c.weight)).collect(),
            Kind::List => (0..self.len)
                .filter(|&n| self.cut.keeps(self.values[n], n))
                .map(|n| (self.tokens[n], f64::from(self.weights[n])))
                .collect(),
            Kind::Row => {
                let mut weights = vec![0.0; row.len().next_multiple_of(BLOCK)];
                self.level.run(Weigh { values: row, exponent: self.exponent, weights: &mut weights, sums: None });
                (0..row.len())
                    .filter(|&n| row[n] > f32::NEG_INFINITY)
                    .map(|n| (n as u32, f64::from(weights[n])))
                    .collect()
            }
        }
    }

    /// The largest logit, or why nothing can be drawn.
    fn largest(&mut self, row: &[f32]) -> Result<f32, SamplingError> {
        let (max, has_nan) = self.level.run(Maxima { row, maxima: &mut self.maxima });
        if has_nan {
            let index = row.iter().position(|x| x.is_nan()).unwrap_or(0);
            return Err(SamplingError::NotANumber { row: 0, index });
        }
        if max == f32::INFINITY {
            let index = row.iter().position(|&x| x == max).unwrap_or(0);
            return Err(SamplingError::PositiveInfinity { row: 0, index });
        }
        if max == f32::NEG_INFINITY {
            return Err(SamplingError::NothingFinite { row: 0, vocab: row.len() });
        }
        Ok(max)
    }

    /// The first token whose logit is the maximum.
    fn first_of(&self, row: &[f32], max: f32) -> u32 {
        let start = BLOCK * self.level.run(FirstBlock { maxima: &self.maxima, least: max });
        let within = row[start..].iter().position(|&x| x == max);
        (start + within.unwrap_or(0)) as u32
    }

    fn sum_row(&mut self, row: &[f32]) {
        self.level.run(Sums { row, exponent: self.exponent, sums: &mut self.sums });
        self.total = self.sums.iter().sum();
    }

    fn weigh_list(&mut self) {
        grow(&mut self.weights, self.len.next_multiple_of(BLOCK), 0.0);
        self.level.run(Weigh {
            values: &self.values[..self.len],
            exponent: self.exponent,
            weights: &mut self.weights,
            sums: Some(&mut self.sums),
        });
        self.total = self.sums.iter().sum();
    }

    /// Makes the list of the logits of at least `least`.
    fn collect(&mut self, row: &[f32], least: f32) {
        grow(&mut self.values, row.len() + LANES, 0.0);
        grow(&mut self.tokens, row.len() + LANES, 0);
        self.len = self.level.run(Collect {
            row,
            maxima: &self.maxima,
            least,
            values: &mut self.values,
            tokens: &mut self.tokens,
        });
    }

    /// Makes the list of the k largest logits, lowest tokens first among equals at the boundary.
    fn collect_top_k(&mut self, row: &[f32], k: usize) {
        let least = self.bound_of_kth(k);
        self.collect(row, least);
        if self.len > k {
            grow(&mut self.ones, self.len, 1.0);
            let cut = self.search.cutoff(
                self.level,
                &self.values[..self.len],
                &self.ones[..self.len],
                k as f64,
                self.len as f64,
            );
            self.len =
                self.level.run(Retain { cut, values: &mut self.values, tokens: &mut self.tokens, count: self.len });
        }
    }

    /// A finite number that the k-th largest logit, if it is finite, is not below.
    fn bound_of_kth(&mut self, k: usize) -> f32 {
        // Fewer and larger subsets are quicker to search, and their maxima still close to the k largest logits.
        let fold = if self.maxima.len() * LANES >= FEW_HITS * FOLD * k { FOLD } else { 1 };
        let subsets = self.maxima.len().div_ceil(fold) * LANES;
        if subsets < 2 * k {
            return f32::MIN;
        }
        grow(&mut self.values, subsets, 0.0);
        grow(&mut self.ones, subsets, 1.0);
        let folded = self.values.as_chunks_mut::<LANES>().0;
        for (to, blocks) in folded.iter_mut().zip(self.maxima.chunks(fold)) {
            *to = blocks[0];
            for block in &blocks[1..] {
                for (to, &from) in to.iter_mut().zip(block) {
                    *to = if from > *to { from } else { *to };
                }
            }
        }
        let cut =
            self.search.cutoff(self.level, &self.values[..subsets], &self.ones[..subsets], k as f64, subsets as f64);
        cut.value.max(f32::MIN)
    }
}

/// Blocks whose lane maxima are folded into one set before the search for a bound.
const FOLD: usize = 4;
/// Fold where this many subsets for each of the k remain.
const FEW_HITS: usize = 4;

fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The first place in a block where the cumulative weight exceeds the target; the last one with a weight if rounding
/// kept the block's sum short of it.
fn find_in_block(weights: &[f32], mut cumulative: f64, target: f64) -> usize {
    let mut found = 0;
    for (n, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            found = n;
            cumulative += f64::from(weight);
            if cumulative > target {
                break;
            }
        }
    }
    found
}

/// The least logit that min-p keeps: exactly the comparison of the definition, by binary search over the floats.
fn least_for_min_p(max: f32, temperature: f64, min_p: f64) -> f32 {
    let keeps = |x: f32| ((f64::from(x) - f64::from(max)) / temperature).exp() >= min_p;
    let (mut low, mut high) = (rising_bits(f32::MIN), rising_bits(max));
    while low < high {
        let middle = low + (high - low) / 2;
        if keeps(from_rising_bits(middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    from_rising_bits(low)
}
