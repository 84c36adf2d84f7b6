//! A list of the tokens that may be drawn, in vocabulary order, found without a sort of the row.

use crate::cut::{Cut, KeepOnly, Retain};
use crate::cutoff::Search;
use crate::exponent::{Exponent, Weigh};
use crate::kernels::{BLOCK, Collect, Count, Fold, sample_vectors};
use crate::simd::{LANES, Lanes, Level};

/// The cut that drops nothing.
const EVERYTHING: Cut = Cut { value: f32::NEG_INFINITY, position: u32::MAX };

/// A list of at most this many is sorted; a longer one is narrowed by pivots.
const SHORT: usize = 160;
/// Blocks whose lane maxima are folded into one set before the search for the bound of a small top-k.
const FOLD: usize = 4;
/// Halvings of the interval in the search for that bound; any count of at least k will do.
const HALVINGS: usize = 16;
/// Blocks for each vector of the sample from which the bound of a nucleus is guessed, and the least of logits for it.
const SAMPLED: usize = 4;
const SAMPLED_ROW: usize = 1 << 13;
/// The share of the lightest, of mass 1 - p, that the guess means to drop: less than all, since a sample errs.
const DROPPED: f64 = 0.75;

/// Where a list comes from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) maxima: &'a [Lanes],
    pub(crate) exponent: Exponent,
}

/// Logits, tokens and weights; only the first `len` of each count.
#[derive(Debug)]
pub(crate) struct List {
    level: Level,
    values: Vec<f32>,
    tokens: Vec<u32>,
    weights: Vec<f32>,
    len: usize,
    /// What of the list may be drawn; once applied, the weights of the others are zero.
    cut: Cut,
    /// The weight of each block of the list, and of all.
    sums: Vec<f64>,
    total: f64,
    ones: Vec<f32>,
    folded: Vec<Lanes>,
    sample: Vec<f32>,
    search: Search,
}

impl List {
    pub(crate) fn new(level: Level) -> Self {
        Self {
            level,
            values: Vec::new(),
            tokens: Vec::new(),
            weights: Vec::new(),
            len: 0,
            cut: EVERYTHING,
            sums: Vec::new(),
            total: 0.0,
            ones: Vec::new(),
            folded: Vec::new(),
            sample: Vec::new(),
            search: Search::default(),
        }
    }

    /// Keeps the logits of at least `least`, a finite number that some logit reaches.
    pub(crate) fn keep_least(&mut self, source: Source<'_>, least: f32) {
        self.collect(source, least, false);
        self.weigh(source.exponent);
        self.cut = EVERYTHING;
    }

    /// Keeps the k largest logits and of these, renormalised, the nucleus of mass `top_p` (1 is off).
    pub(crate) fn keep_top_k(&mut self, source: Source<'_>, k: usize, top_p: f64) {
        let least = self.bound_of_kth(source.maxima, k);
        self.collect(source, least, k >= source.row.len() / (2 * LANES));
        if self.len <= SHORT {
            self.weigh(source.exponent);
            let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
            self.cut = self.search.cut_short(values, weights, k, top_p);
            return;
        }
        if self.len > k {
            grow(&mut self.ones, self.len, 1.0);
            let (values, ones) = (&self.values[..self.len], &self.ones[..self.len]);
            let cut = self.search.cutoff(self.level, values, ones, k as f64, self.len as f64);
            let count = self.len;
            self.len = self.level.run(Retain { cut, values: &mut self.values, tokens: &mut self.tokens, count });
        }
        self.weigh(source.exponent);
        self.cut = EVERYTHING;
        if top_p < 1.0 {
            self.cut_at_mass(top_p * self.total);
        }
    }

    /// Keeps the nucleus of mass `top_p`, below 1, of a row whose weights have the sum `total`.
    pub(crate) fn keep_top_p(&mut self, source: Source<'_>, top_p: f64, total: f64, max: f64, temperature: f64) {
        let target = top_p * total;
        if source.row.len() >= SAMPLED_ROW {
            let guess = self.guess_of_nucleus(source, (1.0 - top_p) * total);
            self.collect(source, guess, true);
            self.weigh(source.exponent);
            // All that reaches the guess is in the list: if that is enough, the nucleus is.
            if self.total >= target * (1.0 + 1e-6) {
                self.cut_at_mass(target);
                return;
            }
        }
        // All that is lighter than (1 - p) / V of the total weighs less than 1 - p of it together. A little lower, for
        // the rounding of weights: keeping more is never wrong.
        let lightest = (1.0 - top_p) * total / source.row.len() as f64;
        let least = max + temperature * (lightest.ln() - 1e-4);
        self.collect(source, (least as f32).next_down().max(f32::MIN), true);
        self.weigh(source.exponent);
        self.cut_at_mass(target);
    }

    /// Drops the logits below `least` from what may be drawn.
    pub(crate) fn raise_cut(&mut self, least: f32) {
        if least > self.cut.value {
            self.cut = Cut { value: least, position: u32::MAX };
        }
    }

    /// Gives what the cut drops the weight zero.
    pub(crate) fn apply_cut(&mut self) {
        if self.cut == EVERYTHING {
            return;
        }
        let values = &self.values[..self.len];
        self.level.run(KeepOnly { cut: self.cut, values, weights: &mut self.weights, sums: &mut self.sums });
        self.total = self.sums.iter().sum();
    }

    /// The weight of all that may be drawn.
    pub(crate) fn total(&self) -> f64 {
        self.total
    }

    /// The token for a uniform number.
    pub(crate) fn draw(&self, u: f64) -> u32 {
        let target = u * self.total;
        let (block, before) = find_block(&self.sums, target);
        let start = block * BLOCK;
        let weights = &self.weights[start..(start + BLOCK).min(self.len)];
        self.tokens[start + find_in_block(weights, before, target)]
    }

    /// The tokens that may be drawn and their weights.
    pub(crate) fn kept(&self) -> Vec<(u32, f64)> {
        (0..self.len)
            .filter(|&n| self.cut.keeps(self.values[n], n))
            .map(|n| (self.tokens[n], f64::from(self.weights[n])))
            .collect()
    }

    fn collect(&mut self, source: Source<'_>, least: f32, many: bool) {
        let Source { row, maxima, .. } = source;
        grow(&mut self.values, row.len() + LANES, 0.0);
        grow(&mut self.tokens, row.len() + LANES, 0);
        let (values, tokens) = (&mut self.values[..], &mut self.tokens[..]);
        self.len = self.level.run(Collect { row, maxima, least, many, values, tokens });
    }

    fn weigh(&mut self, exponent: Exponent) {
        grow(&mut self.weights, self.len.next_multiple_of(BLOCK), 0.0);
        let values = &self.values[..self.len];
        self.level.run(Weigh { values, exponent, weights: &mut self.weights, sums: Some(&mut self.sums) });
        self.total = self.sums.iter().sum();
    }

    fn cut_at_mass(&mut self, target: f64) {
        let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
        self.cut = self.search.cutoff(self.level, values, weights, target, self.total);
    }

    /// A finite number that the k-th largest logit, if it is finite, is not below.
    ///
    /// It is one that at least k of the lane maxima reach: they are maxima of disjoint sets, so as many logits do.
    fn bound_of_kth(&mut self, maxima: &[Lanes], k: usize) -> f32 {
        // Fewer and larger sets are quicker to count, and their maxima are still close to the k largest logits.
        let every = if maxima.len() * LANES >= 8 * FOLD * k { FOLD } else { 1 };
        let mut low = self.level.run(Fold { maxima, every, folded: &mut self.folded });
        if self.folded.len() * LANES < k || !low.is_finite() {
            return f32::MIN;
        }
        let mut high = self.folded.as_flattened().iter().copied().fold(low, f32::max);
        let enough = k + k / 4 + 4;
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            let count = self.level.run(Count { values: &self.folded, least: middle });
            if count < k {
                high = middle;
            } else {
                low = middle;
                if count <= enough {
                    break;
                }
            }
        }
        low
    }

    /// A bound that leaves somewhat more than the nucleus, if a sample of the row is like the row; `outside` is the
    /// weight of all that is not in the nucleus.
    fn guess_of_nucleus(&mut self, source: Source<'_>, outside: f64) -> f32 {
        sample_vectors(source.row, SAMPLED, &mut self.sample);
        let len = self.sample.len();
        grow(&mut self.weights, len.next_multiple_of(BLOCK), 0.0);
        self.level.run(Weigh {
            values: &self.sample,
            exponent: source.exponent,
            weights: &mut self.weights,
            sums: Some(&mut self.sums),
        });
        let total: f64 = self.sums.iter().sum();
        let outside = DROPPED * outside * len as f64 / source.row.len() as f64;
        let cut = self.search.cutoff(self.level, &self.sample, &self.weights[..len], total - outside, total);
        cut.value.max(f32::MIN)
    }
}

fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The first block in which the cumulative weight exceeds the target, and the weight before it.
pub(crate) fn find_block(sums: &[f64], target: f64) -> (usize, f64) {
    let (mut cumulative, mut found) = (0.0, (0, 0.0));
    for (block, &sum) in sums.iter().enumerate() {
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

/// The first place in a block where the cumulative weight exceeds the target; the last one with a weight if rounding
/// kept the block's sum short of it.
pub(crate) fn find_in_block(weights: &[f32], mut cumulative: f64, target: f64) -> usize {
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
