//! One row on the fast path: which tokens stay, how much each weighs, and the draw among them.
//!
//! Every way starts with one read of the row, which finds the maximum, a NaN, and the lane maxima of each block; where
//! all weights are needed, it sums them too, relative to a logit that a sample of the row found large. Then:
//!
//! - greedy: the first token of the maximum, from the first block that has it;
//! - top-k: the k-th largest lane maximum is a bound below which nothing can be kept; collect what reaches it (rarely
//!   more than k tokens, from few blocks), cut at k exactly, and weigh only those;
//! - top-p alone: collect what reaches a bound guessed from the sample or, if that turns out to be less than p, what is
//!   not among the lightest; cut where the heaviest reach p;
//! - min-p alone: collect what reaches the least logit that qualifies;
//! - no filter: the draw looks into one block.

use crate::cutoff::{from_rising_bits, rising_bits};
use crate::exact::{self, Candidate};
use crate::exponent::{Exponent, Sums, Weigh};
use crate::kernels::{BLOCK, FirstBlock, Max, Maxima, Survey, sample_vectors};
use crate::list::{List, Source, find_block, find_in_block};
use crate::simd::{Lanes, SimdLevel};
use crate::{SamplingError, SamplingParams};

/// How close to 1 top-p may be for sums of f32 weights to place its cut; beyond, f64 does.
const CLOSEST_TOP_P: f64 = 1.0 - 1.0 / 4096.0;
/// Blocks for each vector of the sample of a row, and the least of logits for it.
const SAMPLED: usize = 4;
const SAMPLED_ROW: usize = 1 << 13;

/// What was selected from a row, with the buffers to do so; they are kept from row to row.
#[derive(Debug)]
pub(crate) struct Selection {
    level: SimdLevel,
    kind: Kind,
    exponent: Exponent,
    max: f32,
    /// The lane maxima of the row's blocks.
    maxima: Vec<Lanes>,
    /// Some vectors of a long row.
    sample: Vec<Lanes>,
    /// The weight of each block of the row, and of all (`Kind::Row`).
    sums: Vec<f64>,
    total: f64,
    list: List,
    exact: Vec<Candidate>,
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
    pub(crate) fn new(level: SimdLevel) -> Self {
        Self {
            level,
            kind: Kind::Greedy(0),
            exponent: Exponent::new(0.0, 1.0),
            max: 0.0,
            maxima: Vec::new(),
            sample: Vec::new(),
            sums: Vec::new(),
            total: 0.0,
            list: List::new(level),
            exact: Vec::new(),
        }
    }

    /// Applies the rules to a row (after its penalties), at this temperature instead of that of `params`.
    pub(crate) fn select(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        temperature: f64,
    ) -> Result<(), SamplingError> {
        if temperature == 0.0 || params.top_k == 1 {
            self.find_largest(row)?;
            self.kind = Kind::Greedy(self.first_of(row, self.max));
            return Ok(());
        }
        let close = params.top_p < 1.0 && params.top_p > CLOSEST_TOP_P;
        if close || !Exponent::TEMPERATURES.contains(&temperature) {
            self.find_largest(row)?;
            self.kind = Kind::Exact;
            exact::keep(row, self.max, params, temperature, &mut self.exact);
            return Ok(());
        }
        let top_k = params.top_k > 0 && params.top_k < row.len();
        let top_p = !top_k && params.top_p < 1.0;
        let filtered = top_k || top_p || params.min_p > 0.0;
        if top_p || !filtered {
            self.weigh_row(row, temperature)?;
        } else {
            self.find_largest(row)?;
            self.exponent = Exponent::new(self.max, temperature);
        }
        if !filtered {
            self.kind = Kind::Row;
            return Ok(());
        }
        self.kind = Kind::List;
        let Self { max, maxima, sample, exponent, list, .. } = self;
        let source = Source { row, max: *max, maxima, sample, exponent: *exponent };
        if top_k {
            list.keep_top_k(source, params.top_k, params.top_p);
        } else if top_p {
            list.keep_top_p(source, params.top_p, temperature, self.total);
        } else {
            list.keep_least(source, least_for_min_p(*max, temperature, params.min_p));
        }
        if params.min_p > 0.0 {
            list.raise_cut(least_for_min_p(*max, temperature, params.min_p));
        }
        list.apply_cut();
        Ok(())
    }

    /// The token for a uniform number: the first in vocabulary order whose cumulative weight exceeds `u` x total.
    pub(crate) fn draw(&self, row: &[f32], u: f64) -> u32 {
        match self.kind {
            Kind::Greedy(token) => token,
            Kind::Exact => exact::draw(&self.exact, u),
            Kind::List => self.list.draw(row, u),
            Kind::Row => {
                let target = u * self.total;
                let (block, before) = find_block(&self.sums, target);
                let start = block * BLOCK;
                let mut weights = [0.0; BLOCK];
                self.level.run(Weigh {
                    values: &row[start..(start + BLOCK).min(row.len())],
                    exponent: self.exponent,
                    weights: &mut weights,
                    sums: None,
                });
                (start + find_in_block(&weights, before, target)) as u32
            }
        }
    }

    /// The largest probability of what may be drawn.
    pub(crate) fn largest_probability(&self) -> f64 {
        match self.kind {
            Kind::Greedy(_) => 1.0,
            Kind::Exact => 1.0 / self.exact.iter().map(|c| c.weight).sum::<f64>(),
            Kind::Row => self.heaviest() / self.total,
            Kind::List => self.heaviest() / self.list.total(),
        }
    }

    /// Makes the most probable token the only one.
    pub(crate) fn make_greedy(&mut self, row: &[f32]) {
        self.kind = Kind::Greedy(self.first_of(row, self.max));
    }

    /// The tokens that may be drawn and their weights, in vocabulary order.
    pub(crate) fn kept(&self, row: &[f32]) -> Vec<(u32, f64)> {
        match self.kind {
            Kind::Greedy(token) => vec![(token, 1.0)],
            Kind::Exact => self.exact.iter().map(|c| (c.token, c.weight)).collect(),
            Kind::List => self.list.kept(row),
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

    /// Finds the largest logit and the lane maxima, or why nothing can be drawn.
    fn find_largest(&mut self, row: &[f32]) -> Result<(), SamplingError> {
        let (max, may_have_nan) = self.level.run(Maxima { row, maxima: &mut self.maxima });
        self.max = max;
        self.check(row, may_have_nan)
    }

    /// [`Selection::find_largest`], and the weight of each block and of the row; chooses the exponent.
    fn weigh_row(&mut self, row: &[f32], temperature: f64) -> Result<(), SamplingError> {
        let Self { level, max, maxima, sample, sums, .. } = self;
        sample.clear();
        if row.len() >= SAMPLED_ROW {
            sample_vectors(row, SAMPLED, sample);
        }
        let origin = level.run(Max { row: sample.as_flattened() });
        if origin.is_finite() {
            // One read instead of two: the maximum need not be known where another large logit is.
            let exponent = Exponent::new(origin, temperature);
            let may_have_nan;
            (*max, may_have_nan) = level.run(Survey { row, exponent, maxima, sums });
            self.exponent = exponent;
            self.check(row, may_have_nan)?;
        } else {
            self.find_largest(row)?;
        }
        if !(origin.is_finite() && self.exponent.reaches(self.max)) {
            self.exponent = Exponent::new(self.max, temperature);
            self.level.run(Sums { row, exponent: self.exponent, sums: &mut self.sums });
        }
        self.total = self.sums.iter().sum();
        Ok(())
    }

    /// Why nothing can be drawn.
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
    fn heaviest(&self) -> f64 {
        let mut weights = [0.0; BLOCK];
        self.level.run(Weigh { values: &[self.max], exponent: self.exponent, weights: &mut weights, sums: None });
        f64::from(weights[0])
    }

    /// The first token whose logit is the maximum.
    fn first_of(&self, row: &[f32], max: f32) -> u32 {
        let start = BLOCK * self.level.run(FirstBlock { maxima: &self.maxima, least: max });
        let within = row[start..].iter().position(|&x| x == max);
        (start + within.unwrap_or(0)) as u32
    }
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
